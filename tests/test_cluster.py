"""Runs on a cluster: a real Dask scheduler and real worker processes on this machine, some of which are killed, of another
version, or dishonest."""

import errno
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import documented, tiny, without_code
from distributed import Client
from test_headless import BITS, contents

from cldiff import cluster, worker
from cldiff.__main__ import main
from cldiff.cluster import run_all
from cldiff.errors import Problem
from cldiff.files import claim, write_atomically
from cldiff.results import FILES, WEIGHTS
from cldiff.study import runs
from cldiff.work import make_run
from cldiff.worker import OF_NUMBERS, VERSIONS, checked, first_task, whole_run

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

    def schedule(self, *words: str, **environment: str) -> "Cluster":
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        self.scheduler = self._dask("scheduler", *place, *words, **environment)
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


def until(condition, seconds: float = 180):
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
def test_runs_of_the_smoke_profile_with_a_worker_killed_in_the_middle_equal_those_of_one_process(dask, alone, tmp_path):
    worker = dask.schedule().work()
    asked, killed = runs("smoke", only="digits-replay"), []

    def unfinished() -> list[list[str]]:
        there = [path.parent.name for path in (tmp_path / "out").glob("*/result.json")]
        return [line for line in dask.begun() if there and line[1] not in there]

    def wait_and_kill():
        killed.extend(name for _, name, _ in until(unfinished))
        worker.kill()
        dask.work()

    with dask.client(1) as client:
        thread = threading.Thread(target=wait_and_kill)
        thread.start()
        assert run_all(client, asked, tmp_path / "out", make=logged, **WORDS) == {}
        thread.join()
    begun = [name for _, name, _ in dask.begun()]
    assert sorted(begun) == sorted([run.name for run in asked] + killed)  # the finished ones were not repeated
    same_results(asked, alone(asked), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["shared", "out"])
def test_with_a_shared_folder_another_worker_continues_where_a_killed_one_was(dask, alone, tmp_path, shared):
    dask.schedule()
    workers = {process.pid: process for process in (dask.work(), dask.work())}
    asked = [tiny("finetune", steps=40)]
    checkpoint = tmp_path / shared / asked[0].name / "checkpoint.pt"

    def wait_and_kill():
        until(checkpoint.exists)
        workers[int(dask.begun()[0][0])].kill()

    with dask.client(2) as client:
        thread = threading.Thread(target=wait_and_kill)
        thread.start()
        assert run_all(client, asked, tmp_path / "out", tmp_path / shared, make=logged, **WORDS) == {}
        thread.join()
    assert [found for _, _, found in dask.begun()] == ["False", "True"]
    same_results(asked, alone(asked), tmp_path / "out")


@pytest.mark.slow
def test_when_the_scheduler_is_killed_the_same_command_continues(dask, alone, tmp_path):
    out, asked = tmp_path / "out", runs("smoke", only="digits-replay")
    words = command(dask.address, out, "smoke", "--only", "digits-replay")
    dask.schedule().work()
    process = dask.start(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
    first = until(lambda: list(out.glob("*/result.json")))[0]
    written = first.stat().st_mtime_ns
    dask.scheduler.kill()
    dask.scheduler.wait()
    output, errors = process.communicate(timeout=180)
    one_error(
        subprocess.CompletedProcess([], process.returncode, output, errors),
        "the connection to the scheduler was lost: ",
        "1 of 2 runs are left",
    )
    one_error(go(words), f"no scheduler at {dask.address}")
    dask.schedule().work()
    done = go(words)
    assert done.returncode == 0 and "\n0 of 2 runs are left, results are in " in f"\n{done.stdout}", done.stderr
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
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and errors.splitlines()[-1].startswith("stopped: "), errors
    until(lambda: not dask.places(), 30)
    with dask.client(1) as client:
        assert not any(client.processing().values())
        assert run_all(client, SHORT[:1], tmp_path / "out", **WORDS) == {}


@pytest.mark.slow
def test_two_commands_that_ask_for_the_same_runs_make_them_once(dask, alone, tmp_path):
    dask.schedule().work()
    outs = tmp_path / "one", tmp_path / "other"
    with dask.client(1) as one, dask.client(1) as other, ThreadPoolExecutor(2) as both:
        for found in both.map(lambda c, out: run_all(c, SHORT, out, make=logged, **WORDS), (one, other), outs):
            assert found == {}
    assert sorted(name for _, name, _ in dask.begun()) == sorted(run.name for run in SHORT)
    for out in outs:
        same_results(SHORT, alone(SHORT), out)


# Workers that differ


@pytest.mark.slow
def test_where_a_worker_offers_a_gpu_runs_go_there_alone(dask, tmp_path):
    dask.schedule().work()
    with_gpu = dask.work("--resources", "GPU=1")
    with dask.client(2) as client:
        assert run_all(client, SHORT, tmp_path / "out", make=logged, **WORDS) == {}
    assert {int(pid) for pid, *_ in dask.begun()} == {with_gpu.pid}


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
        submit, late, there = cluster.DaskWorkers.submit, [], set(client.nthreads())

        def join_then_submit(self, *words):
            if not late:
                late.append(dask.work(PYTHONPATH=another(tmp_path / "other", '"0.1.0"', '"0.0.9"')))
                client.wait_for_workers(2, timeout=60)
                theirs = list(client.nthreads().keys() - there)  # one that gets nothing to do is not noticed
                patch.setattr(client, "submit", partial(client.submit, workers=theirs, allow_other_workers=True))
            return submit(self, *words)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cluster.DaskWorkers, "submit", join_then_submit)
            assert run_all(client, SHORT, tmp_path / "out", **WORDS) == {}
        late[0].wait(timeout=120)
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


def test_a_run_begins_with_the_first_task_that_it_is_given(honest, monkeypatch):
    def made(*words, **how):
        return make_run(*words, progress=lambda step: tasks.add(step.task), **how)

    words, tasks = (vars(SHORT[0]), VERSIONS, None, WORDS), set()
    first = first_task(*words)
    monkeypatch.setattr(worker, "make_run", made)
    found = whole_run(*words, first)
    assert tasks == {1, 2, 3, 4} and all(found[name] == honest[name] for name in BITS)


def test_code_of_another_lenet_or_method_is_another_and_that_of_another_report_is_not():
    names = {path.name for path in OF_NUMBERS}
    assert {"SHA256SUMS", "unet.py", "replay.py"} <= names and not {"plots.py", "page.py"} & names


# Any executor


@pytest.mark.slow
def test_threads_of_one_process_take_turns(alone, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        assert run_all(pool, SHORT, tmp_path / "out", **WORDS) == {}
    same_results(SHORT, alone(SHORT), tmp_path / "out")


@pytest.fixture(scope="module")
def pool():
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        patch.setenv("OMP_NUM_THREADS", "1")  # as here: bits depend on it
        yield pool


@pytest.mark.slow
def test_a_process_pool_makes_the_same_results(pool, alone, tmp_path):
    assert run_all(pool, SHORT, tmp_path / "out", **WORDS) == {}
    same_results(SHORT, alone(SHORT), tmp_path / "out")
    first = tmp_path / "out" / "first_task"
    assert [path.name for path in first.iterdir()] == [f"{SHORT[0].first_task_name}.pt"]


@pytest.mark.slow
def test_the_executor_of_the_docs_makes_the_runs_of_a_profile(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cldiff.study.planned", lambda profile: SHORT[:1])
    names = {"__name__": "__main__"}
    exec(documented("ProcessPoolExecutor"), names)
    assert names["failed"] == {} and (tmp_path / "results/digits" / SHORT[0].name / "result.json").exists()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(pool, tmp_path):
    failed = run_all(pool, SHORT, tmp_path / "out", make=failing, **WORDS)
    assert failed == {SHORT[1].name: "MemoryError: no memory on this worker"}
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert sum(path.name == "result.json" for path in written) == 2
    assert run_all(pool, SHORT, tmp_path / "out", **WORDS) == {}
    assert (tmp_path / "out" / SHORT[1].name / "result.json").exists()
    assert all(path.stat().st_mtime_ns == time for path, time in written.items() if "first_task" not in path.parts)


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])  # True: the pool has seen it and takes no more; False: mostly not yet
def test_an_executor_whose_processes_die_is_one_line(known, tmp_path):
    with (
        pytest.raises(Problem, match="terminated abruptly.*: 3 of 3 runs are left"),
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        future = pool.submit(time.sleep, 60)
        next(iter(pool._processes.values())).kill()
        if known:
            assert isinstance(future.exception(timeout=60), BrokenExecutor)
        run_all(pool, SHORT, tmp_path / "out", **WORDS)


class Now(Executor):
    """Does at once what it is asked for."""

    def __init__(self, never: str = ""):
        self.never, self.waiting = never, []  # a method whose runs do not come back

    def submit(self, function, run, *words):
        future = Future()
        if run["method"] == self.never:
            self.waiting.append(future)
        else:
            future.set_result(function(run, *words))
        return future


def returned(run: dict, *words) -> dict[str, bytes]:
    return {**FOUND, "result.json": changed(FOUND, run=run)["result.json"]}


FOUND: dict[str, bytes] = {}


@pytest.fixture
def results(honest, monkeypatch):
    """What an honest worker returned, for each run."""
    FOUND.update(honest)
    monkeypatch.setattr(cluster, "first_task", lambda *words: bytes.fromhex(EMPTY))


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # the SHA-256 of nothing


def test_what_came_back_before_a_pool_broke_is_written(results, tmp_path, monkeypatch):
    class Broken(Now):
        def submit(self, function, run, *words):
            future = super().submit(function, run, *words)
            if future in self.waiting:
                future.set_exception(BrokenExecutor("all are gone."))
            return future

    monkeypatch.setattr(cluster, "WRITERS", 1)  # so that a second one waits
    keep = cluster._keep
    monkeypatch.setattr(cluster, "_keep", lambda *words: time.sleep(0.3) or keep(*words))
    last = SHORT[-1].method
    with pytest.raises(Problem, match="all are gone: 1 of 3 runs are left"):
        run_all(Broken(never=last), SHORT, tmp_path, make=returned, **WORDS)
    assert {path.parent.name for path in tmp_path.glob("*/result.json")} == {run.name for run in SHORT[:-1]}


def test_a_disk_that_is_full_here_stops_everything(results, tmp_path, monkeypatch):
    def full(path, write):
        if path.name == "samples.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_atomically(path, write)

    monkeypatch.setattr(cluster, "write_atomically", full)
    pool = Now(never="l2")
    with pytest.raises(OSError, match="No space left"):
        run_all(pool, SHORT, tmp_path, make=returned, **WORDS)
    assert [future.cancelled() for future in pool.waiting] == [True]
    assert not list(tmp_path.glob("*/result.json"))


def test_a_run_that_another_process_here_works_on_is_left_to_it(results, tmp_path):
    with claim(tmp_path / SHORT[0].name):
        failed = run_all(Now(), SHORT, tmp_path, make=returned, **WORDS)
    assert list(failed) == [SHORT[0].name] and "another process works at" in failed[SHORT[0].name]
    assert {path.parent.name for path in tmp_path.glob("*/result.json")} == {run.name for run in SHORT[1:]}


def test_a_first_task_that_is_none_is_refused(results, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "first_task", lambda *words: b"x" * 100)
    failed = run_all(Now(), SHORT, tmp_path, make=returned, **WORDS)
    assert set(failed) == {run.name for run in SHORT} and not list(tmp_path.rglob("*.pt"))
    assert set(failed.values()) == {"a worker returned no first task: nothing of it was written"}


def test_a_first_task_that_is_here_is_sent_and_a_damaged_one_is_not(results, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(cluster, "first_task", lambda *words: sent.append(words[-1]) or bytes.fromhex(EMPTY))
    path = tmp_path / "first_task" / f"{SHORT[0].first_task_name}.pt"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    assert run_all(Now(), SHORT[:1], tmp_path, make=returned, **WORDS) == {}
    written = path.stat().st_ino, path.stat().st_mtime_ns
    assert run_all(Now(), SHORT[1:], tmp_path, make=returned, **WORDS) == {}
    assert sent == [None, bytes.fromhex(EMPTY)] == [None, path.read_bytes()]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == written  # and not written again


def test_what_this_machine_began_is_removed_when_the_result_is_there(results, tmp_path):
    checkpoint = tmp_path / SHORT[0].name / "checkpoint.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"begun")
    assert run_all(Now(), SHORT[:1], tmp_path, make=returned, **WORDS) == {} and not checkpoint.exists()


# The command


def test_without_a_cluster_nothing_of_dask_is_loaded():
    words = "import sys, cldiff.__main__, cldiff.cluster; sys.exit(bool({'dask', 'distributed'} & set(sys.modules)))"
    assert go([sys.executable, "-c", words]).returncode == 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["--cluster", "local", "--budget", "9m"], "--budget is for one machine"),
        (["--shared", "/tmp"], "--shared for --cluster"),
        (["--cluster", "nonsense://1"], "no scheduler at nonsense://1"),
    ],
)
def test_bad_words_are_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cldiff", "run", "smoke", "--out", str(tmp_path / "out"), *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(logging, "disable", lambda *_: None)
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as end:
        main()
    assert "\n" not in str(end.value) and not (tmp_path / "out").exists()


def test_without_dask_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(Problem, match=r"pip install 'cldiff\[cluster\]'"):
        cluster.run_on_dask("local", SHORT, tmp_path, **WORDS)


LISTENERS = """
import os, psutil, torch
from dask.system import CPU_COUNT
from distributed import Client
from cldiff.cluster import _local

if __name__ == "__main__":
    with _local("cpu") as local, Client(local) as client:
        assert set(client.nthreads().values()) == {1} and len(client.nthreads()) == CPU_COUNT
        assert set(client.run(torch.get_num_threads).values()) == {1}
        me = psutil.Process()
        found = [c.laddr.ip for p in (me, *me.children(recursive=True)) for c in p.net_connections() if c.status == "LISTEN"]
        print(len(found), *sorted(set(found)))
"""


@pytest.mark.slow
def test_a_local_cluster_listens_on_loopback_alone_and_shares_out_the_cores(tmp_path):
    (tmp_path / "listeners.py").write_text(LISTENERS)
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "OMP_NUM_THREADS"}
    words = [sys.executable, str(tmp_path / "listeners.py")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    number, *found = done.stdout.split()
    assert int(number) >= 4 and found == ["127.0.0.1"]


@pytest.mark.slow
def test_with_tls_a_command_without_a_certificate_is_refused(dask, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout".split()
    subprocess.run([*words, str(key), "-out", str(certificate)], check=True, capture_output=True)
    tls = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(certificate)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        tls[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(certificate)
        tls[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(key)
    dask.address = dask.address.replace("tcp", "tls")
    dask.schedule("--protocol", "tls", **tls)
    dask.work("--protocol", "tls", **tls)
    words = command(dask.address, tmp_path / "out", "smoke", "--only", "digits-finetune")
    done = go(words, **tls)
    assert done.returncode == 0 and "\n0 of 1 runs are left, results are in " in f"\n{done.stdout}", done.stderr
    one_error(go(words), f"no scheduler at {dask.address}")
    one_error(go(command(dask.address.replace("tls", "tcp"), tmp_path / "other")), "no scheduler at tcp://")


@pytest.mark.slow
def test_make_paper_on_a_local_cluster_makes_what_one_process_would(alone, tmp_path):
    for name in ("Makefile", "pyproject.toml", "notebooks"):
        source = TESTS.parent / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy2(source, tmp_path / name)
    without_code((tmp_path / "notebooks").glob("*.ipynb"))
    installed = tmp_path / "venv"  # that of these tests, as one into which everything is installed
    installed.mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.suffix == ".cfg" or path.is_dir():
            (installed / path.name).symlink_to(path)
    for stamp in (".installed", ".installed-cluster"):
        (installed / stamp).touch()
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    words = ["make", "paper", "PROFILE=smoke", "CLUSTER=local", "DEVICE=cpu", "VENV=venv"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "dashboard: http://127.0.0.1:" in done.stdout, done.stderr
    assert "figures/smoke is complete" in done.stdout and "make    results" not in done.stdout
    same_results(runs("smoke"), alone(runs("smoke")), tmp_path / "results" / "smoke")


def test_scripts_in_the_documentation_are_bash():
    scripts = re.findall(r"```bash\n(.*?)```", (TESTS.parent / "docs" / "running.md").read_text(), re.S)
    assert any("#SBATCH" in script for script in scripts)
    for script in scripts:
        assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True).stderr == ""


def test_versions_are_compared_without_what_numbers_do_not_depend_on():
    assert re.fullmatch(r"\d+\.\d+", VERSIONS["Python"]) and re.fullmatch(r"[\w.]+", VERSIONS["torch"])


def test_of_what_came_back_the_result_is_written_last(results, tmp_path, monkeypatch):
    written = []

    def noted(path, write):
        written.append(path)
        write_atomically(path, write)

    monkeypatch.setattr(cluster, "write_atomically", noted)
    assert run_all(Now(), SHORT[:1], tmp_path, make=returned, **WORDS) == {}
    assert written[-1].name == "result.json" and {path.name for path in written[1:]} == {*FILES, WEIGHTS}


def test_a_result_that_somebody_made_meanwhile_stays(results, tmp_path):
    own = tmp_path / SHORT[0].name / "result.json"

    def late(run: dict, *words) -> dict[str, bytes]:
        own.parent.mkdir()
        own.write_text("somebody's")
        return returned(run, *words)

    assert run_all(Now(), SHORT[:1], tmp_path, make=late, **WORDS) == {} and own.read_text() == "somebody's"


def test_a_worker_whose_disk_is_full_fails_its_run_alone(results, tmp_path):
    class Full(Now):
        def submit(self, function, run, *words):
            future = super().submit(function, run, *words)
            if future in self.waiting:
                future.set_exception(OSError(errno.ENOSPC, "No space left on device"))
            return future

    failed = run_all(Full(never="l2"), SHORT, tmp_path, make=returned, **WORDS)
    assert list(failed) == [SHORT[2].name] and failed[SHORT[2].name].startswith("OSError: ")
    assert {path.parent.name for path in tmp_path.glob("*/result.json")} == {run.name for run in SHORT[:2]}
