"""Work done: one run, from its claim to its results, and several one after the other."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from numbers import Real
from pathlib import Path

from filelock import Timeout

from .files import claim, make_folder
from .learner import TrainingError
from .measure import Measurer
from .results import find_start, read_result
from .run import Run
from .tasks import load_tasks
from .train import Step, check_compiler, check_precision, forget, one_line_errors, pick_device, train


def never(margin: float) -> bool:
    return False


def make_run(
    run: Run,
    folder: str | Path,
    data: str | Path = "data",
    device: str = "auto",
    checkpoint_seconds: float = 300,
    stop: Callable[[float], bool] = never,
    progress: Callable[[Step], object] = lambda step: None,
    wait: bool = True,
    first_task_only: bool = False,
    start: bytes | None = None,
) -> bool:
    """Claims a run, trains it, measures it and saves it into `folder`, from wherever an earlier call was stopped.

    folder: of the run, named as it is, in one of a profile, beside which those of other profiles lie. data: the folder
    of data sets. stop(margin): asked after each step whether to stop before `margin` more seconds are over; then the
    run is left with a checkpoint. progress: called with each step. wait: for another process that is at this run.
    first_task_only: ends with the first task, which other runs share (see Run.first_task_name). start: what
    find_start() found elsewhere. Returns whether what was asked for is there. Raises Problem, ValueError or OSError
    with one line that says what to do.
    """
    folder = Path(folder)
    if folder.name != run.name:
        raise ValueError(f"{folder}: expected a folder named as the run, {run.name}: results are read under that name")
    if not isinstance(checkpoint_seconds, Real) or not checkpoint_seconds >= 0:
        raise ValueError(f"checkpoint_seconds={checkpoint_seconds!r}: expected a number of at least 0")
    try:
        lock = nullcontext() if first_task_only else claim(folder, wait)  # train() has a lock for the first task
    except Timeout:
        return False
    with lock:
        if (folder / "result.json").exists():
            read_result(folder)  # or it is damaged, and says so
            forget(folder)  # a kill may have come between
            return True
        if not first_task_only:
            make_folder(folder)  # now, not when there is something to keep
        device = pick_device(device)
        check_precision(run, device)
        if run.compiled:
            check_compiler(device)
        start = start or find_start(run, folder)
        tasks = load_tasks(run.dataset, data, **run.sequence)
        steps = train(  # before real images are looked at, which takes longer
            run,
            tasks,
            folder,
            device,
            checkpoint_seconds=checkpoint_seconds,
            cancelled=lambda: stop(0),
            first_task_only=first_task_only,
            start=start,
        )
        with one_line_errors(run, device):
            measure = Measurer(run, tasks, data, device)
        if measure.missing:
            print(measure.missing, file=sys.stderr)
        total = run.steps * (1 if first_task_only else len(tasks))
        longest, started = {}, None  # seconds of a step by kind: without and with measuring
        try:
            for step in steps:
                measure(step)
                progress(step)
                kind, coming = ((n % run.curve_every == 0, n == run.steps) for n in (step.step, step.step + 1))
                if started:  # the first step of a call waits for others, and compiles
                    longest[kind] = max(longest.get(kind, 0) / 2, time.monotonic() - started)
                started = time.monotonic()
                # What this call has not measured yet takes no longer than all that was measured before it.
                most = longest.get(coming, step.learner.seconds["measure"] if any(coming) else 0)
                if stop(5 + 2 * most) and step.total < total:
                    step.learner.check(step.loss)
                    step.learner.save(step.learner.checkpoint)
                    return False
        except Timeout:  # asked to stop while another process trained the first task
            return False
        finally:
            steps.close()  # leaves the lock of the first task: an error that Jupyter keeps would go on to hold it
        if not first_task_only:
            measure.save(folder, step.learner)
            forget(folder)
        return True


def run_pending(runs: list[Run], out: Path, budget: float = math.inf, **words) -> dict[str, str]:
    """Makes the runs that are not in `out`, one after the other. words: device, data and checkpoint_seconds of
    make_run.

    Stops before `budget` seconds are over, but for what a task begins with (pools, importances), with a checkpoint to
    continue from. Returns the one-line error of each run that failed in training, by name: the others go on. Runs that
    another process works on are left to it. On SIGTERM or
    Ctrl-C raises KeyboardInterrupt where runs are left: after the step and what belongs to it (measuring, a task's
    beginning), with a checkpoint; on a second one at once.
    """
    end, asked, stopped, failed = time.monotonic() + budget, [], False, {}

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        with suppress(OSError):  # print() must not be called within itself
            os.write(2, b"\nstops after this step, with a checkpoint; once more: at once\n")

    def over(margin: float) -> bool:
        nonlocal stopped
        stopped = bool(asked) or time.monotonic() + margin > end
        return stopped

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for run in runs:
            if (out / run.name / "result.json").exists():
                continue
            stopped = made = False
            try:
                with progress_bar(f"{run.dataset}, {run.label}") as progress:
                    made = make_run(run, out / run.name, stop=over, progress=progress, wait=False, **words)
            except TrainingError as error:
                failed[run.name] = str(error)
                print(f"{run.name}: {error}", file=sys.stderr)
            if not made and stopped or over(0):
                break
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked and left(runs, out):
        raise KeyboardInterrupt
    return failed


@contextmanager
def progress_bar(title: str, tasks: int | None = None) -> Iterator[Callable[[Step], object]]:
    """A progress of make_run that shows a bar from the first step on; its end is that of so many tasks, or of all."""
    from tqdm import tqdm

    bars = []

    def show(step: Step) -> None:
        if not bars:
            total = (tasks or len(step.learner.tasks)) * step.learner.run.steps
            bars.append(tqdm(total=total, unit="step", desc=title))
        bars[0].update(step.total - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def left(runs: list[Run], out: Path) -> int:
    return sum(not (out / run.name / "result.json").exists() for run in runs)


def without_inception(runs: list[Run], out: Path) -> str:
    """How many finished runs lack the numbers of Inception that they were to have, as the end of a sentence."""
    paths = [out / run.name / "result.json" for run in runs if run.inception]
    lack = sum("inception" not in json.loads(path.read_text())["sha256"] for path in paths if path.exists())
    return f"; {lack} lack the numbers of Inception, as those who made them could not have it" if lack else ""
