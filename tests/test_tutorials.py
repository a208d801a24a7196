"""The tutorials run from top to bottom."""

from pathlib import Path

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
    "tutorial_4": {"steps": 4, "number": 3, "samples": 8},
}


@pytest.mark.parametrize("name", TUTORIALS)
def test_tutorial_runs(name, tmp_path):
    execute(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / f"{name}.ipynb", TUTORIALS[name])
