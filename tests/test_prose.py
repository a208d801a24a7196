"""README, docs and notebooks as text: spelling, links, code, the commands that they name, generated parts."""

import ast
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

from cldiff.errors import Problem
from cldiff.methods import Method
from cldiff.report import readme
from cldiff.report.execute import move_links
from cldiff.results import load_scores

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "results" / "README.md", *NOTEBOOKS]


def prose(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


def code(path: Path) -> list[str]:
    if path.suffix == ".md":
        return re.findall(r"```python\n(.*?)```", path.read_text(), re.S)
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"] + re.findall(
        r"^ *```python\n(.*?)```", prose(path), re.S | re.M
    )


def test_spelling():
    files = [
        *PAGES,
        ROOT / "Makefile",
        *sorted((ROOT / "cldiff").rglob("*.py")),
        *sorted((ROOT / "tests").glob("*.py")),
    ]
    done = subprocess.run([sys.executable, "-m", "codespell_lib", *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


EXECUTED = sorted((ROOT / "figures").glob("*/*.ipynb"))  # of published profiles, and what this machine has made


def shown(path: Path) -> str:
    """The prose, and what the cells of a notebook print as such."""
    if path.suffix == ".md":
        return prose(path)
    outputs = [part for cell in nbformat.read(path, as_version=4).cells for part in cell.get("outputs", [])]
    return "\n\n".join([prose(path), *(part.get("data", {}).get("text/markdown", "") for part in outputs)])


def places(path: Path) -> set[str]:
    """What a link may name after its "#": headings, as GitHub and Jupyter make names of them, and what has an id."""
    headings = [title.replace("`", "") for title in re.findall(r"^#+ (.+)$", shown(path), re.M)]
    if path.suffix == ".ipynb":
        return {title.replace(" ", "-") for title in headings}
    named = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
    return named | set(re.findall(r'<a id="(.+?)">', shown(path)))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_table_stands_within_a_list(path):
    """Where the page of the paper, which quotes docs, would show its bars."""
    assert not re.findall(r"^ +\|.*\|$", prose(path), re.M)


@pytest.mark.parametrize("path", [*PAGES, *EXECUTED], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", shown(path)):
        if target.startswith("https://"):
            continue
        name, _, place = target.partition("#")
        there = path.parent / name if name else path
        assert not target.startswith("http:") and there.exists(), target
        # What a page of paper.ipynb links to within itself are headings that its code writes.
        assert not place or path == ROOT / "notebooks" / "paper.ipynb" or place in places(there), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_code_is_python(path):
    texts = code(path)
    assert texts or path.stem not in ("run", "extending")  # or none is found at all
    for text in texts:
        ast.parse(textwrap.dedent(text))


def test_commands_in_the_pages_are_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = "".join(prose(page) for page in PAGES if page.suffix == ".md")
    named = set(re.findall(r"\bmake ([a-z-]+)", " ".join(re.findall(r"`+[^`]*`+", text))))
    assert {"paper", "benchmark", "test", "verify", "lab"} <= named <= targets
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f"make {name} " in listed for name in named if name != "help" and not name.startswith("setup-"))


def test_tests_that_pages_name_are_there():
    named = re.findall(
        r"`(?:tests/)?(test_\w+(?:\.py)?)`", "".join(prose(page) for page in PAGES if page.suffix == ".md")
    )
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    functions = set(re.findall(r"^def (test_\w+)", "\n".join(files.values()), re.M))
    assert len(named) > 20 and set(named) <= functions | set(files), set(named) - functions - set(files)


def test_the_readme_is_short_and_the_tree_of_the_docs_has_every_module():
    assert len(PAGES[0].read_bytes()) <= 8_000
    text = (ROOT / "docs" / "extending.md").read_text().partition("## The package")[2]
    modules = {p.name for p in [*(ROOT / "cldiff").glob("*.py"), *(ROOT / "cldiff/report").glob("*.py")]}
    assert modules - {"__init__.py"} <= set(re.findall(r"\w+\.py", text))


def test_generated_parts_are_those_of_results_and_code(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in readme.PARTS:
        assert readme.filled(path) == path.read_text(), f"{path} is stale: `python -m cldiff readme` writes it anew"


def test_generated_parts_follow_results_and_a_lost_marker_is_an_error(monkeypatch, tmp_path):
    """A verdict that changes, an option more; nothing is written where one of the pages lacks a marker."""
    for name in (
        "README.md",
        "docs",
        "figures/paper-cpu",
        "figures/benchmark-digits",
        "figures/benchmark-mnist",
        "figures/benchmark-fashion_mnist",
        "results/paper-cpu",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name) if "results" in name else (
            shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        )(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    findings = Path("figures/paper-cpu/findings-mnist.md")
    first = readme.table_of(findings)[1][-1]
    findings.write_text(findings.read_text().replace(f"| {first} |", "| is new |", 1))
    monkeypatch.setitem(readme.METHODS, "other", type("Other", (Method,), {"label": "Another"}))
    readme.write_all()
    assert (
        "| is new |" in Path("README.md").read_text()
        and "| `other` | Another |" in Path("docs/protocol.md").read_text()
    )
    board, said = Path("figures/benchmark-digits/leaderboard-digits.md"), readme.benchmark()
    board.write_text(board.read_text().replace("| Distilled replay, weight 1 |", "| Distilled replay, weight 1 ‡ |"))
    assert "‡" in board.read_text() and readme.benchmark() == said  # of another machine
    protocol = Path("docs/protocol.md")
    protocol.write_text(protocol.read_text().replace("<!-- /methods -->", ""))
    findings.write_text(findings.read_text().replace("| is new |", "| is newer |"))
    with pytest.raises(Problem, match="docs/protocol.md lacks the lines <!-- methods: .* --> and <!-- /methods -->"):
        readme.write_all()
    assert "is newer" not in Path("README.md").read_text()


def test_the_start_page_has_a_line_for_each_notebook():
    text = prose(ROOT / "notebooks" / "start.ipynb")
    assert set(re.findall(r"\]\((\w+\.ipynb)\)", text)) == {path.name for path in NOTEBOOKS} - {"start.ipynb"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "figures/tutorials").glob("tutorial_?.ipynb")), ids=lambda path: path.stem
)
def test_executed_tutorials_are_those_of_now(path, tmp_path):
    source = ROOT / "notebooks" / path.name
    moved = tmp_path / path.name
    shutil.copy(source, moved)
    move_links(moved, source.parent, path.parent)
    wanted, found = ([cell.source for cell in nbformat.read(p, as_version=4).cells] for p in (moved, path))
    injected = [i for i, text in enumerate(found) if text.startswith("# Parameters")]
    assert [text for i, text in enumerate(found) if i not in injected] == wanted, "`make tutorials` executes it anew"


def test_what_is_said_of_a_page_is_whether_it_changed(monkeypatch, tmp_path, capsys):
    def part() -> str:
        return "new"

    path = tmp_path / "page.md"
    path.write_text("<!-- part: `python -m cldiff readme` writes this part -->\nold\n<!-- /part -->\n")
    monkeypatch.setattr(readme, "PARTS", {path: (part,)})
    readme.write_all()
    readme.write_all()
    assert capsys.readouterr().out == f"{path} was written\n{path} is up to date\n"


def test_results_that_the_table_of_the_readme_lacks_are_named(monkeypatch):
    def load(*words):
        scores = load_scores(*words)
        return scores[scores.label != readme.REPLAY]

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(readme, "load_scores", load)
    with pytest.raises(Problem, match=f"^no results of {readme.REPLAY} on mnist in results/paper-cpu: README's table"):
        readme.results()
