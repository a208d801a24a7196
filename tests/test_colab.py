"""`make colab`: the set-up cell and the badges, in a small repository with an invented remote."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from cldiff.report.colab import END, MISSING, NOTEBOOKS, START, write_all

ROOT = Path(__file__).parents[1]
READERS = sorted(path.stem for pattern in NOTEBOOKS for path in (ROOT / "notebooks").glob(pattern))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository, without a remote, that holds the notebooks and a README with the markers."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / "README.md").write_text(f"# Title\n\nBefore.\n\n{START}\n{END}\n\nAfter: Zając, ü.\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", "--initial-branch=trunk"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_remote(address: str) -> None:
    subprocess.run(["git", "remote", "add", "origin", address], check=True)


@pytest.fixture
def refusal(repository):
    """The one line with which `make colab` refuses; nothing may have changed."""

    def call() -> str:
        before = contents(repository)
        with pytest.raises(ValueError) as refused:
            write_all()
        assert contents(repository) == before and "\n" not in str(refused.value) and "secret" not in str(refused.value)
        return str(refused.value)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "README.md", *(folder / "notebooks").iterdir())}


def set_up(folder: Path, name: str) -> str:
    """The source of the set-up cell."""
    return nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4).cells[1].source


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/someone/cldiff",
        "https://github.com/someone/cldiff.git",
        "https://github.com/someone/cldiff/",
        "https://name:secret@github.com/someone/cldiff.git",
        "git@github.com:someone/cldiff.git",
        "ssh://git@github.com/someone/cldiff.git",
    ],
)
def test_every_form_of_an_address_gives_the_same_cell_and_badges(repository, address, capsys):
    add_remote(address)
    write_all()
    assert "git clone --quiet --depth 1 https://github.com/someone/cldiff /content/cldiff\n" in set_up(
        repository, "run"
    )
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# Title\n\nBefore.\n\n<!--") and readme.endswith("-->\n\nAfter: Zając, ü.\n")
    opened = re.findall(
        r"\]\(https://colab\.research\.google\.com/github/someone/cldiff/blob/trunk/notebooks/"
        r"(\w+)\.ipynb\)",
        readme,
    )
    assert sorted(opened) == READERS and "tutorial_1" in opened
    assert "secret" not in capsys.readouterr().out
    assert not any(b"secret" in content for content in contents(repository).values())


def test_a_notebook_gains_one_cell_after_its_title_and_nothing_else_changes(repository):
    add_remote("https://github.com/someone/cldiff")
    before = {path.stem: nbformat.read(path, as_version=4) for path in (repository / "notebooks").iterdir()}
    write_all()
    for name, old in before.items():
        new = nbformat.read(repository / "notebooks" / f"{name}.ipynb", as_version=4)
        nbformat.validate(new)
        if name in READERS:
            assert new.cells.pop(1).metadata.tags == ["colab"]
            assert sum("parameters" in cell.metadata.get("tags", []) for cell in new.cells) == 1
        assert new == old, name


def test_a_second_time_changes_nothing_and_a_new_address_replaces_the_old_one(repository):
    add_remote("https://github.com/someone/cldiff")
    write_all()
    once = contents(repository)
    write_all()
    assert contents(repository) == once
    subprocess.run(["git", "remote", "set-url", "origin", "git@github.com:another-one/cl.diff_2.git"], check=True)
    write_all()
    renamed = contents(repository)
    assert renamed == {
        name: content.replace(b"someone/cldiff", b"another-one/cl.diff_2") for name, content in once.items()
    }


def test_badges_open_the_default_branch_of_the_remote_if_it_is_known(repository):
    add_remote("https://github.com/someone/cldiff")
    subprocess.run(["git", "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/release"], check=True)
    write_all()
    assert "/blob/release/notebooks/" in (repository / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "address, line",
    [
        (None, "no remote named origin"),
        ("https://name:secret@gitlab.com/someone/cldiff", "not on github.com"),
        ("https://github.com.example.org/someone/cldiff", "not on github.com"),
        ("/srv/git/cldiff", "not on github.com"),
    ],
)
def test_without_an_address_on_github_one_line_and_no_change(refusal, address, line):
    if address:
        add_remote(address)
    assert line in refusal()


def test_without_markers_in_the_readme_one_line_and_no_change(repository, refusal):
    add_remote("https://github.com/someone/cldiff")
    (repository / "README.md").write_text(f"# Title\n{END}\n{START}\n")
    assert "README.md lacks" in refusal()


def test_the_cell_installs_in_colab_without_dependencies_and_does_nothing_elsewhere(repository, monkeypatch):
    add_remote("https://github.com/someone/cldiff")
    write_all()
    code = TransformerManager().transform_cell(set_up(repository, "tutorial_1"))
    said = []

    class Shell:
        system = staticmethod(said.append)
        run_line_magic = staticmethod(lambda *words: said.append(" ".join(words)))

    exec(code, {"get_ipython": Shell})
    assert said == []
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(code, {"get_ipython": Shell})
    clone, install, folder = said
    assert "git clone " in clone and folder == "cd -q /content/cldiff/notebooks" and sys.path[0] == "/content/cldiff"
    assert install.startswith("pip install --quiet --no-deps --editable /content/cldiff ")


def test_what_colab_is_missing_is_asked_for_as_the_package_asks():
    dependencies = (ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2]
    assert all(f'"{name}"' in dependencies for name in MISSING)


def test_badges_open_main_where_no_branch_is_known(repository):
    add_remote("https://github.com/someone/cldiff")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "one"], check=True)
    subprocess.run(["git", "checkout", "--quiet", "--detach"], check=True)
    write_all()
    assert "/blob/main/notebooks/" in (repository / "README.md").read_text(encoding="utf-8")


def test_a_notebook_that_gained_a_cell_ends_as_a_text_does(repository):
    add_remote("https://github.com/someone/cldiff")
    write_all()
    assert all(content.endswith(b"}\n") for name, content in contents(repository).items() if name.endswith(".ipynb"))
