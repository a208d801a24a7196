"""What drawing costs before anything is drawn."""

import subprocess
import sys

import pytest

DRAW = (  # what the process imports that executes a notebook, and what the notebook's own process does
    "import cldiff.plan, cldiff.report.execute, cldiff.report.page",
    "import cldiff.contrasts, cldiff.findings, cldiff.report.benchmark, cldiff.report.plots, cldiff.report.tables",
    "from cldiff import METHODS, METRICS, DATASETS, Run, load_scores; Run(method='lora').name",
    "from cldiff.study import PROFILES, planned; planned('small')",
)


@pytest.mark.parametrize("code", DRAW)
def test_tables_and_figures_are_drawn_without_loading_torch(code):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print('torch' in sys.modules)"], capture_output=True
    )
    assert done.stdout.split() == [b"False"], done.stderr.decode()
