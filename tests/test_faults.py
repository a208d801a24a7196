"""What may happen to a process: killed, asked to stop, no room on the disk, no memory, another at the same work.

Real processes, small runs. Each time: one line that names the cause, nothing half-written taken for finished, and in the
end the same files as an undisturbed run, bit for bit.
"""

import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import tiny

from cldiff.files import claim
from cldiff.results import FILES, WEIGHTS
from cldiff.train import train

pytestmark = pytest.mark.slow
BITS = (*FILES[:-1], WEIGHTS)  # result.json holds times
# `python -m cldiff run any --out DIR`, where the profile "any" is two short runs; NAME=VALUE changes both of them.
DRIVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import tiny
from cldiff import __main__, study, work

changes = dict(word.split("=") for word in sys.argv[2:])
runs = [tiny(method, **{{"steps": 2, **{{k: int(v) for k, v in changes.items()}}}}) for method in ("finetune", "replay")]
study.PROFILES["any"] = study.PROFILES["smoke"]  # as that, not published
for module in (study, work):
    module.runs = module.planned = lambda *_: runs
sys.argv[1:] = ["run", "any", "--device", "cpu", "--out", sys.argv[1], "--budget", "5m"]
__main__.main()
"""


def command(out: Path, **changes: int) -> list[str]:
    return [sys.executable, "-c", DRIVER, str(out), *(f"{k}={v}" for k, v in changes.items())]


def go(words: list[str], **how) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, **how)


def contents(out: Path) -> dict[str, bytes]:
    return {
        f"{folder.name}/{name}": (folder / name).read_bytes()
        for folder in sorted(path.parent for path in out.glob("*/result.json"))
        for name in BITS
    }


def lines_of(done: subprocess.CompletedProcess) -> list[str]:
    """What was said beside progress."""
    lines = done.stderr.replace("\r", "\n").splitlines()
    return [line for line in lines if line and "step/s" not in line and "s/step" not in line]


def one_line(done: subprocess.CompletedProcess, *words: str) -> None:
    """The last line is an error with these words; before it nothing but progress."""
    lines = lines_of(done)
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert all(word in lines[0] for word in words), lines


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    done = go(command(out))
    assert done.returncode == 0, done.stderr
    assert len(contents(out)) == 2 * len(BITS)
    return out


# No room


def test_no_room_for_any_of_the_files(undisturbed, tmp_path):
    """The largest size that a file may have grows: at first nothing can be written, in the end everything."""
    failures, run = 0, next(undisturbed.glob("digits-finetune-*"))
    for size in sorted(p.stat().st_size - 1 for p in (*run.iterdir(), *undisturbed.glob("first_task/*.pt"))):
        done = go(command(tmp_path / "out"), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
        if done.returncode:
            one_line(done, "File too large")
            failures += 1
        for finished in (tmp_path / "out").glob("*/result.json"):
            assert {p.name for p in finished.parent.iterdir()} == {*FILES, WEIGHTS}
    assert failures >= 5
    left = tmp_path / "out" / run.name / ".4711-scores.csv"  # as of a process that was killed while it wrote
    left.parent.mkdir(exist_ok=True)
    left.write_text("after_task,eval_")
    done = go(command(tmp_path / "out"))
    assert done.returncode == 0 and contents(tmp_path / "out") == contents(undisturbed)
    assert {p.name for p in left.parent.iterdir()} == {*FILES, WEIGHTS}


def in_a_namespace(script: str, *words: str) -> subprocess.CompletedProcess:
    """A shell script that may mount; skips the test where this machine does not allow it."""
    if not shutil.which("unshare") or go(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).returncode:
        pytest.skip("needs user namespaces that may mount")
    return go(["unshare", "-rm", "sh", "-c", script, "sh", *words])


def test_a_full_disk(undisturbed, tmp_path):
    """A file system too small for the results, later enlarged."""
    out = tmp_path / "out"
    out.mkdir()
    done = in_a_namespace(
        'out=$1; kept=$2; shift 2; mount -t tmpfs -o size=120k none "$out" && '
        '"$@" 2> "$kept/errors"; echo $? > "$kept/code"; '
        'mount -o remount,size=50m "$out" && "$@" && cp -r "$out"/. "$kept/results"',
        str(out),
        str(tmp_path),
        *command(out),
    )
    assert done.returncode == 0, done.stderr
    one_line(
        subprocess.CompletedProcess([], int((tmp_path / "code").read_text()), "", (tmp_path / "errors").read_text()),
        "No space left on device",
    )
    assert contents(tmp_path / "results") == contents(undisturbed)


def test_a_folder_that_is_read_only(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    done = in_a_namespace(
        'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"', str(out), *command(out)
    )
    one_line(done, "Read-only file system", str(out))
    assert not list(out.iterdir())


def test_no_memory(tmp_path):
    done = go(
        command(tmp_path / "out", batch=3_000_000),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )
    *each, last = lines_of(done)
    assert done.returncode == 1 and last == "error: 2 of 2 runs failed, as said above, 0 more are left", done.stderr
    assert len(each) == 2 and all("out of memory on cpu: fewer JOBS, or lower batch=3000000" in line for line in each)


# Two at once


def test_two_at_the_same_time_share_the_work(undisturbed, start, tmp_path):
    both = [start(command(tmp_path / "out"), stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert contents(tmp_path / "out") == contents(undisturbed)
    for label in ("Finetuning", "Experience replay"):  # each run by one of them
        assert sum(f"digits, {label}" in text for text in errors) == 1, errors


def test_the_lock_of_a_dead_process_holds_nobody(start, tmp_path):
    hold = (
        f"from cldiff.files import claim; from pathlib import Path; import time; lock = claim(Path({str(tmp_path)!r}) / 'run'); "
        "print('held', flush=True); time.sleep(600)"
    )
    process = start([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(TimeoutError):
        claim(tmp_path / "run", wait=False)
    process.kill()
    process.wait()
    claim(tmp_path / "run", wait=False).lock.release()


# Asked to stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_notebook_that_is_asked_to_stop_ends_its_kernel_and_says_how_to_continue(number, start, tmp_path):
    import nbformat

    cells = [
        nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            f"import os, time\nopen({str(tmp_path / 'kernel')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
        ),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "book.ipynb")
    plan = tmp_path / "results/any/jobs.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(
        f'{{"t": {{"kind": "figure", "notebook": "{tmp_path}/book.ipynb", '
        f'"output": "{tmp_path}/out/book.ipynb", "parameters": {{}}}}}}'
    )
    process = start(
        [sys.executable, "-m", "cldiff", "make", "any", "t"],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not ((tmp_path / "kernel").exists() and (tmp_path / "kernel").read_text()):
        time.sleep(0.1)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert (
        process.returncode == 1
        and errors.strip() == "stopped: the same command again continues from the last checkpoint"
    )
    kernel, end = Path("/proc") / (tmp_path / "kernel").read_text(), time.monotonic() + 30
    while kernel.exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not kernel.exists() and not list((tmp_path / "out").iterdir())


# Long runs


def test_nothing_grows_with_the_steps(three):
    """Tensors, files and threads after 50 steps and after 250. 20,000 steps were measured by hand: docs/guarantees.md."""

    def held():
        gc.collect()
        tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
        return tensors, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    counts = [held() for step in train(tiny("replay", steps=250), three[:1]) if step.step in (50, 150, 250)]
    assert counts[0] == counts[1] == counts[2]
