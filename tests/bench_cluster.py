"""What a cluster costs and gains, measured: `python tests/bench_cluster.py`, on a machine that does nothing else.

A thousand runs that are no work, for the time of the process that asks for them; the bytes that go and come for each real
run; real runs of the smoke profile on one worker and on two.
"""

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")  # of the workers too
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import tiny  # noqa: E402
from distributed import Client  # noqa: E402

from cldiff.cluster import run_all  # noqa: E402
from cldiff.results import FILES, WEIGHTS  # noqa: E402
from cldiff.run import PROTOCOL  # noqa: E402
from cldiff.study import runs  # noqa: E402
from cldiff.worker import VERSIONS, first_task, whole_run  # noqa: E402

WORDS = {"device": "cpu", "data": str(ROOT / "data")}
SIZES = {"scores.csv": 15_500, "curves.csv": 16_900, "bootstrap.csv": 19_900, "samples.png": 4_800, WEIGHTS: 126_000}


def empty(run: dict, *words) -> dict[str, bytes]:
    """Files as large as those of a smoke run, of which none was computed."""
    files = {name: os.urandom(size) for name, size in SIZES.items()}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    result = {"protocol": PROTOCOL, "run": run, "sha256": sha256, "more": " " * 1000}
    return {**files, "result.json": json.dumps(result).encode()}


def start(folder: Path, workers: int) -> tuple[list[subprocess.Popen], Client]:
    def dask(*words: str) -> subprocess.Popen:
        words = [sys.executable, "-m", "dask", *words, "--host", "127.0.0.1", "--no-dashboard"]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)

    place = folder / "scheduler.json"
    place.unlink(missing_ok=True)
    processes = [dask("scheduler", "--port", "0", "--scheduler-file", str(place))]
    how = ["--scheduler-file", str(place), "--nthreads", "1", "--no-nanny", "--memory-limit", "0"]
    while not place.exists():
        time.sleep(0.1)
    processes += [dask("worker", *how, "--local-directory", str(folder)) for _ in range(workers)]
    client = Client(scheduler_file=str(place), timeout=60, set_as_default=False)
    client.wait_for_workers(workers)
    return processes, client


def timed(client: Client, asked: list, out: Path, **how) -> tuple[float, float]:
    wall, own = time.perf_counter(), time.process_time()
    assert run_all(client, asked, out, **how, **WORDS) == {}
    return time.perf_counter() - wall, time.process_time() - own


def main() -> None:
    with tempfile.TemporaryDirectory(dir=ROOT) as name:  # on a disk, not in memory
        folder = Path(name)
        for workers in (1, 2):
            processes, client = start(folder, workers)
            with client:
                warm = [tiny(seed=seed, steps=2) for seed in range(4 * workers)]
                timed(client, warm, folder / f"warm{workers}")
                wall, _ = timed(client, runs("smoke", 2), folder / f"smoke{workers}")
                print(f"10 smoke runs, {workers} worker(s): {wall:.1f} s")
                if workers == 2:
                    asked = [tiny("l2", weight=k / 1000) for k in range(1000)]
                    wall, own = timed(client, asked, folder / "empty", make=empty)
                    print(f"1,000 empty runs: {wall:.2f} ms of wall time, {own:.2f} ms of the client's CPU for each")
            for process in processes:
                process.kill()
                process.wait()
        run = dataclasses.asdict(runs("smoke")[0])
        first = first_task(run, VERSIONS, None, WORDS)
        back = whole_run(run, VERSIONS, None, WORDS, first)
        assert set(back) == {*FILES, WEIGHTS}
        print(
            f"a smoke run: {len(pickle.dumps((whole_run, run, VERSIONS, None, WORDS))):,} bytes of parameters go, "
            f"{len(first):,} of its first task from worker to worker, {sum(map(len, back.values())):,} come back, "
            f"of which weights {len(back[WEIGHTS]):,}"
        )


if __name__ == "__main__":
    main()
