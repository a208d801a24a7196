"""Runs on a cluster: a real Dask scheduler and real worker processes on this machine, some of which are killed, of another
version, or dishonest."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import tiny
from distributed import Client
from test_headless import contents

from cldiff import cluster
from cldiff.cluster import run_all
from cldiff.errors import Problem
from cldiff.results import FILES, WEIGHTS
from cldiff.study import runs
from cldiff.work import make_run
from cldiff.worker import VERSIONS, checked, first_task, whole_run

TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
WORDS = {"device": "cpu", "data": str(TESTS.parent / "data")}
SHORT = [tiny("finetune", steps=2), tiny("replay", steps=2), tiny("l2", steps=2)]


# What workers call instead of whole_run(). They find this module on their path.


def logged(run: dict, asked: dict, shared: str | None, words: dict, first: bytes) -> dict[str, bytes]:
    """Writes into the file LOG which run begins, and whether there is a checkpoint to continue from."""
    run_ = tiny(**run)
    found = bool(shared) and (Path(shared) / run_.name / "checkpoint.pt").exists()
    with open(os.environ["LOG"], "a") as file:
        file.write(f"{os.getpid()} {run_.name} {found}\n")
    return whole_run(run, asked, shared, words, first)


def forged(run: dict, asked: dict, shared: str | None, words: dict, first: bytes) -> dict[str, bytes]:
    files = whole_run(run, asked, shared, words, first)
    return {**files, "../../forged": b""} if run["method"] == "replay" else files


def failing(run: dict, *words) -> dict[str, bytes]:
    if run["method"] == "replay":
        raise MemoryError("no memory\non this worker")
    return whole_run(run, *words)


# Processes


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    """A scheduler and workers, as a user starts them."""

    def __init__(self, start, folder: Path):
        self.start, self.folder, self.port = start, folder, free_port()
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler, self.log = None, folder / "log"

    def _dask(self, *words: str, **environment: str) -> subprocess.Popen:
        return self.start(
            [sys.executable, "-m", "dask", *words, "--no-dashboard"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**ENVIRONMENT, "LOG": str(self.log), **environment},
            cwd=self.folder,
        )

    def schedule(self, *words: str) -> "Cluster":
        self.scheduler = self._dask("scheduler", "--host", "127.0.0.1", "--port", str(self.port), *words)
        return self

    def work(self, *words: str, threads: int = 1, **environment: str) -> subprocess.Popen:
        place = ["--local-directory", str(self.folder), "--host", "127.0.0.1", "--no-nanny", "--memory-limit", "0"]
        return self._dask("worker", self.address, *place, "--nthreads", str(threads), *words, **environment)

    def client(self, workers: int = 0) -> Client:
        client = Client(self.address, timeout=60, set_as_default=False)
        client.wait_for_workers(workers, timeout=60) if workers else None
        return client

    def places(self) -> list[Path]:
        """The temporary folders of runs that workers are at."""
        return list(self.folder.glob("dask-scratch-space/*/cldiff-*"))

    def begun(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def dask(start, tmp_path):
    folder = tmp_path / "dask"
    folder.mkdir()
    return Cluster(start, folder)


def until(condition, seconds: float = 90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.02)
    return found


def command(address: str, out: Path, profile: str = "smoke", *words: str) -> list[str]:
    words = ["--device", "cpu", "--out", str(out), "--cluster", address, "--data", WORDS["data"], *words]
    return [sys.executable, "-m", "cldiff", "run", profile, *words]


def go(words: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, env={**ENVIRONMENT, **environment}, timeout=300)


def one_error(done: subprocess.CompletedProcess, *words: str) -> None:
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and "%|" not in line]
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """alone(runs): a folder with the results of these runs, made in this process."""
    out = tmp_path_factory.mktemp("alone")

    def make(asked) -> Path:
        for run in asked:
            make_run(run, out / run.name, **WORDS)
        return out

    return make


def same_results(asked, one: Path, other: Path) -> None:
    for run in asked:
        assert contents(one / run.name) == contents(other / run.name)
        assert {path.name for path in (other / run.name).iterdir()} == {*FILES, WEIGHTS}


# Workers that die


@pytest.mark.slow
def test_the_smoke_profile_with_a_worker_killed_in_the_middle_equals_one_process(dask, alone, tmp_path):
    dask.schedule()
    workers = {process.pid: process for process in (dask.work(), dask.work())}
    asked, killed = runs("smoke"), []

    def unfinished() -> list[list[str]]:
        there = [path.parent.name for path in (tmp_path / "out").glob("*/result.json")]
        return [line for line in dask.begun() if there and line[1] not in there]

    def wait_and_kill():
        pid, name, _ = until(unfinished)[-1]
        killed.append(name)
        workers[int(pid)].kill()

    with dask.client(2) as client:
        thread = threading.Thread(target=wait_and_kill)
        thread.start()
        assert run_all(client, asked, tmp_path / "out", make=logged, **WORDS) == {}
        thread.join()
    begun = [name for _, name, _ in dask.begun()]
    assert sorted(begun) == sorted([run.name for run in asked] + killed)  # the finished ones were not repeated
    same_results(asked, alone(asked), tmp_path / "out")


@pytest.mark.slow
def test_with_a_shared_folder_another_worker_continues_where_a_killed_one_was(dask, alone, tmp_path):
    dask.schedule()
    workers = {process.pid: process for process in (dask.work(), dask.work())}
    asked = [tiny("finetune", steps=40)]
    checkpoint = tmp_path / "shared" / asked[0].name / "checkpoint.pt"

    def wait_and_kill():
        until(checkpoint.exists)
        workers[int(dask.begun()[0][0])].kill()

    with dask.client(2) as client:
        thread = threading.Thread(target=wait_and_kill)
        thread.start()
        assert run_all(client, asked, tmp_path / "out", tmp_path / "shared", make=logged, **WORDS) == {}
        thread.join()
    assert [found for _, _, found in dask.begun()] == ["False", "True"]
    same_results(asked, alone(asked), tmp_path / "out")


@pytest.mark.slow
def test_when_the_scheduler_is_killed_the_same_command_continues(dask, alone, tmp_path):
    out, asked = tmp_path / "out", runs("smoke")
    dask.schedule()
    dask.work(), dask.work()
    process = dask.start(command(dask.address, out), stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    first = until(lambda: list(out.glob("*/result.json")))[0]
    written = first.stat().st_mtime_ns
    dask.scheduler.kill()
    dask.scheduler.wait()
    output, errors = process.communicate(timeout=60)
    one_error(
        subprocess.CompletedProcess([], process.returncode, output, errors),
        "the connection to the scheduler was lost: ",
        " of 5 runs are left",
    )
    one_error(go(command(dask.address, out)), f"no scheduler at {dask.address}")
    dask.schedule()
    dask.work(), dask.work()
    done = go(command(dask.address, out))
    assert done.returncode == 0 and done.stdout.endswith("0 of 5 runs are left\n"), done.stderr
    assert first.stat().st_mtime_ns == written
    same_results(asked, alone(asked), out)


@pytest.mark.slow
def test_ctrl_c_leaves_the_cluster_clean(dask, tmp_path):
    """A run of half a minute is stopped on its worker, which takes the next."""
    dask.schedule().work()
    words = command(dask.address, tmp_path / "out", "digits", "--only", "digits-finetune")
    process = dask.start(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    until(dask.places)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.splitlines()[-1].startswith("stopped: "), errors
    until(lambda: not dask.places(), 10)
    with dask.client(1) as client:
        assert not any(client.processing().values())
        assert run_all(client, SHORT[:1], tmp_path / "out", **WORDS) == {}


# Workers that differ


def another(folder: Path, old: str, new: str) -> str:
    """A copy of the package in which a line differs; the path on which it is found."""
    shutil.copytree(TESTS.parent / "cldiff", folder / "cldiff", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "cldiff" / "__init__.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return f"{folder}:{TESTS}"


@pytest.mark.slow
@pytest.mark.parametrize("new", ['__version__ = "0.0.9"', '__version__ = "0.1.0"  # changed'])
def test_a_worker_of_another_version_is_an_error_before_anything_runs(dask, tmp_path, new):
    dask.schedule().work()
    dask.work(PYTHONPATH=another(tmp_path / "other", '__version__ = "0.1.0"', new))
    dask.client(2).close()
    theirs = new.split('"')[1]
    one_error(
        go(command(dask.address, tmp_path / "out")),
        "worker tcp://127.0.0.1:",
        f"has cldiff {theirs} (code ",
        f"this side {VERSIONS['cldiff']}",
    )
    assert not list((tmp_path / "out").iterdir()) and not dask.places()


@pytest.mark.slow
def test_a_worker_without_cldiff_or_with_more_threads_is_an_error_before_anything_runs(dask, tmp_path):
    dask.schedule()
    process = dask.work(threads=2)
    dask.client(1).close()
    one_error(go(command(dask.address, tmp_path / "out")), "has 2 threads: expected one", "--nthreads 1")
    process.kill()
    (tmp_path / "none" / "cldiff").mkdir(parents=True)
    (tmp_path / "none" / "cldiff" / "__init__.py").write_text('raise ModuleNotFoundError("no cldiff")')
    dask.work(PYTHONPATH=str(tmp_path / "none"))
    with dask.client() as client:
        until(lambda: len(client.nthreads()) == 1 and 2 not in client.nthreads().values())
    one_error(go(command(dask.address, tmp_path / "out")), "no cldiff", f"expected cldiff {VERSIONS['cldiff']}")


@pytest.mark.slow
def test_a_worker_of_another_version_that_joins_later_is_sent_away(dask, tmp_path):
    dask.schedule().work()
    with dask.client(1) as client:
        submit, late = cluster.DaskWorkers.submit, []

        def join_then_submit(self, *words):
            if not late:
                late.append(dask.work(PYTHONPATH=another(tmp_path / "other", '"0.1.0"', '"0.0.9"')))
                client.wait_for_workers(2, timeout=60)
            return submit(self, *words)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster.DaskWorkers, "submit", join_then_submit)
            assert run_all(client, SHORT, tmp_path / "out", **WORDS) == {}
        late[0].wait(timeout=30)
        assert len(client.nthreads()) == 1
    assert len(list((tmp_path / "out").glob("*/result.json"))) == len(SHORT)


# Workers that return what they should not


@pytest.fixture(scope="module")
def honest():
    run = SHORT[0]
    words = {"device": "cpu", "data": WORDS["data"]}
    return whole_run(vars(run), VERSIONS, None, words, first_task(vars(run), VERSIONS, None, words))


def test_a_result_is_what_it_says(honest):
    assert checked(SHORT[0], honest) == honest


def changed(files: dict, **values) -> dict:
    result = json.loads(files["result.json"])
    return {**files, "result.json": json.dumps({**result, **values}).encode()}


@pytest.mark.parametrize(
    "forge, message",
    [
        (lambda files: {**files, "../../forged": b""}, "../../forged"),
        (lambda files: {**files, "/etc/forged": b""}, "/etc/forged"),
        (lambda files: {name: files[name] for name in FILES}, "expected"),
        (lambda files: {**files, "scores.csv": files["scores.csv"] + b"1"}, "scores.csv that its result.json does not"),
        (lambda files: {**files, WEIGHTS: b""}, f"{WEIGHTS} that its result.json does not"),
        (lambda files: {**files, "scores.csv": "text"}, "files"),
        (lambda files: {**files, "result.json": b"[]"}, "no result"),
        (lambda files: {**files, "result.json": b"\xff"}, "no result"),
        (lambda files: changed(files, run=vars(SHORT[1])), "another run"),
        (lambda files: changed(files, run={"dataset": "../.."}), "unknown dataset"),
        (lambda files: changed(files, protocol=1), "protocol"),
        (lambda files: list(files.values()), "no result"),
        (lambda files: None, "no result"),
    ],
)
def test_a_forged_result_is_refused(honest, forge, message):
    with pytest.raises(Problem, match="a worker returned no result") as error:
        checked(SHORT[0], forge(honest))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_worker_that_forges_a_file_name_writes_nothing(dask, tmp_path):
    dask.schedule().work()
    out = tmp_path / "a" / "b" / "out"
    with dask.client(1) as client:
        failed = run_all(client, SHORT, out, make=forged, **WORDS)
    assert list(failed) == [SHORT[1].name] and "../../forged" in failed[SHORT[1].name]
    assert not (out / SHORT[1].name).exists() and not list(tmp_path.rglob("forged"))
    assert {path.parent.name for path in out.glob("*/result.json")} == {SHORT[0].name, SHORT[2].name}


# Any executor


@pytest.fixture(scope="module")
def pool():
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        patch.setenv("OMP_NUM_THREADS", "1")  # as here: bits depend on it
        yield pool


def test_a_process_pool_makes_the_same_results(pool, alone, tmp_path):
    assert run_all(pool, SHORT, tmp_path / "out", **WORDS) == {}
    same_results(SHORT, alone(SHORT), tmp_path / "out")
    first = tmp_path / "out" / "first_task"
    assert [path.name for path in first.iterdir()] == [f"{SHORT[0].first_task_name}.pt"]


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(pool, tmp_path):
    failed = run_all(pool, SHORT, tmp_path / "out", make=failing, **WORDS)
    assert failed == {SHORT[1].name: "MemoryError: no memory on this worker"}
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert sum(path.name == "result.json" for path in written) == 2
    assert run_all(pool, SHORT, tmp_path / "out", **WORDS) == {}
    assert (tmp_path / "out" / SHORT[1].name / "result.json").exists()
    assert all(path.stat().st_mtime_ns == time for path, time in written.items() if "first_task" not in path.parts)
