"""What a worker of a cluster does: a first task, or a whole run, from parameters to files; and what is believed of
it."""

import hashlib
import json
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from . import __version__
from .errors import Problem
from .files import intact, write_atomically
from .results import FILES, WEIGHTS
from .run import PROTOCOL, Run
from .train import first_task_path
from .work import make_run, never

HERE = Path(__file__).parent
OF_NUMBERS = sorted([*HERE.glob("*.py"), *HERE.glob("methods/*.py"), HERE / "lenet" / "SHA256SUMS"])  # not the reports
CODE = hashlib.sha256(b"".join(path.read_bytes() for path in OF_NUMBERS))
VERSIONS = {  # of what numbers depend on: equal where a run is asked for and where it is made
    "cldiff": f"{__version__} (code {CODE.hexdigest()[:8]})",
    "torch": torch.__version__.partition("+")[0],  # without +cu126 or +cpu: a worker may have a GPU
    "Python": ".".join(platform.python_version_tuple()[:2]),
}
ONE = threading.Lock()  # a process makes one run at a time: torch's random state is the process's


class OtherVersion(Problem):
    """A worker and who asks it differ in what numbers depend on."""


def check_versions(asked: dict[str, str], found: dict[str, str] = VERSIONS, where: str = "a worker") -> None:
    for name, wanted in asked.items():
        if found.get(name) != wanted:
            raise OtherVersion(
                f"{where} has {name} {found.get(name)}, this side {wanted}: expected the same; install it there and "
                "start the worker again"
            )


def describe(dask_worker) -> dict:
    """A worker of Dask, which hands itself in."""
    offered = dask_worker.state.total_resources
    return {**VERSIONS, "threads": dask_worker.state.nthreads, "gpus": offered.get("GPU", 0)}


def first_task(run: dict, asked: dict, shared: str | None, words: dict, found: bytes | None = None) -> bytes:
    """The file of the first task of a run (see Run.first_task_name); found: where whoever asks has it already, and
    workers are to have it too. The others as for whole_run()."""
    if found is not None:
        return found
    run = Run(**run)
    with _workplace(asked, shared) as (place, stop):
        _make(run, place, stop, first_task_only=True, **words)
        return first_task_path(run, place / run.name).read_bytes()


def whole_run(run: dict, asked: dict, shared: str | None, words: dict, first: bytes) -> dict[str, bytes]:
    """The files of a finished run, by name.

    run: its parameters; asked: VERSIONS of whoever asks; shared: a folder that all workers have, for checkpoints that
    outlast them; words: device, data, checkpoint_seconds and start of make_run; first: from first_task(). Raises
    OtherVersion, and what make_run raises.
    """
    run = Run(**run)
    with _workplace(asked, shared) as (place, stop):
        path = first_task_path(run, place / run.name)
        if not path.exists():
            write_atomically(path, lambda temporary: temporary.write_bytes(first))
        _make(run, place, stop, **words)
        return {name: (place / run.name / name).read_bytes() for name in (*FILES, WEIGHTS)}


@contextmanager
def _workplace(asked: dict, shared: str | None) -> Iterator[tuple[Path, Callable[[float], bool]]]:
    """A folder for run folders, and a `stop` of make_run: nobody waits for this task any more."""
    check_versions(asked)
    stop, near = never, None
    try:
        worker = sys.modules["distributed"].get_worker()
    except (KeyError, ValueError):  # no Dask, or none at work here
        pass
    else:
        key, near = worker.get_current_task(), worker.local_directory  # which Dask clears after a kill

        def stop(margin: float) -> bool:
            task = worker.state.tasks.get(key)
            return task is None or task.state == "cancelled"

    with ONE, nullcontext(shared) if shared else tempfile.TemporaryDirectory(prefix="cldiff-", dir=near) as folder:
        yield Path(folder), stop


def _make(run: Run, place: Path, stop: Callable[[float], bool], **words) -> None:
    if not make_run(run, place / run.name, stop=stop, **words):
        raise sys.modules["distributed"].Reschedule  # for whoever asks again at this moment


# What comes back is looked at before any of it is written


def checked(run: Run, files: object) -> dict[str, bytes]:
    """What a worker returned for this run. Raises Problem unless it is the files of a result and no others, of this
    run, each of which is the one that result.json names."""
    try:
        if set(files) != {*FILES, WEIGHTS} or not all(type(content) is bytes for content in files.values()):
            raise ValueError(f"files {list(files)}, expected {[*FILES, WEIGHTS]}")
        result = json.loads(files["result.json"])
        if result["protocol"] != PROTOCOL or Run(**result["run"]) != run:
            raise ValueError("a result of another run or protocol")
        for name in (*FILES[:-1], WEIGHTS):
            if hashlib.sha256(files[name]).hexdigest() != result["sha256"][name]:
                raise ValueError(f"a {name} that its result.json does not name")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Problem(f"a worker returned no result ({one_line(error)}): nothing of it was written") from None
    return files


def is_first_task(content: object) -> bool:
    """Whether it is the file of one, whole."""
    return type(content) is bytes and intact(content)


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Problem) else f"{type(error).__name__}: {text}"
