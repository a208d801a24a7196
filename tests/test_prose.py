"""README and notebooks as text: spelling, links, code, and the commands that they name."""

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *NOTEBOOKS]


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


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        assert not target.startswith("http:") and (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_code_is_python(path):
    for text in code(path):
        ast.parse(textwrap.dedent(text))


def test_commands_in_the_readme_are_targets():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", " ".join(re.findall(r"`+[^`]*`+", prose(PAGES[0])))))
    assert named and named <= targets
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f"make {name} " in listed for name in named - {"help"})
