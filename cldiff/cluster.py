"""Runs on many machines: sent to the workers of a Dask cluster, or of any concurrent.futures.Executor, and written here
as they come back.

Parameters go out, files come back; no file system is shared unless the caller names a folder. Only run_on_dask() loads
Dask, the extra `cluster`.
"""

import dataclasses
import logging
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from filelock import Timeout

from .errors import Problem
from .files import claim, make_folder, write_atomically
from .results import FILES, WEIGHTS, find_start
from .run import Run
from .train import first_task_path, forget
from .worker import (
    VERSIONS,
    OtherVersion,
    check_versions,
    checked,
    describe,
    first_task,
    is_first_task,
    one_line,
    whole_run,
)

WRITERS = 8  # threads: a disk that is asked for durable files takes milliseconds for each, and several at a time


class Workers:
    """Those of a concurrent.futures.Executor."""

    def __init__(self, pool):
        self.pool = pool

    def submit(self, function: Callable, run: Run, asked: dict, shared: str | None, words: dict, more: object, **how):
        return self.pool.submit(function, dataclasses.asdict(run), asked, shared, words, more, **how)

    def running(self, futures: list) -> int:
        return sum(future.running() for future in futures)

    def passed_on(self, future):
        """What stands for the result of a future in submit()."""
        return future.result()

    def again(self, future) -> bool:
        """Tries a task elsewhere that met an OtherVersion; False where there is nowhere else."""
        return False


class DaskWorkers(Workers):
    """Those of a distributed.Client. Raises Problem for one that cannot make runs as this side would."""

    def __init__(self, client):
        super().__init__(client)
        self.resources = {}
        for where, found in client.run(describe, on_error="return").items():
            if isinstance(found, OSError):
                continue  # it has just died
            if isinstance(found, Exception):
                raise Problem(f"worker {where}: {one_line(found)}; expected cldiff {VERSIONS['cldiff']} there")
            check_versions(VERSIONS, found, f"worker {where}")
            if found["threads"] != 1:
                raise Problem(
                    f"worker {where} has {found['threads']} threads: expected one, as a process makes one run at a "
                    "time; start it with --nthreads 1"
                )
            self.resources |= {"GPU": 1} if found["gpus"] else {}

    def submit(self, function: Callable, run: Run, asked: dict, shared: str | None, words: dict, more: object):
        name = run.first_task_name if function is first_task else run.name
        key = f"{function.__name__}-{name}-{words.get('device')}"  # one task for all clients that ask for it
        return super().submit(function, run, asked, shared, words, more, key=key, resources=self.resources)

    def running(self, futures: list) -> int:
        return min(len(futures), sum(self.pool.nthreads().values()))

    def passed_on(self, future):
        return future  # from worker to worker

    def again(self, future) -> bool:
        """Also sends away the workers that joined later with another version."""
        found = self.pool.run(describe, on_error="return")
        good = [
            where for where, words in found.items() if isinstance(words, dict) and VERSIONS.items() <= words.items()
        ]
        self.pool.retire_workers(found.keys() - good)
        if good:
            future.retry()
        return bool(good)


def run_all(
    pool, runs: list[Run], out: str | Path, shared: Path | None = None, make: Callable = whole_run, **words
) -> dict[str, str]:
    """Makes the runs that are not in the folder `out` on the workers of a pool, and writes there what comes back.

    pool: a concurrent.futures.Executor, or a Client of dask.distributed. A first task is made once, before the runs
    that share it. shared: a folder that all workers have, for checkpoints from which one continues what another began;
    without it each run is made in a temporary folder. make: what a worker calls, as whole_run(). words: of make_run
    (device, data, checkpoint_seconds). Returns the one-line error of each run that failed, by name. Raises Problem for
    workers that differ or are gone, or a start that is not here, OSError for an `out` without rights; what came stays.
    """
    from tqdm import tqdm

    make_folder(out := Path(out))
    groups: dict[Path, list[Run]] = {}  # by first task
    starts: dict[str, bytes | None] = {}  # of files that are here, and not where workers look
    for run in runs:
        if not (out / run.name / "result.json").exists():
            groups.setdefault(first_task_path(run, out / run.name), []).append(run)
            if run.start not in starts:
                starts[run.start] = find_start(run, out / run.name)
    workers = Workers(pool) if isinstance(pool, Executor) else DaskWorkers(pool)
    place = str(shared.resolve()) if shared else None
    total, shown = sum(map(len, groups.values())), 0.0
    pending, failed, events = {}, {}, SimpleQueue()

    def submit(function: Callable, run: Run, more: object):
        return workers.submit(function, run, VERSIONS, place, {**words, "start": starts[run.start]}, more)

    def expect(future, then: Callable, runs: list[Run]) -> None:
        pending[future] = then, runs
        future.add_done_callback(events.put)

    def first_is_there(runs: list[Run], future) -> None:
        _keep_first(first_task_path(runs[0], out / runs[0].name), future.result())
        first = workers.passed_on(future)
        for run in runs:
            expect(submit(make, run, first), is_made, [run])

    def is_made(runs: list[Run], future) -> None:
        expect(disk.submit(_keep, runs[0], out / runs[0].name, future), is_kept, runs)

    def is_kept(runs: list[Run], future) -> None:
        bar.update()

    def settle(future) -> None:
        then, runs = pending.pop(future)
        error = _error(future)
        if isinstance(error, BrokenExecutor) or (isinstance(error, OSError) and then is is_kept):
            raise error
        if isinstance(error, OtherVersion) and workers.again(future):
            return expect(future, then, runs)
        try:
            if error is None:
                then(runs, future)
        except Problem as found:
            error = found
        if error is not None:
            failed.update((run.name, one_line(error)) for run in runs)

    def show() -> None:
        nonlocal shown
        if time.monotonic() > shown + 1:
            shown = time.monotonic()
            running = workers.running([future for future, (then, _) in pending.items() if then is not is_kept])
            bar.set_postfix(running=running, waiting=max(0, total - bar.n - len(failed) - running), failed=len(failed))

    try:
        with ThreadPoolExecutor(WRITERS) as disk, tqdm(total=total, unit="run", desc=str(out)) as bar:
            try:
                for path, runs in groups.items():
                    found = path.read_bytes() if path.exists() else None
                    expect(submit(first_task, runs[0], found if is_first_task(found) else None), first_is_there, runs)
                while pending:
                    show()
                    with suppress(Empty):
                        settle(events.get(timeout=5))
            finally:
                for future, (then, _) in pending.items():
                    if then is not is_kept:  # what came back is written
                        future.cancel()
    except BrokenExecutor as error:  # a future's, or of submit(), which is refused once the pool knows
        left = sum(not (out / run.name / "result.json").exists() for runs in groups.values() for run in runs)
        raise Problem(
            f"{str(error).rstrip('.')}: {left} of {total} runs are left; the same command goes on with them, once the "
            "workers are back"
        ) from None
    return failed


def _error(future) -> BaseException | None:  # Dask cancels those of a scheduler that is gone
    return BrokenExecutor("the connection to the scheduler was lost") if future.cancelled() else future.exception()


def _keep(run: Run, folder: Path, future) -> None:
    """Writes the folder of a finished run, result.json last, unless another process has."""
    files = checked(run, future.result())
    try:
        with claim(folder, wait=False):
            if not (folder / "result.json").exists():
                for name in (*FILES[:-1], WEIGHTS, FILES[-1]):
                    write_atomically(folder / name, lambda path, name=name: path.write_bytes(files[name]))
            forget(folder)  # what this machine began earlier
    except Timeout:
        raise Problem(f"another process works at {folder}: it is left to that") from None


def _keep_first(path: Path, content: object) -> None:
    if not is_first_task(content):
        raise Problem("a worker returned no first task: nothing of it was written")
    if not path.exists() or path.read_bytes() != content:  # else it is what was sent
        write_atomically(path, lambda temporary: temporary.write_bytes(content))


def run_on_dask(address: str, runs: list[Run], out: Path, shared: Path | None = None, **words) -> dict[str, str]:
    """run_all() on the cluster of the scheduler at this address, or, where it is "local", on one of this machine."""
    try:
        from distributed import Client, Security
        from distributed.comm import get_address_host
    except ImportError:
        raise Problem("no Dask: expected the extra `cluster` of cldiff, pip install 'cldiff[cluster]'") from None
    logging.disable(logging.CRITICAL)  # what Dask says on many lines is said here on one
    warnings.filterwarnings("ignore", "Sending large graph")  # a first task that is here already
    with _local(words["device"]) if address == "local" else nullcontext(address) as cluster:
        try:
            if cluster is address:  # looked at first: a Client that cannot begin takes long to end
                get_address_host(address)
                if address.startswith("tls:") and not Security().get_connection_args("client")["ssl_context"]:
                    raise ValueError("no certificate in Dask's configuration")
            client = Client(cluster, timeout=10, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise Problem(
                f"no scheduler at {address} ({one_line(error)}): expected the address that `dask scheduler` prints, "
                "for example tcp://127.0.0.1:8786, or local"
            ) from None
        with client:
            print(f"dashboard: {client.dashboard_link}", flush=True)
            return run_all(client, runs, out, shared, **words)


def _local(device: str):
    """A cluster that this machine alone can reach: one worker for each GPU, or for each core."""
    import torch
    from dask.system import CPU_COUNT  # of those that this process may use
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    known = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    places = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in known.split(",")] if gpus else [{}] * CPU_COUNT
    threads = {"OMP_NUM_THREADS": str(max(1, CPU_COUNT // len(places)))}
    quiet, here = {"silence_logs": logging.CRITICAL}, {"host": "127.0.0.1"}
    options = {"nthreads": 1, "memory_limit": 0, **quiet, **here}
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": {"dashboard_address": "127.0.0.1:0", **here}},
        workers={k: {"cls": Nanny, "options": {**options, "env": threads | place}} for k, place in enumerate(places)},
        **quiet,
    )
