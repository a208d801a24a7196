"""The tutorials run from top to bottom, and so does the code of their answers behind them."""

import re
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest

from cldiff.report.execute import execute

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

# With parameters so small that they run in seconds. Without widgets: nbclient now and then misses the reply to a cell that
# shows one (https://github.com/jupyter/nbclient/issues/312) and waits for ever; tests/browser.py moves them.
TUTORIALS = {
    "tutorial_1": {"toy_steps": 20, "digit_steps": 4, "points": 50},
    "tutorial_2": {"steps": 4, "look_every": 2, "samples": 14, "widgets": False},
    "tutorial_3": {"steps": 4, "samples": 16, "widgets": False},
    "tutorial_4": {"steps": 4, "samples": 16},
}
ANSWERS = {"tutorial_1": 0, "tutorial_2": 1, "tutorial_3": 1, "tutorial_4": 1}  # with code


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_runs(name, tmp_path):
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    answers = re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    assert len(answers) == ANSWERS[name]
    book.cells += [nbformat.v4.new_code_cell(dedent(code)) for code in answers]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "results").symlink_to(ROOT / "results")
    nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
    execute(tmp_path / "notebooks" / f"{name}.ipynb", tmp_path / f"{name}.ipynb", TUTORIALS[name])
