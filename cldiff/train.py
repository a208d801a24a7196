"""Training: the loop over tasks and steps, as a generator that keeps checkpoints."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import AcquireReturnProxy, Timeout
from torch import Tensor

from .errors import NO_MEMORY, Problem, located_errors
from .files import locked
from .learner import Learner, TrainingError, before
from .run import Run
from .tasks import Task

CHECKPOINT = "checkpoint.pt"  # in the folder of a run that is not finished
CHECK_EVERY = 100  # steps between two looks at whether the loss is still a number


@contextmanager
def one_line_errors(run: Run, device: str | torch.device) -> Iterator[None]:
    """Raises TrainingError, which says what to change, where torch finds no memory or cannot compile."""
    try:
        yield
    except RuntimeError as error:
        if NO_MEMORY.search(str(error)):
            said = "" if "memory" in str(error) else f" ({str(error).partition(chr(10))[0]})"  # it may be another cause
            raise TrainingError(
                f"out of memory on {device}{said}: fewer JOBS, or lower batch={run.batch}, channels={run.channels}"
            ) from None
        if run.compiled and type(error).__module__.startswith("torch._"):  # of torch's compiler
            raise _not_compiled(error) from error
        raise


def check_precision(run: Run, device: torch.device) -> None:
    """Raises TrainingError for bfloat16 on a GPU that does not know it, a T4 say, where torch would emulate it."""
    if run.precision == "bfloat16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise TrainingError(f"{torch.cuda.get_device_name(device)} has no bfloat16: use precision='float32'")


def check_compiler(device: str | torch.device) -> None:
    """Raises TrainingError where torch.compile does not work. Takes 2 to 4 seconds, most of which the first step then
    saves."""
    try:
        torch.compile(torch.neg)(torch.ones(1, device=device))
    except Exception as error:  # also of what the compiler asks for: programs, folders, a user's name, this Python
        raise _not_compiled(error) from error


def _not_compiled(error: Exception) -> TrainingError:
    cause = str(getattr(error, "inner_exception", error)).partition("\n")[0]
    return TrainingError(f"torch.compile failed ({cause}): use compiled=False")


class Step(NamedTuple):
    task: int  # from 0
    step: int  # of this task, from 1
    loss: Tensor  # scalar, on the device
    learner: Learner

    @property
    def total(self) -> int:
        """Steps since the start of the first task."""
        return self.task * self.learner.run.steps + self.step


def pick_device(name: str) -> torch.device:
    """ "auto": a GPU where there is one. Raises ValueError for what this machine lacks, Problem for a GPU that is there
    and does not work."""
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"unknown device {name!r}; known: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': no GPU that torch can use on this machine; expected 'auto' or 'cpu' here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    try:  # a torch for other GPUs, an old driver, or another process that has it for itself
        (torch.zeros(1, device="cuda") + 1).item()
    except Exception as error:
        cause = str(error).partition("\n")[0]
        raise Problem(
            f"the GPU of this machine does not work with this torch ({cause}): 'cpu' does without it"
        ) from None
    return torch.device("cuda")


def train(
    run: Run,
    tasks: list[Task],
    folder: Path | str | None = None,
    device: str | torch.device = "cpu",
    checkpoint_seconds: float = 300,
    cancelled: Callable[[], bool] = lambda: False,
    first_task_only: bool = False,
    start: bytes | None = None,
) -> Iterator[Step]:
    """Builds the network of a run at once, which says what does not fit, and returns a generator that trains it and
    yields after each optimiser step; the caller measures, draws and stops as it likes.

    folder: where checkpoints are kept, after so many seconds and between two tasks, once the caller has
    measured the step; a run that finds one continues from there, to the same result bit for bit. What belongs to the
    first task is kept beside the run folders, for all methods to share. Without a folder nothing is kept. Where another
    process trains the first task, this one waits for it and asks `cancelled` once a second; if that is so, it raises
    Timeout. first_task_only: ends when the first task is there for all. start: see results.find_start().
    """
    if run.deterministic:  # for this process, as torch has it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    with one_line_errors(run, device):
        learner = Learner(run, tasks, device, start)
    return _tasks(learner, folder, checkpoint_seconds, cancelled, first_task_only)


def _tasks(
    learner: Learner,
    folder: Path | str | None,
    checkpoint_seconds: float,
    cancelled: Callable[[], bool],
    first_task_only: bool,
) -> Iterator[Step]:
    """What is left of all tasks."""
    # Of what is done here, not of the caller's between two steps.
    with one_line_errors(learner.run, learner.device), located_errors():
        path = None if folder is None else Path(folder) / CHECKPOINT
        if path and (first_task_only or not learner.load(path)):
            first = first_task_path(learner.run, Path(folder))
            begun = first.with_suffix(".begun.pt")
            with _acquired(first.with_suffix(".lock"), cancelled):  # runs that start together: one trains it
                if not learner.load(first):
                    learner.load(begun)
                    yield from _steps(learner, begun, checkpoint_seconds)
                    learner.save(first)
                # Also where a kill came between, and what it left half-written.
                for left in (begun, before(begun), *first.parent.glob(f".*-{first.stem}.*")):
                    left.unlink(missing_ok=True)
        while not first_task_only:
            yield from _steps(learner, path, checkpoint_seconds)
            if learner.task == len(learner.tasks) - 1:
                return
            if path and learner.task > 0:
                learner.save(path)
            with _counted(learner):
                learner.next_task()


def first_task_path(run: Run, folder: Path) -> Path:
    """Where the first task of the run in this folder is kept, beside the run folders."""
    return folder.parent / "first_task" / f"{run.first_task_name}.pt"


def forget(folder: Path) -> None:
    """Removes the checkpoints of a run, once its results are saved."""
    for path in (folder / CHECKPOINT, before(folder / CHECKPOINT)):
        path.unlink(missing_ok=True)


def _acquired(path: Path, cancelled: Callable[[], bool]) -> AcquireReturnProxy:
    while True:
        try:
            return locked(path, 1)
        except Timeout:
            if cancelled():
                raise


@contextmanager
def _counted(learner: Learner) -> Iterator[None]:
    """Adds the time to that of training."""
    clocks = {"train": time.perf_counter, "train_cpu": time.process_time}
    starts = {name: clock() for name, clock in clocks.items()}
    yield
    for name in clocks.keys() & learner.seconds.keys():  # a checkpoint from before the CPU's was counted has none
        learner.seconds[name] += clocks[name]() - starts[name]


def _steps(learner: Learner, path: Path | None, checkpoint_seconds: float) -> Iterator[Step]:
    """What is left of the current task."""
    learner.checkpoint, saved = path, time.monotonic()
    while learner.step < learner.run.steps:
        with _counted(learner):
            loss = learner.update()
            if learner.step % CHECK_EVERY == 0 or learner.step in (1, learner.run.steps):
                learner.check(loss)
        if learner.task == 0 and learner.method.state and learner.method.shares_first_task:
            raise TrainingError(
                f"{learner.run.method} keeps state in the first task, which other methods share: give its class "
                "shares_first_task = False"
            )
        yield Step(learner.task, learner.step, loss, learner)
        due = time.monotonic() - saved > checkpoint_seconds
        if path and due and learner.step < learner.run.steps:
            learner.check(loss)
            learner.save(path)
            saved = time.monotonic()
