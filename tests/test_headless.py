"""`python -m cldiff run`: the runs of a profile without Jupyter, stopped and killed and called again."""

import dataclasses
import json
import logging
import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny
from filelock import FileLock

import cldiff.measure
import cldiff.train
from cldiff import plan, work
from cldiff.__main__ import main, seconds
from cldiff.errors import Problem
from cldiff.files import claim
from cldiff.learner import Learner, TrainingError
from cldiff.metrics import METRICS
from cldiff.results import FILES, WEIGHTS
from cldiff.study import runs
from cldiff.train import Step, first_task_path
from cldiff.work import make_run, run_pending

BITS = (*FILES[:-1], WEIGHTS)  # result.json holds times


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in BITS}


@pytest.fixture
def two(monkeypatch):
    """Two short runs."""
    monkeypatch.setattr(work.signal, "signal", lambda *_: None)
    return [tiny("finetune", steps=2), tiny("replay", steps=2)]


def pending(asked: list, out: Path, budget: float = math.inf) -> int:
    """run_pending() of runs that do not fail: how many are left."""
    assert run_pending(asked, out, budget, device="cpu") == {}
    return work.left(asked, out)


def test_a_budget_is_kept_and_the_runs_are_continued_to_the_same_results(two, tmp_path):
    assert pending(two, tmp_path / "whole") == 0
    calls, left = 0, 2
    while left:
        left = pending(two, tmp_path / "pieces", budget=0)
        calls += 1
    assert calls == 10 + 8  # one step a call; the first task is shared
    for run in two:
        assert contents(tmp_path / "whole" / run.name) == contents(tmp_path / "pieces" / run.name)
        assert {path.name for path in (tmp_path / "pieces" / run.name).iterdir()} == {*FILES, WEIGHTS}


def test_a_run_that_fails_in_training_is_named_and_the_others_go_on(two, tmp_path, capsys):
    wild = tiny("replay", weight=1e30, steps=2)
    failed = run_pending([wild, *two], tmp_path, device="cpu")
    assert list(failed) == [wild.name] and "no longer finite at step" in failed[wild.name]
    assert capsys.readouterr().err.count(f"{wild.name}: {failed[wild.name]}\n") == 1
    assert [(tmp_path / run.name / "result.json").exists() for run in (wild, *two)] == [False, True, True]


def test_a_run_that_fails_in_training_makes_the_command_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(work, "run_pending", lambda *_, **__: {"one": "no number"})
    monkeypatch.setattr(sys, "argv", command(tmp_path)[2:])
    with pytest.raises(SystemExit, match="^error: 1 of 5 runs failed, as said above, 4 more are left$"):
        main()


def test_a_run_that_another_process_works_on_is_left_to_it(two, tmp_path):
    with claim(tmp_path / two[0].name):
        assert pending(two, tmp_path) == 1
    assert not (tmp_path / two[0].name).exists() and (tmp_path / two[1].name / "result.json").exists()


def test_an_error_that_somebody_keeps_holds_no_first_task(two, tmp_path):
    """As Jupyter keeps that of a cell that was stopped, whose frames keep the lock; the cell is run again."""

    def stopped(step):
        raise KeyboardInterrupt

    folder = tmp_path / two[0].name
    with pytest.raises(KeyboardInterrupt) as kept:
        make_run(two[0], folder, device="cpu", progress=stopped)
    first = first_task_path(two[0], folder)
    with FileLock(first.with_suffix(".lock"), timeout=0):
        assert kept


def test_what_a_kill_left_of_a_finished_run_or_first_task_is_removed(two, tmp_path):
    run_pending(two[:1], tmp_path, device="cpu")
    folder, first = tmp_path / two[0].name, first_task_path(two[0], tmp_path / two[0].name)
    left = [folder / "checkpoint.pt", folder / "checkpoint.before.pt"]
    begun = [first.with_suffix(".begun.pt"), first.with_suffix(".begun.before.pt")]
    begun += [first.with_name(f".01ab-{path.name}") for path in (first, begun[0])]  # half-written
    others = first.with_name(".01ab-other.pt")
    for path in (*left, *begun, others):
        path.write_bytes(first.read_bytes())
    assert make_run(two[0], folder, device="cpu") and not any(path.exists() for path in left)
    assert make_run(two[1], tmp_path / two[1].name, device="cpu") and not any(path.exists() for path in begun)
    assert first.exists() and others.exists()


def test_a_run_that_is_stopped_keeps_no_network_that_is_no_number(two, tmp_path):
    """Between two of the looks that training takes."""
    run, spoiled = tiny(steps=3), []
    folder = tmp_path / run.name

    def spoil(step):
        if (step.task, step.step) == (1, 2):
            next(step.learner.net.parameters()).data.fill_(math.nan)
            spoiled.append(step)

    with pytest.raises(TrainingError, match="no longer finite at step 2 of task 2: .* the last checkpoint is kept$"):
        make_run(run, folder, device="cpu", progress=spoil, stop=lambda _: bool(spoiled))
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("of", ["first task", "checkpoint"])
def test_what_was_measured_by_other_means_is_not_gone_on_with(of, two, tmp_path, monkeypatch):
    run_pending(two[:1], tmp_path, device="cpu")
    first = first_task_path(two[1], tmp_path / two[1].name)
    if of == "checkpoint":
        assert pending(two, tmp_path, budget=0) == 1
        first.unlink()
    monkeypatch.delitem(METRICS, "recall")
    named = (
        rf"^{two[1].name}: recall came, went or changed .* or remove its checkpoint.pt and first_task/{first.name} to"
    )
    with pytest.raises(Problem, match=named):
        pending(two, tmp_path)
    for path in (first, tmp_path / two[1].name / "checkpoint.pt"):
        path.unlink(missing_ok=True)
    assert pending(two, tmp_path) == 0


def test_runs_that_lack_inception_are_counted(tmp_path):
    asked = [tiny(seed=seed, inception=seed < 3) for seed in range(4)]  # the third is not made, nor asked for it
    for run, own in zip(asked, ({"inception": "0"}, {}, None, {})):
        if own is not None:
            (tmp_path / run.name).mkdir()
            (tmp_path / run.name / "result.json").write_text(json.dumps({"sha256": {"lenet": "0", **own}}))
    assert work.without_inception(asked, tmp_path).startswith("; 1 lack the numbers of Inception")
    assert work.without_inception(asked[:1], tmp_path) == ""


def test_waiting_for_the_first_task_of_another_process_ends_with_the_budget(two, tmp_path):
    first = tmp_path / "first_task" / f"{two[0].first_task_name}.lock"
    first.parent.mkdir()
    with FileLock(first):
        assert pending(two, tmp_path, budget=1) == 2
    assert pending(two, tmp_path) == 0


def test_waiting_and_compiling_before_the_first_step_do_not_make_every_step_look_long(two, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    train = cldiff.train.train

    def slow_to_start(*words, **how):
        for number, step in enumerate(train(*words, **how)):
            clock.now += 1 if number else 100
            yield step

    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(work, "train", slow_to_start)
    assert pending(two, tmp_path, budget=300) == 0
    assert clock.now == 100 + 9 + 100 + 7


def test_a_call_stops_before_measuring_that_took_long_in_an_earlier_one(two, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    measure = cldiff.measure.Measurer._scores

    def slow(self, learner):
        clock.now += 100
        learner.seconds["measure"] += 100
        measure(self, learner)

    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(cldiff.measure.Measurer, "_scores", slow)
    for call in (1, 2, 3):  # the scores of one task in each, with which the next call then begins
        assert pending(two, tmp_path, budget=150) == 2
        assert clock.now == 100 * call


def command(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "cldiff", "run", "smoke", "--device", "cpu", "--out", str(out), *words]


@pytest.mark.slow
def test_killed_at_random_moments_it_leaves_the_same_results(tmp_path):
    """Processes, and what is on the disk when they are killed, a while after each has kept something."""

    def kept() -> set[Path]:
        return {path for name in ("*.pt", "result.json") for path in (tmp_path / "killed").glob(f"*/{name}")}

    whole, killed = (command(tmp_path / name, "--only", "digits-replay") for name in ("whole", "killed"))
    assert subprocess.run(whole, capture_output=True).returncode == 0
    moments = random.Random(0)
    for _ in range(3):
        before = kept()
        process = subprocess.Popen(killed, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and kept() <= before:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 4))
        process.kill()
        process.wait()
    assert kept()
    done = subprocess.run(killed, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"0 of 2 runs are left, results are in {tmp_path / 'killed'}\n")
    for run in (run for run in runs("smoke") if run.method == "replay"):
        assert contents(tmp_path / "whole" / run.name) == contents(tmp_path / "killed" / run.name)


@pytest.mark.slow
def test_asked_to_stop_it_says_how_to_continue(start, tmp_path):
    """Asked at the time of its first checkpoint, when four of five tasks are still to come."""
    process = start(command(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while process.poll() is None and not list(tmp_path.glob("first_task/*.pt")):
        time.sleep(0.05)
    process.terminate()
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1, "what was stopped is not done: `run && draw` must not draw"
    assert errors.endswith("stopped: the same command again continues from the last checkpoint\n"), errors
    assert list(tmp_path.glob("*/checkpoint.pt"))


def test_a_second_ctrl_c_does_not_wait_for_the_step(monkeypatch, tmp_path):
    def measuring_takes_minutes(*_, **__):
        signal.raise_signal(signal.SIGINT)
        seen.append("first")
        signal.raise_signal(signal.SIGINT)
        seen.append("second")

    seen: list[str] = []
    monkeypatch.setattr("cldiff.work.make_run", measuring_takes_minutes)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run_pending(runs("smoke"), tmp_path, device="cpu")
    assert seen == ["first"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_asked_to_stop_in_the_last_step_of_all_it_is_done(monkeypatch, tmp_path):
    monkeypatch.setattr(work, "make_run", lambda run, folder, *_, **__: signal.raise_signal(signal.SIGTERM) or True)
    monkeypatch.setattr(work, "left", lambda *_: 0)
    assert pending(runs("smoke"), tmp_path) == 0


@pytest.mark.parametrize("text, expected", [("90s", 90), ("9m", 540), ("1.5h", 5400)])
def test_budget_in_seconds(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["9", "m", "", "9d", "-1m", "0s", "1e3s", "nans", "1.2.3m"])
def test_a_budget_without_a_unit_or_a_number_is_refused(text):
    with pytest.raises(ValueError, match="expected a number and s, m or h"):
        seconds(text)


def test_the_runs_are_those_of_the_plan():
    assert [dataclasses.asdict(run) for run in runs("smoke")] == [
        {
            k: tuple(v) if isinstance(v, list) else v
            for k, v in job["parameters"].items()
            if k not in ("results", "device", "checkpoint_seconds")
        }
        for job in reversed([job for job in plan.jobs("smoke").values() if job["kind"] == "run"])
    ]


def test_a_slow_step_counts_less_with_each_step_after_it_and_seconds_are_left(tmp_path, monkeypatch):
    clock, margins, run = SimpleNamespace(now=1.0), [], tiny(steps=6)

    def slow(step):
        clock.now += 100 * (step.total == 2)

    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: clock.now))
    make_run(run, tmp_path / run.name, device="cpu", progress=slow, stop=lambda margin: margins.append(margin))
    assert margins[:4] == [5, 205, 105, 55]


def test_a_run_that_cannot_have_inception_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    run = tiny(steps=1, inception=True)
    assert make_run(run, tmp_path / run.name, tmp_path, device="cpu")
    assert capsys.readouterr().err.count("no Inception features: ") == 1


@pytest.mark.parametrize("tasks, total", [(1, 4), (None, 12)])
def test_the_bar_of_a_first_task_ends_with_it(tasks, total, three, capsys):
    with work.progress_bar("steps", tasks) as show:
        show(Step(0, 4, None, Learner(tiny(), three)))
    assert f" 4/{total} " in capsys.readouterr().err


def test_a_run_that_is_done_with_seconds_left_is_followed_by_the_next(two, tmp_path, monkeypatch):
    """Fewer than a step may take: one step in each call, and one more in that which ends the first run."""
    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: 0.0))
    calls = 1
    while pending(two, tmp_path, budget=4):
        calls += 1
    assert calls == 10 + 8 - 1


def test_a_first_task_that_is_asked_to_stop_in_its_last_step_is_done(two, tmp_path):
    words = {"device": "cpu", "stop": lambda margin: True, "first_task_only": True}
    assert [make_run(two[0], tmp_path / two[0].name, **words) for _ in range(2)] == [False, True]


def test_the_command_passes_on_what_it_is_told(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(work, "run_pending", lambda asked, out, budget, **how: told.append((budget, how)) or {})
    words = ("--budget", "2m", "--data", "/of/all", "--checkpoint", "7")
    monkeypatch.setattr(sys, "argv", command(tmp_path, *words)[2:])
    main()
    assert told == [(120, {"device": "cpu", "data": "/of/all", "checkpoint_seconds": 7})]


def test_a_command_that_is_stopped_says_so_in_one_line_and_fails(monkeypatch, tmp_path):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", False)
    monkeypatch.setattr(work, "run_pending", stopped)
    monkeypatch.setattr(sys, "argv", command(tmp_path)[2:])
    with pytest.raises(SystemExit, match="^stopped: the same command again continues from the last checkpoint$"):
        main()
