"""run.ipynb on real images of 28 pixels, and with Inception features."""

import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import RAW, make_job, need
from test_notebooks import drawn

from cldiff.plan import jobs
from cldiff.study import runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("dataset, methods", [("mnist", {"finetune", "generative"}), ("fashion_mnist", {"finetune"})])
def test_real_images_of_28_pixels_go_through_the_notebook(tmp_path, dataset, methods):
    """Every method on images of this size: test_packed.py."""
    need(dataset)
    shutil.copytree(RAW[dataset], tmp_path / RAW[dataset].relative_to(ROOT))
    small = {"steps": 2, "curve_every": 1, "bound_images": 2, "bound_terms": 2, "curve_images": 2, "samples": 16}
    pending = {}
    for target, job in jobs("smoke").items():
        if job["kind"] == "run" and job["parameters"]["method"] in methods:
            pending[target] = {
                "notebook": str(ROOT / "notebooks" / "run.ipynb"),
                "output": str(tmp_path / target).replace("json", "ipynb"),
                "parameters": {
                    **job["parameters"],
                    **small,
                    "dataset": dataset,
                    "patch": 2,
                    "attention": 7,
                    "results": str(tmp_path / "results"),
                    "data": str(tmp_path / "data"),
                },
            }
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(lambda item: make_job(tmp_path / str(item[0]), item[1]), enumerate(pending.values())):
            assert done.returncode == 0, done.stderr
    assert (
        len(list((tmp_path / "results").glob(f"{dataset}-*/result.json")))
        == len(pending)
        == sum(run.method in methods for run in runs("smoke"))
    )


def test_papermill_takes_a_list_as_the_message_says_and_says_so_before_anything_is_written(tmp_path):
    """Its `-p` makes text of `[1, 2]`."""
    small = {"steps": 2, "curve_every": 2, "samples": 16, "channels": 8, "bound_images": 4, "results": tmp_path / "out"}
    words = [sys.executable, "-m", "papermill", ROOT / "notebooks" / "run.ipynb", tmp_path / "run.ipynb"]
    words += ["--cwd", ROOT / "notebooks", *(word for name in small for word in ("-p", name, small[name]))]

    def papermill(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*map(str, words), *more], capture_output=True, text=True)

    refused = papermill("-p", "multipliers", "[1, 2]")
    last = refused.stderr.strip().splitlines()[-1]
    assert refused.returncode and not (tmp_path / "out").exists()
    said = "TypeError: multipliers='[1, 2]': expected a list of integers of at least 1 (papermill takes one by "
    assert last.startswith(said)
    assert papermill(*shlex.split(last.removeprefix(said).removesuffix(")"))).returncode == 0
    assert json.loads(next((tmp_path / "out").glob("*/result.json")).read_text())["run"]["multipliers"] == [1, 2]


def test_a_run_with_inception_shows_both_extractors_and_without_its_weights_one_line(stand_in, tmp_path):
    run = next(
        job for job in jobs("smoke").values() if job["kind"] == "run" and job["parameters"]["method"] == "finetune"
    )
    with_and_without = {"with": stand_in, "without": tmp_path / "empty"}
    pending = {
        name: {
            "notebook": str(ROOT / "notebooks" / "run.ipynb"),
            "output": str(tmp_path / f"{name}.ipynb"),
            "parameters": {**run["parameters"], "inception": True, "results": str(tmp_path / name), "data": str(data)},
        }
        for name, data in with_and_without.items()
    }
    columns = {}
    for name in pending:
        done = make_job(tmp_path, pending[name], https_proxy="http://127.0.0.1:9")  # no way to a download
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if "Inception features" in line]
        assert len(lines) == (name == "without")
        drawn("table_protocols", dataset="digits", results=str(tmp_path / name), figures=str(tmp_path / name))
        columns[name] = (tmp_path / name / "table_protocols-digits.md").read_text().splitlines()[0]
    assert "put NVIDIA's inception-2015-12-05.pt there" in lines[0] and str(tmp_path / "empty") in lines[0]
    assert "Inception FID" in columns["with"] and "Inception" not in columns["without"]
    assert all("KID" in row and "recall" in row for row in columns.values())
