"""`make bench` on a network that takes milliseconds."""

import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import bench
import bench_quality
import pytest
import torch
from conftest import copied, same, tiny

from cldiff import load_tasks
from cldiff.report.execute import execute
from cldiff.study import runs
from cldiff.tasks import to_model

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ROW = {"job", "who", "model", "batch", "value", "unit", "flops_per_image", "peak_share", "peak_memory_mb"}
LUCIDRAINS = ["lucidrains"] * bool(find_spec("denoising_diffusion_pytorch"))
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "bench.ipynb"


@pytest.fixture(scope="module")
def said():
    return []


@pytest.fixture(scope="module")
def report(said):
    pytest.importorskip("diffusers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "TURN", 0.0)
        patch.setitem(bench.WARM, "cpu", 1)
        patch.setattr(bench, "say", said.append)
        patch.setattr(bench, "ProcessPoolExecutor", lambda n, context: ThreadPoolExecutor(n))  # a process takes seconds
        patch.setitem(bench.WHO, "absent", None)
        return bench.measure({"tiny": tiny()}, CPU, repeats=3)


def test_report_has_a_row_for_each_library_and_job(report):
    assert Counter((row["job"], row["who"]) for row in report["rows"]) == Counter(
        [*product(("train", "sample"), ("cldiff", "diffusers", *LUCIDRAINS)), ("bpd", "cldiff"), ("fid", "cldiff")]
    )
    assert {"device", "machine", "versions", "commit", "rows", "growth"} <= report.keys()
    for row in report["rows"]:
        assert ROW <= row.keys()
        assert row["unit"] == ("seconds for 10,000 images" if row["job"] == "fid" else "images/s")
        assert row["value"] > 0 and row["flops_per_image"] > 0 and row["peak_memory_mb"] > 100
        assert 0 < row["peak_share"] <= row["roofline_share"]
        assert row["floor_bytes_per_image"] < row["bytes_per_image"]


def test_values_are_medians_of_the_repeats(report):
    for row in report["rows"]:
        assert len(row["repeats"]) == 3 and row["value"] == median(row["repeats"])


def test_growth_goes_over_batch_width_tasks_and_seeds(report):
    wanted = {"batch": [8, 32, 128, 512], "width": [8, 16], "past tasks": [1, 2, 4, 8, 16], "seeds": [1, 3, 5, 10]}
    assert wanted == {name: [point["x"] for point in report["growth"] if point["against"] == name] for name in wanted}
    assert all(point["value"] > 0 for point in report["growth"])
    assert all(point.get("estimated", False) == (point["against"] == "seeds") for point in report["growth"])


def test_a_library_that_cannot_be_had_is_left_out_and_named_once(report, said):
    assert sum("absent left out" in line for line in said) == 1
    assert sum("compiled networks are left out" in line for line in said) == 1


def test_works_take_turns_in_rounds_that_go_back_and_forth(monkeypatch):
    order = []
    monkeypatch.setattr(bench, "TURN", 0.0)
    monkeypatch.setattr(bench, "say", lambda text: None)
    times = bench.interleave("", {name: partial(order.append, name) for name in "abc"}, 3, CPU)
    assert "".join(order) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.parametrize(
    "run",
    [runs("digits")[0], replace(runs("small")[0], channels=8, blocks=1), runs("paper-cpu")[0]],
    ids=("8", "28", "patches"),
)
@pytest.mark.parametrize("job", ("train", "sample"))
def test_diffusers_net_is_ours_in_flops(run, job):
    pytest.importorskip("diffusers")
    ours, theirs = (bench.count(who, job, run, 32)["flops_per_image"] for who in ("cldiff", "diffusers"))
    assert ours == pytest.approx(theirs, rel=0.01)


def test_flops_of_a_convolution_count_additions_and_multiplications():
    net = torch.nn.Conv2d(3, 5, 3, padding=1)
    with bench.FlopCounterMode(display=False) as flops, torch.no_grad():
        net(torch.zeros(2, 3, 4, 4))
    assert flops.get_total_flops() == 2 * 2 * 5 * 4 * 4 * 3 * 3 * 3


def test_traffic_counts_what_operations_read_and_write():
    a, b = torch.zeros(4, 8), torch.zeros(8, 2)
    with bench.Traffic() as traffic:
        (a @ b).t().add_(1)
    read_and_written = 4 * (4 * 8 + 8 * 2 + 4 * 2)
    assert (traffic.products, traffic.bytes, traffic.operations) == (read_and_written, read_and_written + 2 * 4 * 8, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in another unit")
def test_memory_is_that_of_a_process_of_its_own():
    here = torch.zeros(500_000_000, dtype=torch.uint8)  # a process that is forked from this one would count this
    with ProcessPoolExecutor(1, bench.ALONE) as alone:
        memory = alone.submit(bench.peak_memory, "cldiff", "train", tiny(), 8, "cpu").result()
    assert 100 < memory < bench.resource.getrusage(bench.resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6 - len(here) / 2e6


def test_table_takes_as_long_as_its_steps():
    run, fast = runs("digits")[0], {"train": 1.0, "sample": 1e12, "bpd": 1e12, "fid": 0.0}
    # One shared first task; then four tasks of finetuning and L2, and of three replays with twice as many images.
    assert sum(bench.table_seconds(run, fast).values()) == pytest.approx((1 + 4 * (2 + 3 * 2)) * run.steps * run.batch)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--repeats", "1"], "error: repeats=1: expected at least 5"),
        (["--device", "gpu"], "error: unknown device 'gpu'; known: auto, cpu, cuda"),
        (
            ["--profile", "huge"],
            "error: unknown profile 'huge'; known: smoke, digits, ",
        ),
        (["--what"], "error: unrecognized arguments: --what"),
    ],
)
def test_errors_are_one_line(words, message, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--out", str(tmp_path), *words])
    with pytest.raises(SystemExit, match=message):
        bench.main()


@pytest.mark.parametrize(
    "cpu, gpu, name",
    [
        ("Intel(R) Xeon(R) Processor @ 2.80GHz", None, "intel-xeon-2.80ghz"),
        ("Intel(R) Xeon(R) CPU", "NVIDIA H200", "nvidia-h200"),
    ],
)
def test_file_is_named_after_the_machine(cpu, gpu, name, tmp_path):
    path = bench.save({"machine": {"cpu": cpu, "gpu": gpu}}, tmp_path)
    assert path.name == f"{name}.json" and [path] == list(tmp_path.iterdir())


def test_notebook_draws_the_report(report, tmp_path):
    path = bench.save(report, tmp_path / "results")
    assert json.loads(path.read_text()) == report
    looks = [{"seconds": 60.0, "steps": 9, "fid": 90.0}, {"seconds": 90.0, "steps": 12, "fid": 50.0}]
    who = {
        "cldiff": {"parameters": 7, "looks": looks, "reached": True},
        "diffusers": {"parameters": 8, "looks": looks[:1], "reached": False},
    }
    quality = {"machine": report["machine"], "samples": 256, "floor": 20.0, "good": 60.0, "who": who}
    (path.parent / "quality").mkdir()
    bench.save(quality, path.parent / "quality")
    execute(NOTEBOOK, tmp_path / "bench.ipynb", {"results": str(path.parent), "figures": str(tmp_path / "figures")})
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {
        "bench.md",
        "bench_floor.md",
        "bench_bars.pdf",
        "bench_roofline.pdf",
        "bench_growth.pdf",
        "bench_quality.pdf",
    } <= drawn
    rows = (tmp_path / "figures" / "bench_quality.md").read_text().splitlines()[2:4]
    assert rows[0].endswith("| cldiff | 7 | 1.5 | 12 | 50.0 | 60.0 |")
    assert rows[1].endswith("| diffusers | 8 | > 1.0 | 9 | 90.0 | 60.0 |")


class Clock:
    """Of libraries whose steps take so many seconds, whose looks take five, and whose samples are these."""

    now = 0.0

    def library(self, second, samples):
        def train(n):
            self.now += second

        def sample(n):
            self.now += 5.0
            return to_model(samples[:n])

        return lambda run, tasks: SimpleNamespace(net=torch.nn.Linear(2, 3), train=train, sample=sample)


def test_time_to_quality_counts_training_alone_and_ends_when_samples_are_good_or_time_is_over(monkeypatch):
    run = tiny(samples=100)
    tasks, clock = load_tasks(run.dataset, **run.sequence), Clock()
    real = tasks[0].train.images
    real, noise = (
        real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))],
        torch.randint(256, (100, 1, 8, 8), dtype=torch.uint8),
    )
    monkeypatch.setattr(bench_quality, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(bench, "say", lambda text: None)
    who = {
        "good": clock.library(2.0, real),
        "slow": clock.library(4.0, noise),
        "absent": lambda *_: import_module("no"),
    }
    monkeypatch.setattr(bench_quality, "WHO", who)
    found = bench_quality.until_good(run, tasks, budget=40, first=10)
    assert found["good"] == 3 * found["floor"] and list(found["who"]) == ["good", "slow"]
    good, slow = found["who"].values()
    (look,) = good["looks"]
    assert good["reached"] and look["fid"] < found["floor"] and (look["seconds"], look["steps"]) == (10, 5)
    # Looks take five seconds, and so does the pause between them at least; a step of four seconds ends after it.
    assert not slow["reached"] and [look["seconds"] for look in slow["looks"]] == [12, 20, 28, 36, 40]
    assert slow["parameters"] == 9 and slow["looks"][-1]["steps"] == 10 and slow["looks"][-1]["fid"] > found["good"]


def test_libraries_are_trained_and_sampled_from(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(bench_quality, "GOOD", 1e6)
    monkeypatch.setattr(bench, "say", lambda text: None)
    run = tiny(samples=32)
    found = bench_quality.until_good(run, load_tasks(run.dataset, **run.sequence), budget=60, first=0.1)["who"]
    assert list(found) == ["cldiff", "diffusers", *LUCIDRAINS]
    assert all(own["reached"] and own["looks"][0]["fid"] > 0 for own in found.values())


def test_libraries_learn_from_real_images_and_draw_in_the_range_of_them(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(
        bench, "noise_images", lambda run, n, device="cpu": torch.full((n, 1, 8, 8), 7, dtype=torch.uint8)
    )
    monkeypatch.setattr(bench, "say", lambda text: None)
    monkeypatch.setattr(bench_quality, "GOOD", 1e6)
    run, made = tiny(samples=32), {}

    def spied(who, make):
        def begin(run, tasks):
            made[who] = library = make(run, tasks)
            if who != "cldiff":  # whose learner has the tasks
                loss, library.seen = library.loss, []
                library.loss = lambda images: library.seen.extend(images) or loss(images)
            return library

        return begin

    monkeypatch.setattr(bench_quality, "WHO", {who: spied(who, make) for who, make in bench_quality.WHO.items()})
    tasks = load_tasks(run.dataset, **run.sequence)
    bench_quality.until_good(run, tasks, budget=60, first=0.1)
    real = {image.numpy().tobytes() for image in tasks[0].train.images}
    for who, library in made.items():
        assert who == "cldiff" or library.seen and {image.numpy().tobytes() for image in library.seen} <= real
        drawn = library.sample(4)
        assert drawn.shape == (4, 1, 8, 8) and drawn.abs().max() <= 1.001
    if "lucidrains" in made:  # whose images are in [0, 1]
        made["lucidrains"].ema.ema_model.sample = lambda batch_size: torch.zeros(batch_size, 1, 8, 8)
        assert (made["lucidrains"].sample(4) == -1).all()


def test_networks_are_of_the_same_size():
    pytest.importorskip("diffusers")
    run = runs("paper-cpu", only="mnist-finetune")[0]
    tasks = bench.Cldiff(run, CPU).learner.tasks
    ours, theirs = (
        sum(p.numel() for p in make(run, tasks).net.parameters())
        for make in (bench_quality.Cldiff, bench_quality.diffusers)
    )
    assert ours == pytest.approx(theirs, rel=0.01)


def test_samples_of_diffusers_are_the_averages_and_change_nothing():
    pytest.importorskip("diffusers")
    peer = bench.Diffusers(tiny(), CPU)
    peer.train(8)
    before = copied(peer.net)
    torch.manual_seed(0)
    one = peer.sample(2)
    assert same(copied(peer.net), before)
    with torch.no_grad():
        for average in peer.ema.shadow_params:
            average.zero_()
    torch.manual_seed(0)
    assert one.shape == (2, 1, 8, 8) and not torch.equal(peer.sample(2), one)
    assert same(copied(peer.net), before)
