"""What gpu_day.py predicts without a GPU, and its way through a day, on a CPU."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gpu_day
import pandas as pd
import psutil
import pytest
import torch
from bench import SIZES, TASKS
from conftest import tiny
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cldiff.study import runs
from cldiff.unet import UNet

ROOT = Path(__file__).parents[1]
RUN = tiny(channels=16, multipliers=(1, 2), attention=4, dropout=0.0)


def network(run) -> UNet:
    return UNet.of(run, SIZES[run.dataset][0], TASKS, 1).to(memory_format=torch.channels_last)


def test_the_flops_of_an_image_are_those_of_its_products():
    found = []

    def count(module, inputs, output):
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Conv2d):
            found.append(2 * weight.numel() * output.shape[2] * output.shape[3])
        elif isinstance(module, torch.nn.Linear):
            found.append(2 * weight.numel() * output.numel() // output.shape[-1])
        elif hasattr(module, "qkv"):  # attention: queries with keys, and weights with values
            _, channels, height, width = output.shape
            found.append(2 * 2 * (height * width) ** 2 * channels)

    net = network(RUN)
    for module in net.modules():
        module.register_forward_hook(count)
    net(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    assert gpu_day.on_paper(RUN, 3)[0] == sum(found)


class Alive(TorchDispatchMode):
    """The storages of all results."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.found[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def bytes(self) -> int:
        return sum(size for reference, size in self.found.values() if not reference.expired())


@pytest.mark.parametrize("precision", ("float32", "bfloat16"))
def test_the_memory_of_a_step_is_what_is_still_there_after_the_forward_pass(precision):
    """On a CPU, whose rules of precision are others."""
    run, net, n = replace(RUN, precision=precision), network(RUN), 32
    x, t, task = torch.randn(n, 1, 8, 8), torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    with Alive() as alive, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = net(x, t, task).float().square().sum()
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    alive.found = {key: value for key, value in alive.found.items() if key not in own}
    assert gpu_day.on_paper(run, n, "cpu")[1] == pytest.approx(alive.bytes(), rel=0.02) and loss.requires_grad


def test_a_gpu_keeps_more_than_half_of_float32_in_half_precision():
    """Its norms are float32: what is fast to say is wrong by a third."""
    whole, half = (gpu_day.on_paper(replace(RUN, precision=p), 64)[1] for p in ("float32", "bfloat16"))
    assert 0.5 < half / whole < 1
    assert gpu_day.on_paper(RUN, 128)[1] == pytest.approx(2 * whole, rel=0.01)
    assert not torch.is_autocast_enabled("cuda")


def test_what_running_md_says_is_what_is_predicted():
    text = (ROOT / "docs" / "running.md").read_text()
    found = gpu_day.predict("paper").splitlines()
    assert len(found) > 3
    for line in found:
        assert line in text


def started(folder, *words, also=""):
    """A day in a repository of its own, on a CPU, with the runs of a profile of seconds. Its tests and bench.py, which
    take minutes, are not made. also: code to run before."""
    code = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import gpu_day
gpu_day.RATED = 2
rows = [dict(job=job, who="cldiff", profile="smoke", value=100.0) for job in ("train", "sample", "bpd", "fid")]
gpu_day.PARTS["tests"] = (lambda words, path, most: path.write_text("passed"), "-tests.txt")
gpu_day.PARTS["bench"] = (lambda words, path, most: path.write_text(json.dumps(dict(rows=rows))), ".json")
sys.argv[1:] = {["--device", "cpu", "--profile", "smoke", *words]!r}
{also}
gpu_day.main()
"""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for words in (["init", "-q"], ["config", "user.name", "a"], ["config", "user.email", "a@b.c"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / gpu_day.OUT).mkdir(parents=True)
    return tmp_path


def log(repository) -> list[str]:
    words = ["git", "log", "--reverse", "--format=%s"]
    return subprocess.run(words, cwd=repository, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.slow
def test_a_day_commits_what_is_finished_and_goes_on_where_it_was(repository):
    done = started(repository, also="gpu_day.work_off = lambda *words: None")  # over before the first run
    assert done.returncode == 0, done.stderr
    assert [line.split(" on ")[0] for line in log(repository)] == ["tests", "rates", "bench"]
    (rates,) = (repository / gpu_day.OUT).glob("*-rates.csv")
    assert (
        rates.read_text().splitlines()[0] == "row,compiled,steps,seconds" and len(rates.read_text().splitlines()) == 6
    )
    assert re.search(r"a table of smoke, one data set and seed: \d+\.\d hours", done.stderr)
    (repository / "other").write_text("somebody's")
    subprocess.run(["git", "add", "other"], cwd=repository, check=True)
    done = started(repository, "--budget", "10m")
    assert done.returncode == 0, done.stderr
    assert "-rates.csv is there" in done.stderr
    names = [run.name for run in runs("smoke")]
    assert len(log(repository)) == 3 + len(names) and "other" not in "".join(log(repository))
    tracked = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD"], cwd=repository, capture_output=True, text=True
    )
    assert all(f"results/smoke/{name}/result.json" in tracked.stdout for name in names)
    assert "other" not in tracked.stdout.split()


@pytest.mark.slow
def test_tests_that_fail_end_the_day(repository):
    (repository / "tests").mkdir()
    (repository / "tests" / "test_gpu.py").write_text("def test_wrong():\n    assert False\n")
    (repository / "tests" / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--device')\n"
    )
    words = [sys.executable, str(ROOT / "tests" / "gpu_day.py"), "--device", "cpu", "--profile", "smoke"]
    done = subprocess.run([*words, "--budget", "20s"], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1 and "tests: failed: RuntimeError: the tests fail on this" in done.stderr
    assert "::test_wrong FAILED" in done.stdout
    *_, left, last = done.stderr.splitlines()
    assert left.endswith("runs: left out, as the tests failed")
    assert last == "error: failed, as said above: tests, bench"  # there is no tests/bench.py here
    assert [path.name.endswith("-rates.csv") for path in (repository / gpu_day.OUT).iterdir()] == [True]


def test_a_day_goes_on_where_git_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    gpu_day.commit([Path("a"), Path("b")], "no repository is here")
    assert re.search(r"not committed \(.*\): a, b\n$", capsys.readouterr().err)


@pytest.mark.slow
def test_a_day_that_is_told_to_end_ends_what_it_started(repository):
    (repository / "tests").mkdir()
    (repository / "tests" / "test_gpu.py").write_text("import time\n\n\ndef test_long():\n    time.sleep(60)\n")
    words = [sys.executable, str(ROOT / "tests" / "gpu_day.py"), "--device", "cpu", "--profile", "smoke"]
    with subprocess.Popen(words, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as day:
        assert "tests, " in day.stderr.readline()
        children = []
        while not children:
            children = psutil.Process(day.pid).children(recursive=True)
        day.terminate()
        assert day.wait(30) == 143
    _, alive = psutil.wait_procs(children, 10)
    assert not alive


class Clock:
    """Time as parts and runs of a day spend it: `given` are the seconds that each was given, by name."""

    def __init__(self):
        self.now, self.given = 0.0, {}

    def monotonic(self) -> float:
        return self.now

    def spend(self, part: str, seconds: float) -> None:
        self.given[part] = round(seconds, 1)
        self.now += seconds


@pytest.fixture
def day(tmp_path, monkeypatch, capsys):
    """day(budget, slow): what a day gives to parts that take all that they are given, and what it says. The parts in
    `slow` are not done in that time."""
    monkeypatch.chdir(tmp_path)
    gpu_day.OUT.mkdir(parents=True)
    for name, value in (("NAME", "a"), ("EMAIL", "a@b")):
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)

    def spend(budget: str, slow: tuple[str, ...] = ()) -> tuple[dict[str, float], str]:
        clock = Clock()

        def part(name: str):
            def work(words, path, most):
                clock.spend(name, most)
                if name in slow:
                    raise subprocess.TimeoutExpired(name, most)
                path.write_text("")

            return work

        monkeypatch.setattr(gpu_day, "time", clock)
        monkeypatch.setattr(gpu_day, "PARTS", {name: (part(name), f"-{name}") for name in ("tests", "rates", "bench")})
        monkeypatch.setattr(gpu_day, "commit", lambda paths, message: None)
        monkeypatch.setattr(gpu_day, "hours", lambda profile, name: 1.0)
        monkeypatch.setattr(gpu_day, "work_off", lambda words, name, end: clock.spend("runs", end - clock.now))
        monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--device", "cpu", "--budget", budget])
        gpu_day.main()
        return clock.given, capsys.readouterr().err

    return spend


def test_each_part_has_a_quarter_of_what_is_left_and_the_runs_have_the_rest(day):
    given, said = day("100s")
    assert given == {"tests": 25.0, "rates": 18.8, "bench": 14.1, "runs": 42.2}
    assert "left out" not in said and "1.0 hours" in said
    assert day("100s")[0] == {"runs": 100.0}  # the parts are there


def test_a_part_that_was_not_done_in_its_time_is_left_out_and_done_by_the_next_call(day):
    given, said = day("100s", slow=("tests", "bench"))
    assert "hours" not in said
    for part, most in (("tests", 25), ("bench", 14)):
        assert f"{part}: left out, {most} s were too few; a call with a larger BUDGET makes up for it\n" in said
    assert "runs" not in given and said.endswith("runs: left out, as the tests were\n"), (
        "nobody knows if they are right"
    )
    assert day("200s")[0].keys() == {"tests", "bench", "runs"}


def test_where_the_budget_is_over_each_part_says_that_it_is_left_out(day):
    given, said = day("2s")
    assert given == {}
    *parts, _ = (line.split("  ")[1] for line in said.splitlines())
    assert parts == [f"{part}: left out, too little of the budget is left" for part in ("tests", "rates", "bench")]


def test_the_rates_take_fewer_steps_where_time_is_short(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_day, "RATED", 300)
    words, path = SimpleNamespace(device="cpu", profile="smoke"), tmp_path / "rates.csv"
    gpu_day.rates(words, path, 1)
    steps = pd.read_csv(path).steps
    assert len(steps) == 5 and steps.between(5, 299).all()
    assert capsys.readouterr().err.count("steps instead of 300: more do not fit)\n") == 5
    monkeypatch.setattr(gpu_day, "RATED", 5)
    gpu_day.rates(words, path, 600)
    assert (pd.read_csv(path).steps == 5).all() and "instead" not in capsys.readouterr().err


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    assert gpu_day.ended(["sh", "-c", "echo a; exit 3"], 60, stdout=subprocess.PIPE) == (3, "a\n")
    late = tmp_path / "late"
    with pytest.raises(subprocess.TimeoutExpired):
        gpu_day.ended(["sh", "-c", f"(sleep 2; touch {late}) & wait"], 0.5)
    time.sleep(2.5)
    assert not late.exists()


@pytest.mark.parametrize("words, line", [
    ([], "error: device 'cuda': no GPU [^\\n]*"),
    (["--budget", "soon", "--device", "cpu"], "error: budget 'soon': expected [^\\n]*"),
    (["--profile", "papre", "--device", "cpu", "--predict"], "error: unknown profile 'papre'; known: [^\\n]*"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(words, line, monkeypatch):
    if not words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", *words])
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main()
    assert re.fullmatch(line, stopped.value.code)


def test_a_day_that_could_not_commit_is_not_begun(monkeypatch):
    def nobody(words, **how):
        assert words == ["git", "var", "GIT_COMMITTER_IDENT"]
        return subprocess.CompletedProcess(words, 128)

    monkeypatch.setattr(gpu_day.subprocess, "run", nobody)
    monkeypatch.setattr(gpu_day, "PARTS", None)
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--device", "cpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main()
    assert stopped.value.code == "error: git does not know who commits results: set git config user.name and user.email"


def test_hours_are_those_of_the_measured_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day, "OUT", tmp_path)
    (tmp_path / "x-rates.csv").write_text(
        "row,compiled,seconds\n"
        + "".join(f"{name},{best},{s + best}\n" for best in (False, True) for name, s in zip("abcde", (1, 1, 2, 2, 2)))
    )
    huge = dict.fromkeys(("train", "sample", "bpd"), 1e30) | {"fid": 0}
    rows = [{"job": job, "who": "cldiff", "profile": "paper", "value": value} for job, value in huge.items()]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows}))
    assert gpu_day.hours("paper", "x") == pytest.approx(20_000 * (1 + 4 * 8) / 3600)
