"""`make bench` on a network that takes milliseconds."""

import json
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median

import bench
import pytest
import torch
from conftest import tiny

from cldiff.report.execute import execute
from cldiff.study import runs

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


@pytest.mark.parametrize("run", [runs("digits")[0], replace(runs("small")[0], channels=8, blocks=1)], ids=("8", "28"))
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
    execute(NOTEBOOK, tmp_path / "bench.ipynb", {"results": str(path.parent), "figures": str(tmp_path / "figures")})
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"bench.md", "bench_floor.md", "bench_bars.pdf", "bench_roofline.pdf", "bench_growth.pdf"} <= drawn
