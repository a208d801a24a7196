"""Where it runs: file systems that refuse, a PATH without git, other people's settings, long and strange paths."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from conftest import tiny
from test_runs import finish

from cldiff import Measurer, files, load_scores, load_tasks, make_run, results, work
from cldiff.__main__ import main
from cldiff.errors import Problem, one_line_a_minute
from cldiff.files import claim, locked, write_atomically
from cldiff.plan import set_aside_damaged
from cldiff.report import execute as execution
from cldiff.report.execute import ExecutionError, execute
from cldiff.report.tables import save_table
from cldiff.results import ResultError, read_result
from cldiff.study import runs

ROOT = Path(__file__).parents[1]
PUBLISHED = next((ROOT / "results" / "paper-cpu").glob("mnist-finetune-s0-*"))


def git(*words: str | Path) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *map(str, words)], check=True, capture_output=True)


# File systems


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_a_folder_that_cannot_be_synchronised_costs_nothing(code, tmp_path, monkeypatch):
    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    before = len(os.listdir("/proc/self/fd"))
    write_atomically(tmp_path / "file", lambda path: path.write_text("whole"))
    assert (tmp_path / "file").read_text() == "whole" and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("code, lost", [(errno.EINVAL, False), (errno.EIO, True), (errno.ENOSPC, True)])
def test_a_file_that_was_not_written_is_an_error_and_one_that_cannot_be_asked_is_not(code, lost, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    try:
        write_atomically(tmp_path / "file", lambda path: path.write_text("new"))
    except OSError as error:
        assert lost and error.errno == code
    assert (tmp_path / "file").read_text() == ("old" if lost else "new") and len(list(tmp_path.iterdir())) == 1


def refuse_to_write(folder: Path, monkeypatch) -> None:
    """As NFS does where lists of rights say so, or a quota: os.access knows nothing of either."""

    def write(dir):
        if dir == folder:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return tempfile.TemporaryFile(dir=dir)

    monkeypatch.setattr(files, "TemporaryFile", write)


@pytest.mark.parametrize("cause", ["File exists", "Disk quota exceeded"])
def test_a_folder_of_results_that_cannot_be_had_is_named_before_training(cause, tmp_path, monkeypatch):
    run = tiny(steps=2, tasks=2)
    folder = tmp_path / run.name
    folder.touch() if cause == "File exists" else refuse_to_write(folder, monkeypatch)
    with pytest.raises(Problem, match=f"^{folder} cannot be written to .{cause}.: expected a folder of your own$"):
        make_run(run, folder, device="cpu")
    assert not (tmp_path / "first_task").exists()


@pytest.mark.parametrize("access", [True, False])
def test_a_folder_is_asked_by_writing_to_it(access, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: access)
    files.make_folder(tmp_path / "new")
    with pytest.raises(Problem, match="^/proc/self cannot be written to "):
        files.make_folder(Path("/proc/self"))
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_of_lenets_that_cannot_be_written_is_named_before_training(monkeypatch):
    from cldiff.features import LENETS

    monkeypatch.setattr(sys, "argv", ["cldiff", "features", "digits"])
    refuse_to_write(LENETS, monkeypatch)
    monkeypatch.setattr("cldiff.features.train_lenet", lambda *words: pytest.fail("trained"))
    with pytest.raises(
        SystemExit, match="^error: .*lenet cannot be written to .Disk quota exceeded.: expected a folder"
    ):
        main()


@pytest.mark.slow
@pytest.mark.parametrize("stderr", ["closed", "full", "gone"])
def test_nobody_need_listen_to_what_a_run_says(stderr, tmp_path):
    """Closed by who started it, on a full disk, or a pipe whose reader ended: of a progress bar no run depends."""
    reader, writer = os.pipe()
    os.close(reader)
    target = {"closed": None, "full": open("/dev/full", "w"), "gone": writer}[stderr]
    done = subprocess.run(
        [sys.executable, "-m", "cldiff", "run", "smoke", "--only", "digits-finetune", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=target,
        preexec_fn=(lambda: os.close(2)) if stderr == "closed" else None,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, f"0 of 1 runs are left, results are in {tmp_path}\n")
    assert len(list(tmp_path.glob("*/result.json"))) == 1


HOLD = """
import fcntl, os, sys, time
from pathlib import Path

def refuse(*words):
    raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))

fcntl.flock = refuse
from cldiff.files import claim
lock = claim(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_file_stands_in_and_that_of_a_killed_process_holds_nobody(
    code, start, tmp_path, monkeypatch, capsys
):
    def refuse(*words):
        raise OSError(code, os.strerror(code))

    run = tmp_path / "run"
    claim(run).lock.release()  # with locks: the file that this leaves holds nobody
    process = start(
        [sys.executable, "-W", "error", "-c", HOLD, str(run), str(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "held\n"
    monkeypatch.setattr("fcntl.flock", refuse)
    files._has_locks.cache_clear()
    with pytest.raises(TimeoutError):
        claim(run, wait=False)
    process.kill()
    process.wait()
    held = claim(run, wait=False)
    with pytest.raises(TimeoutError):
        locked(tmp_path / "locks" / "run.lock", 0)
    held.lock.release()
    claim(run, wait=False).lock.release()
    files._has_locks.cache_clear()
    for said in (process.stderr.read(), capsys.readouterr().err):
        assert said == (
            f"{tmp_path / 'locks'}: no locks on this file system ({os.strerror(code)}): files *.locked stand in for them; "
            "one that a process left behind that was killed on another machine is to be deleted\n"
        )


def test_a_lock_of_another_user_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    def locked(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "locked", locked)
    with pytest.raises(Problem, match="locks/a.lock cannot be written to .Permission denied.: expected a folder of"):
        files.claim(tmp_path / "a")


def test_an_error_that_somebody_keeps_holds_no_lock(tmp_path):
    """As Jupyter keeps the last one, whose frames keep the lock: the cell that is run again would wait for itself."""

    def fail():
        lock = claim(tmp_path / "run")
        with lock:
            raise ValueError

    with pytest.raises(ValueError) as kept:
        fail()
    claim(tmp_path / "run", wait=False)
    assert kept


# git


@pytest.fixture
def code_in(tmp_path, monkeypatch):
    """code_in(): a repository in whose only commit this code lies, as far as results.py knows."""

    def make(committed: bool = True) -> Path:
        folder = tmp_path / "clone"
        (folder / "package").mkdir(parents=True)
        (folder / "package/results.py").touch()
        (folder / "figure").touch()
        git("init", "-q", folder)
        git("-C", folder, "add", "figure", *["package"] * committed)
        git("-C", folder, "commit", "-qm", "all")
        monkeypatch.setattr(results, "__file__", str(folder / "package/results.py"))
        return folder

    return make


def test_a_run_without_git_on_the_path_is_finished_and_says_so(tmp_path, monkeypatch):
    results.provenance.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    run = tiny(steps=2, tasks=2)
    assert make_run(run, tmp_path / run.name, device="cpu")
    result = read_result(tmp_path / run.name)
    assert result["commit"] is None and result["no_commit"] == "no git on PATH"
    results.provenance.cache_clear()


def test_packages_that_say_nothing_of_their_version_cost_nothing(tmp_path, monkeypatch):
    """As on boards and clusters, where torchvision is built by hand."""

    def version(name):
        if name == "torchvision":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(results, "version", version)
    results.provenance.cache_clear()
    run = tiny(steps=2, tasks=2)
    assert make_run(run, tmp_path / run.name, device="cpu")
    found = read_result(tmp_path / run.name)["versions"]
    assert found["torchvision"] is None and found["torch"] == "1.0"
    results.provenance.cache_clear()


def test_a_run_that_goes_on_with_other_code_says_so_and_names_both_commits(tmp_path, monkeypatch, capsys):
    run, found = tiny(steps=2, tasks=2), {}
    for name in "abb":
        monkeypatch.setattr(results, "commit", lambda name=name: (name * 40, ""))
        results.provenance.cache_clear()
        found = make_run(run, tmp_path / run.name, device="cpu", stop=lambda margin, name=name: name == "a")
    results.provenance.cache_clear()
    result = read_result(tmp_path / run.name)
    assert found and result["commit"] == "b" * 40
    assert [(made["commit"], made["machine"]) for made in result["earlier"]] == [("a" * 40, result["machine"])]
    said = f"goes on with the code of {'b' * 40} from a checkpoint of {'a' * 40}: both are kept\n"
    assert capsys.readouterr().err == said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_clone_of_another_user_says_why_there_is_no_commit(code_in):
    folder = code_in()
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 1234, 1234)
    assert results.commit() == (None, "detected dubious ownership in repository")


def test_the_commit_is_that_of_this_code_and_of_no_repository_around_it(code_in, monkeypatch):
    folder = code_in()
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))  # as in a hook
    found, why = results.commit()
    assert len(found) == 40 and not why
    (folder / "figure").write_text("drawn anew")
    assert results.commit() == (found, "")
    (folder / "package/results.py").write_text("changed")
    assert results.commit() == (f"{found} with changes", "")


def test_code_that_was_installed_into_another_repository_has_no_commit(code_in):
    code_in(committed=False)
    assert results.commit() == (None, "pathspec 'results.py' did not match any file(s) known to git")


def test_the_commit_is_the_one_that_a_run_began_with(code_in):
    folder = code_in()
    results.provenance.cache_clear()
    run, tasks = tiny(), load_tasks("digits")
    Measurer(run, tasks)
    begun, _ = results.commit()
    (folder / "package/results.py").write_text("changed while it trains")
    assert results.commit()[0] != begun
    assert results.provenance(torch.device("cpu"))["commit"] == begun
    results.provenance.cache_clear()


def test_git_leaves_line_ends_alone(tmp_path):
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    shutil.copytree(PUBLISHED, source / PUBLISHED.name)
    shutil.copy(ROOT / ".gitattributes", source)
    git("init", "-q", source)
    git("-C", source, "add", "-f", ".")
    git("-C", source, "commit", "-qm", "all")
    git("clone", "-q", "-c", "core.autocrlf=true", source, clone)
    assert b"\r" not in (clone / PUBLISHED.name / "scores.csv").read_bytes()
    read_result(clone / PUBLISHED.name)


def test_tables_with_other_line_ends_are_whole_and_read_alike(tmp_path):
    """As in clones from before .gitattributes, and after archives and mails."""
    shutil.copytree(PUBLISHED, tmp_path / PUBLISHED.name)
    for name in ("scores.csv", "curves.csv", "bootstrap.csv", "result.json"):
        path = tmp_path / PUBLISHED.name / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    found = load_scores(PUBLISHED.parent)
    found = found[found.run == PUBLISHED.name].reset_index(drop=True)
    pd.testing.assert_frame_equal(load_scores(tmp_path), found)
    path.with_name("scores.csv").write_bytes(path.with_name("scores.csv").read_bytes().replace(b"fid", b"kid", 1))
    with pytest.raises(ResultError, match="scores.csv is not the file that was written"):
        read_result(path.parent)


def in_a_clone(folder: Path, monkeypatch) -> Path:
    """The published run in a folder that `plan paper-cpu` takes for a clone."""
    run = folder / "results" / "paper-cpu" / PUBLISHED.name
    shutil.copytree(PUBLISHED, run)
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    monkeypatch.chdir(folder)
    return run


@pytest.mark.parametrize("command", ("plan", "run"))
def test_published_results_that_are_damaged_are_named_and_not_moved(command, tmp_path, monkeypatch):
    run = in_a_clone(tmp_path, monkeypatch)
    (run / "scores.csv").write_text("cut")
    monkeypatch.setattr(sys, "argv", ["cldiff", command, "paper-cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    short = Path("results/paper-cpu", run.name)
    assert str(stop.value) == (
        f"error: {short}: scores.csv is not the file that was written; `git checkout -- {short}` brings it back where "
        "it was published; to do the run again, delete the folder"
    )
    assert {path.name for path in run.parent.iterdir()} == {run.name} and (run / "scores.csv").read_text() == "cut"


@pytest.mark.parametrize("profile, only", [("smoke", "digits-finetune"), ("paper-cpu", "mnist-finetune")])
def test_a_damaged_result_is_no_run_that_is_there(profile, only, tmp_path, monkeypatch, capsys):
    """Of a published profile too, in a folder of one's own."""
    (name,) = (finish(tmp_path, run).name for run in runs(profile, only=only))
    (tmp_path / name / "scores.csv").write_text("cut")
    monkeypatch.setattr(work, "run_pending", lambda *_, **__: {})
    words = ["cldiff", "run", profile, "--only", only, "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    out, errors = capsys.readouterr()
    aside = tmp_path / "damaged" / f"{name}-1"
    assert out == "1 of 1 runs are left: call again to continue\n"
    assert errors.endswith(f"scores.csv is not the file that was written; moved to {aside}, the run is done again\n")
    assert (aside / "scores.csv").read_text() == "cut" and not (tmp_path / name).exists()


def test_a_damaged_result_that_another_process_makes_anew_is_left_to_it(tmp_path, capsys):
    (run,) = runs("smoke", only="digits-finetune")
    finish(tmp_path, run)
    (tmp_path / run.name / "scores.csv").write_text("cut")
    with claim(tmp_path / run.name):
        set_aside_damaged([run], tmp_path, published=False)
    assert (tmp_path / run.name / "scores.csv").read_text() == "cut" and not capsys.readouterr().err


def test_colab_without_git_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["cldiff", "colab"])
    with pytest.raises(
        SystemExit, match="^error: no git on PATH, which knows the address of origin; nothing was changed$"
    ):
        main()


# Installed


def test_a_plan_in_a_folder_without_notebooks_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cldiff", "plan", "digits"])
    with pytest.raises(SystemExit, match="^error: no notebooks/run.ipynb in this folder: expected that of a clone"):
        main()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_plain_install_in_a_new_environment_has_what_it_needs(tmp_path):
    source, new, empty = (tmp_path / name for name in ("source", "new", "empty"))
    shutil.copytree(ROOT / "cldiff", source / "cldiff", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(new, with_pip=False)
    python, installed = str(new / "bin" / "python"), next((new / "lib").glob("python*/site-packages"))
    # Dependencies are those of this environment, without what is editable in it.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    words = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    words += ["--ignore-installed", "--no-deps", "--no-build-isolation", str(source)]
    done = subprocess.run(words, capture_output=True, text=True)
    if "setuptools" in done.stderr and "No module" in done.stderr:
        pytest.skip("needs setuptools in this environment")
    assert done.returncode == 0, done.stderr
    target = installed / "cldiff"
    empty.mkdir()
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def cldiff(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([python, "-m", "cldiff", *words], cwd=empty, capture_output=True, text=True, env=bare)

    for name in ("chosen.json", "lenet/SHA256SUMS", "lenet/digits.pt", "lenet/mnist.pt", "lenet/fashion_mnist.pt"):
        assert (target / name).read_bytes() == (ROOT / "cldiff" / name).read_bytes()
    assert len(cldiff("list", "digits").stdout.splitlines()) >= 5
    assert cldiff("plan", "digits").stderr.startswith("error: no notebooks/run.ipynb in this folder")
    done = cldiff("run", "smoke", "--only", "digits-finetune", "--out", str(empty / "out"))
    assert done.returncode == 0, done.stderr
    result = json.loads(next((empty / "out").glob("*/result.json")).read_text())
    assert (
        result["commit"] is None
        and result["no_commit"] == "not a git repository (or any of the parent directories): .git"
    )


# Kernels


def book(folder: Path, *cells: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in ("a = 1", *cells)]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / "book.ipynb")
    return folder / "book.ipynb"


def outputs(folder: Path, *cells: str) -> list:
    execute(book(folder, *cells), folder / "out.ipynb", {})
    return [output for cell in nbformat.read(folder / "out.ipynb", 4).cells for output in cell.outputs]


def test_a_long_folder_for_temporary_files(tmp_path, monkeypatch):
    """As job systems give: a socket's path may have 107 bytes."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert outputs(tmp_path, "print('here')")[0].text == "here\n"


def test_no_short_folder_for_temporary_files_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 120)))

    def refuse(*words, **how):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(
        ExecutionError, match="^no folder for a kernel's sockets in /tmp .Permission denied.: set TMPDIR"
    ):
        execute(book(tmp_path), tmp_path / "out.ipynb", {})


DRAW = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home whose owner likes it otherwise: IPython prints and draws svg, matplotlib writes with LaTeX on a screen, and
    `python3` is the kernel of another environment."""
    home = tmp_path / "home"
    start = home / ".ipython" / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00.py").write_text("print('hello from the profile')\n")
    for name in ("ipython_config.py", "ipython_kernel_config.py"):
        (start.parent / name).write_text(
            "c.InlineBackend.figure_formats = {'svg'}\nc.InteractiveShellApp.exec_lines = ['print(12345)']\n"
        )
    (home / ".config" / "matplotlib").mkdir(parents=True)
    (home / ".config" / "matplotlib" / "matplotlibrc").write_text("backend: TkAgg\n")
    (home / "start.py").write_text("print('hello from PYTHONSTARTUP')\n")
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    kernel = home / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(spec))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONSTARTUP", str(home / "start.py"))
    return home


def test_other_peoples_settings_do_not_get_into_a_notebook(home, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "TkAgg")
    monkeypatch.setenv("JUPYTER_PATH", str(home / "jupyter"))
    before = dict(os.environ)
    found = outputs(tmp_path, "import sys\nprint(sys.executable)", DRAW)
    assert [output.text for output in found if output.output_type == "stream"] == [f"{sys.executable}\n"]
    drawn = [set(output.data) for output in found if output.output_type == "display_data"]
    assert drawn == [{"image/png", "text/plain"}]
    assert dict(os.environ) == before


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_a_home_that_cannot_be_written_or_is_unknown(home, tmp_path, monkeypatch):
    """Where nobody may, not even root; or a user that the container does not know."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setenv("HOME", home) if home else monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    assert "image/png" in outputs(tmp_path, DRAW)[-1].data


def test_a_kernel_that_never_answers_is_one_line(tmp_path, monkeypatch):
    """Another ipykernel_launcher, which sleeps, is found first."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "ipykernel_launcher.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    monkeypatch.setattr(execution, "START", 2)
    with pytest.raises(
        ExecutionError, match="^book.ipynb: its kernel did not start .Kernel didn't respond in 2 seconds"
    ):
        execute(book(tmp_path), tmp_path / "out" / "out.ipynb", {})
    assert not list((tmp_path / "out").iterdir())


def test_a_kernel_that_ends_at_once_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "ipykernel_launcher.py").write_text("raise SystemExit('no')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    with pytest.raises(ExecutionError, match="^book.ipynb: its kernel d") as error:
        execute(book(tmp_path), tmp_path / "out" / "out.ipynb", {})
    assert "\n" not in str(error.value)


def test_figures_follow_nobodys_matplotlibrc():
    import matplotlib

    from cldiff.report.plots import use_style

    with matplotlib.rc_context():
        use_style()
        own = dict(matplotlib.rcParams)
        matplotlib.rcParams.update({"text.usetex": True, "savefig.transparent": True, "lines.linewidth": 9})
        use_style()
        assert dict(matplotlib.rcParams) == own


COMPILE = """
from pathlib import Path
from conftest import tiny
from cldiff import make_run, work
work.load_tasks = None  # must not be reached
run = tiny(compiled=True, steps=2, tasks=2)
make_run(run, Path(run.name), device="cpu")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment, cause",
    [
        ({"PATH": "/nowhere", "CXX": ""}, "No working C++ compiler found"),
        ({"TORCHINDUCTOR_CACHE_DIR": "/proc/x"}, "[Errno 2] No such file or directory: '/proc/x'"),
    ],
    ids=("no compiler", "no folder"),
)
def test_what_compiling_needs_is_asked_for_before_anything_is_loaded(environment, cause, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment},
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"cldiff.learner.TrainingError: torch.compile failed ({cause}"), last
    assert last.endswith(": use compiled=False") and not list(tmp_path.glob("first_task/*"))


# Text


def test_labels_with_signs_of_latex_and_markdown(tmp_path):
    table = pd.DataFrame({"": [r"a & b_c #1 50 % $x$ {y} ~z ^w \v|u"], "n": ["**3**"]})
    save_table(table, tmp_path, "t", "n & m")
    tex = (tmp_path / "t.tex").read_text(encoding="utf-8").splitlines()
    assert tex[4] == (
        r"a \& b\_c \#1 50 \% \$x\$ \{y\} \textasciitilde{}z \textasciicircum{}w \textbackslash{}v|u & \textbf{3} \\"
    )
    assert tex[-1].endswith(r"n \& m")
    assert r"\v\|u | **3** |" in (tmp_path / "t.md").read_text(encoding="utf-8")


def test_tables_are_utf_8_in_any_locale(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import pandas as pd\nfrom cldiff.report.tables import save_table\n"
         r"save_table(pd.DataFrame({'FID \u2193': ['1 \u00b1 2']}), '.', 't', 'n')"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 ± 2" in (tmp_path / "t.md").read_text(encoding="utf-8")


# make


def make(
    folder: Path, *words: str, stdout=subprocess.PIPE, answer="y\n", **environment: str
) -> subprocess.CompletedProcess:
    shutil.copy(ROOT / "Makefile", folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")} | environment
    how = {
        "cwd": folder,
        "env": environment,
        "input": answer,
        "stdout": stdout,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    return subprocess.run(["make", *words], **how)


@pytest.mark.parametrize("profile", ["", "../x", "..", ".", "small digits", "*", "/"])
def test_clean_deletes_nothing_but_the_folders_of_a_profile(profile, tmp_path):
    clone = tmp_path / "clone"
    kept = [tmp_path / "x" / "a", clone / "x" / "a", *(clone / "results" / name / "a" for name in ("small", "digits"))]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    done = make(clone, "clean", f"PROFILE={profile}")
    assert done.returncode and f"error: PROFILE='{profile}': expected the name of a profile" in done.stderr
    assert all(path.exists() for path in kept)


def test_a_log_on_a_full_disk_stops_no_target(tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ntouch "$5"\n')  # -m cldiff make PROFILE TARGET
    python.chmod(0o755)
    plan = tmp_path / "results" / "any" / "targets.mk"
    plan.parent.mkdir(parents=True)
    plan.write_text("RUNS := run\nFIGURES := figure\nPAPER := paper.ipynb\n")
    with open("/dev/full", "w") as log:
        done = make(tmp_path, "targets", "PROFILE=any", stdout=log)
    assert all((tmp_path / name).exists() for name in ("run", "figure", "paper.ipynb", "paper.html")), done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_as_many_runs_as_cores_that_may_be_used(tmp_path):
    """Not as many as the machine has: a job on a cluster is given some."""
    cores = os.sched_getaffinity(0)
    for few in (cores, set(sorted(cores)[:1])):
        os.sched_setaffinity(0, few)
        try:
            done = make(tmp_path, "help", OMP_NUM_THREADS="7")
        finally:
            os.sched_setaffinity(0, cores)
        assert f"JOBS={len(few)} " in done.stdout


@pytest.fixture
def set_up(tmp_path):
    """A clone whose environment is there, and whose python says what it is asked for."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$*"\n')
    python.chmod(0o755)
    for name in ("pyproject.toml", ".venv/.installed", ".venv/.installed-cluster"):
        (tmp_path / name).touch()
    (tmp_path / "results" / "any").mkdir(parents=True)
    (tmp_path / "results" / "any" / "targets.mk").touch()
    return tmp_path


def test_what_make_paper_is_told_goes_to_the_plan_or_to_the_cluster(set_up):
    words = "paper", "PROFILE=any", "SEEDS=2", "DEVICE=cpu", "CHECKPOINT=9"
    lines = make(set_up, *words).stdout.splitlines()
    assert lines == ["-m cldiff plan any --seeds 2 --checkpoint 9 --device cpu", "figures/any is complete"]
    lines = make(set_up, *words, "CLUSTER=tcp://one:1", "SHARED=/of/all").stdout.splitlines()
    assert lines[0] == "-m cldiff plan any --seeds 2 --checkpoint 9"  # the workers' device need not be this machine's
    how = "--device cpu --checkpoint 9 --cluster tcp://one:1 --shared /of/all"
    assert lines[1:] == [f"-m cldiff run any --seeds 2 {how}", "figures/any is complete"]


@pytest.mark.parametrize("word", ["JOBS=0", "JOBS=two", "JOBS=", "SHARED=/of/all"])
def test_a_word_that_make_paper_cannot_use_is_one_line_before_anything_is_done(word, set_up):
    done = make(set_up, "paper", "PROFILE=any", word)
    error, end = done.stderr.splitlines()
    assert done.returncode and error.startswith(f"error: {word}: expected ") and end.startswith("make: *** ")
    assert done.stdout == ""


@pytest.mark.parametrize("profile", ["digits", "benchmark-fashion_mnist"])
def test_clean_deletes_the_folders_of_a_profile(profile, tmp_path):
    kinds = ("results", "figures")
    for kind, name in itertools.product(kinds, ("small", profile)):
        (tmp_path / kind / name).mkdir(parents=True)
    assert make(tmp_path, "clean", f"PROFILE={profile}").returncode == 0
    assert [[path.name for path in (tmp_path / kind).iterdir()] for kind in kinds] == [["small"]] * 2


def test_a_python_that_cannot_make_environments_is_one_line_and_leaves_nothing(tmp_path):
    """As Debian's without python3-venv, which has no ensurepip: here another one is found first and cannot be had."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "ensurepip.py").write_text("raise ImportError\n")
    (tmp_path / "pyproject.toml").touch()
    done = make(tmp_path, "setup", f"PYTHON={sys.executable}", PYTHONPATH=str(tmp_path / "first"))
    errors = done.stderr.splitlines()
    assert done.returncode and errors[0].startswith("error: ") and "python3-venv" in errors[0]
    assert len(errors) == 2 and errors[1].startswith("make: *** ") and not (tmp_path / ".venv").exists()


def test_pip_is_asked_for_the_environment_alone_and_paths_may_have_spaces(tmp_path):
    """PIP_USER and PIP_TARGET of other people would put the packages elsewhere."""
    clone = tmp_path / "Übung mit Leerzeichen"
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    python = clone / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$0 $* user=$PIP_USER target=$PIP_TARGET"\n')
    python.chmod(0o755)
    done = make(clone, "setup", PIP_USER="1", PIP_TARGET="/elsewhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{python} -m pip install --quiet --editable . user=0 target="
    (clone / ".venv" / ".installed").unlink()
    (tmp_path / "uv").write_text('#!/bin/sh\necho "uv $*"\n')
    (tmp_path / "uv").chmod(0o755)
    done = make(clone, "setup", PATH=f"{tmp_path}:{os.environ['PATH']}")  # uv, where there is one
    assert done.stdout.splitlines()[-1] == f"uv pip install --python {python} --quiet --editable ."


def test_a_result_that_is_damaged_again_is_moved_beside_the_first(tmp_path):
    (run,) = runs("smoke", only="digits-finetune")
    for number in (1, 2):
        (finish(tmp_path, run) / "scores.csv").write_text("cut")
        set_aside_damaged([run], tmp_path, published=False)
        assert (tmp_path / "damaged" / f"{run.name}-{number}").is_dir() and not (tmp_path / run.name).exists()


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_what_a_hook_says_of_its_own_repository_is_not_for_this_one(name, code_in, tmp_path, monkeypatch):
    code_in()
    found = results.commit()
    monkeypatch.setenv(name, str(tmp_path / "another"))
    assert results.commit() == found and found[0]


def test_files_that_nobody_added_are_no_changes_of_the_code(code_in):
    folder = code_in()
    found = results.commit()
    (folder / "package" / "notes.txt").touch()
    assert results.commit() == found and len(found[0]) == 40


def test_a_file_and_its_name_are_both_made_durable(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: asked.append(stat.S_ISDIR(os.fstat(descriptor).st_mode)))
    write_atomically(tmp_path / "file", lambda path: path.write_text("whole"))
    assert asked == [False, True]


def test_line_ends_may_change_in_tables_alone(tmp_path):
    sha256 = hashlib.sha256(b"a\nb\n").hexdigest()
    for name, whole in (("table.csv", True), ("picture.png", False)):
        (tmp_path / name).write_bytes(b"a\r\nb\r\n")
        assert files.is_whole(tmp_path / name, sha256) == whole


def test_a_run_that_another_process_has_is_waited_for_unless_asked_otherwise(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "locked", lambda path, wait: asked.append((path, wait)))
    claim(tmp_path / "run")
    claim(tmp_path / "run", wait=False)
    assert asked == [(tmp_path / "locks" / "run.lock", wait) for wait in (-1, 0)]


def test_progress_is_said_once_a_minute_in_a_log_file_alone(monkeypatch):
    mine = {"TQDM_MININTERVAL": "5"}
    for screen, before, after in ((True, {}, {}), (False, {}, {"TQDM_MININTERVAL": "60"}), (False, mine, mine)):
        environment = dict(before)
        monkeypatch.setattr(os, "environ", environment)
        monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: screen))
        one_line_a_minute()
        assert environment == after


# make, with a python that says what it is asked for


@pytest.mark.parametrize("answer, left", [("y\n", False), ("n\n", True), ("\n", True), ("", True)])
def test_clean_deletes_what_somebody_said_yes_to(answer, left, tmp_path):
    (tmp_path / "results" / "any").mkdir(parents=True)
    make(tmp_path, "clean", "PROFILE=any", answer=answer)
    assert (tmp_path / "results" / "any").exists() == left


@pytest.mark.parametrize(
    "words, gpu, jobs",
    [
        (["PROFILE=paper"], False, 1),
        (["PROFILE=paper", "DEVICE=cpu"], False, 4),
        (["PROFILE=digits"], False, 4),
        (["PROFILE=digits"], True, 1),
        (["PROFILE=digits", "DEVICE=cpu"], True, 4),
        (["PROFILE=paper", "JOBS=3"], True, 3),
    ],
)
def test_a_gpu_is_for_one_run_at_a_time(words, gpu, jobs, tmp_path):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{'echo GPU 0: one' if gpu else 'exit 1'}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    done = make(tmp_path, "help", "CORES=4", *words, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert f"JOBS={jobs} " in done.stdout


@pytest.mark.parametrize("jobs, threads", [(1, 8), (2, 4), (3, 2), (8, 1), (9, 1)])
def test_the_cores_are_shared_out_between_the_runs(jobs, threads, set_up):
    (set_up / ".venv" / "bin" / "python").write_text('#!/bin/sh\necho "$OMP_NUM_THREADS"\n')
    assert make(set_up, "paper", "PROFILE=any", "CORES=8", f"JOBS={jobs}").stdout.startswith(f"{threads}\n")


def test_an_environment_is_installed_again_when_what_it_needs_has_changed(set_up):
    os.utime(set_up / "pyproject.toml", (0, 0))
    assert "install" not in make(set_up, "setup").stdout
    os.utime(set_up / ".venv" / ".installed", (0, 0))
    os.utime(set_up / "pyproject.toml")
    assert "-m pip install --quiet --editable ." in make(set_up, "setup", PATH="/usr/bin:/bin").stdout


@pytest.mark.parametrize(
    "words, asked",
    [
        (["verify", "PROFILE=any", "DEVICE=cpu"], "-m cldiff verify results/any --device cpu"),
        (["check-paper", "PROFILE=any"], "tests/check_paper.py results/any"),
        (
            ["benchmark", "PROFILE=own", "SEEDS=2"],
            "-m cldiff plan benchmark-own --seeds 2 --checkpoint 300 --device auto",
        ),
        (["test", "CORES=3"], "-m pytest -n 3 --dist worksteal -m not slow"),
        (["test", "DEVICE=cuda"], "-m pytest -q --device cuda tests/test_gpu.py"),
        (["colab"], "-m cldiff colab"),
    ],
)
def test_a_target_asks_for_what_it_is_called(words, asked, set_up):
    (set_up / ".venv" / ".installed-test").touch()
    (set_up / "results" / "benchmark-own").mkdir()
    (set_up / "results" / "benchmark-own" / "targets.mk").touch()
    assert asked in make(set_up, *words).stdout.splitlines()


def test_a_new_machine_is_asked_for_every_test_and_given_the_images_that_are_at_hand(tmp_path):
    script, data = tmp_path / "clone" / ".ci" / "run", tmp_path / "shared" / "data" / "MNIST"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    data.mkdir(parents=True)
    (data / "images").touch(0o444)
    (tmp_path / "shared" / "data" / "FashionMNIST").mkdir()
    (tmp_path / "make").write_text('#!/bin/sh\necho "make $*"\n[ "$1" != "$FAILS" ]\n')
    (tmp_path / "make").chmod(0o755)

    def made(fails: str) -> list[str]:
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "FAILS": fails}
        return subprocess.run([script], env=environment, capture_output=True, text=True).stdout.splitlines()

    assert made("") == ["make lint", "make test", "make test-all SLOW=-m slow"]
    assert made("test") == ["make lint", "make test"]
    copied = tmp_path / "clone" / "data"
    assert {path.name for path in copied.iterdir()} == {"MNIST", "FashionMNIST"}
    assert (copied / "MNIST" / "images").stat().st_mode & stat.S_IWUSR
