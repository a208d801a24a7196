"""Every notebook, executed. The paper through the Makefile, as a reader runs it, in a copy of the repository."""

import ast
import base64
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import faults
import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import TINY, tiny
from IPython.display import display
from papermill import inspect_notebook
from PIL import Image
from test_tutorials import TUTORIALS

from cldiff.files import file_sha256
from cldiff.plan import jobs
from cldiff.profiles import FIGURES, PRETRAINED
from cldiff.report.execute import execute
from cldiff.report.readme import table_of
from cldiff.results import FILES, WEIGHTS
from cldiff.rows import AXES, BENCHMARK, FEW, IN_ORDERS, REPLAY, STUDY, SWEEP, TEN
from cldiff.study import row_run, runs
from cldiff.tasks import sequence
from cldiff.work import make_run

matplotlib.use("agg")  # no windows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
METHODS = len({row_run(row).label for row in BENCHMARK})  # a default weight may be the study's
EXPERIMENTS = {  # rows, settings, and how many rows the tables have
    "axes": (AXES, {"steps": 200, "curve_every": 200, "buffer": 20}, {"axes": 8, "contrasts": 18}),
    "benchmark": (BENCHMARK, {}, {"leaderboard": METHODS, "price": METHODS, "published": 6}),
    "few": (FEW, {"tasks": 2}, {"few": len(FEW), "contrasts": 18}),
    "orders": (IN_ORDERS, {}, {"orders": 3, "contrasts": 9}),
    "pretrained": (PRETRAINED, {}, {"pretrained": 6, "contrasts": 9}),
    "replay": (REPLAY, {"tasks": 2}, {"arms": len(REPLAY), "contrasts": 14}),
    "ten": (TEN, {"classes_per_task": 1}, {"ten": 4, "contrasts": 10}),
    "sweep": (SWEEP, {}, {"sweep": 6 * len({row.method for row in SWEEP[1:]})}),
}
LONG = "ü" * 100
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem != "start")  # which has no code


def make(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """In strange surroundings: a long TMPDIR, the C locale, no HOME, settings of pip and matplotlib."""
    gone = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "HOME", "LC_ALL")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment |= {"LANG": "C", "PIP_USER": "1", "MPLBACKEND": "TkAgg", "TMPDIR": str(folder.parent / LONG)}
    environment["PYTHONPATH"] = str(folder)
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """A copy of the repository, in a path with spaces and umlauts, in which `make paper PROFILE=smoke` has run."""
    parent = tmp_path_factory.mktemp("repository")
    folder = parent / "Übung mit Leerzeichen"
    for new in (folder, parent / LONG):
        new.mkdir()
    faults.copy(folder)
    (folder / ".venv").mkdir()
    for path in Path(sys.prefix).iterdir():
        (folder / ".venv" / path.name).symlink_to(path)
    stamp = folder / ".venv" / ".installed"
    stamp.unlink(missing_ok=True)
    stamp.touch()
    done = make(folder, "paper", "PROFILE=smoke")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "figures/smoke is complete: open figures/smoke/paper.html"
    return folder


def drawn(name: str, **words: str) -> None:
    """What the cells of a notebook do, in this process: a kernel of its own takes seconds."""
    names = {"display": display}
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context():
        patch.chdir(ROOT / "notebooks")
        patch.setenv("SOURCE_DATE_EPOCH", "1704067200")  # use_style() would leave it to other tests
        for cell in nbformat.read(f"{name}.ipynb", 4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{name}.ipynb", "exec"), names)
                if "parameters" in cell.metadata.get("tags", []):
                    assert words.keys() <= names.keys()
                    names.update(words)
        plt.close("all")


def times(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for part in ("results", "figures")
        for p in sorted((folder / part).rglob("*"))
        if p.name in ("result.json",) or p.suffix in (".ipynb", ".html")
    }


def test_paper_leaves_every_run_table_and_figure(paper):
    for target in jobs("smoke"):
        assert (paper / target).exists(), target
    for run in runs("smoke"):
        folder = paper / "results" / "smoke" / run.name
        assert {p.name for p in folder.iterdir()} == {*FILES, WEIGHTS, "run.ipynb"}
    figures = {p.name for p in (paper / "figures" / "smoke").iterdir()}
    for name in ("figure_1", "figure_2", "figure_matrices", "figure_timesteps", "figure_samples"):
        assert {f"{name}-digits.pdf", f"{name}-digits.png", f"{name}-digits.ipynb"} <= figures
    assert {"figure_strip-digits.gif", "figure_strip-digits.ipynb", "figure_methods-digits.pdf"} <= figures
    for name, rows in (
        ("table", 5 + 1),
        ("table_differences", 10),
        ("table_task1", 1 + 2 * 5),
        ("table_protocols", 5 + 1),
        ("table_protocols_bpd", 5),
        ("findings", 7),
    ):
        text = (paper / "figures/smoke" / f"{name}-digits.md").read_text()
        assert f"{name}-digits.tex" in figures and len(text.splitlines()) == 2 + rows + 2 and "n = 1 seed" in text
    page = (paper / "figures/smoke/paper.html").read_text()
    pictures = {
        path.name
        for path in (paper / "figures/smoke").glob("figure_*.png")
        if base64.b64encode(path.read_bytes()).decode() in page
    }
    assert pictures == {name for name in figures if name.endswith(".png")} and page.count("<img ") == len(pictures) == 6
    assert (
        page.count('<div class="table"') == 6 + 3 and page.count("n = 1 seed") >= 5
    )  # and the benchmark's numbers, the parameters, and the cost
    assert len(page) < 3_000_000
    assert not list((paper.parent / LONG).glob("cldiff-*"))
    book = nbformat.read(paper / "figures/smoke/figure_1-digits.ipynb", 4)  # drawn in it, whatever MPLBACKEND says
    assert any("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", []))


def test_second_paper_does_nothing(paper):
    before = times(paper)
    done = make(paper, "paper", "PROFILE=smoke")
    assert done.returncode == 0 and times(paper) == before


def test_lost_and_damaged_runs_are_done_again_through_kills_to_the_same_results_and_no_other_is(paper, tmp_path):
    """`make test-faults` in short, from a paper that has two runs of five left, and figures of all."""
    noisy = faults.copy(tmp_path)
    for part in ("results", "figures"):
        shutil.copytree(paper / part / "smoke", noisy / part / "smoke")
    shutil.rmtree(noisy / "results/smoke/first_task")
    absent, kept, lost, damaged, _ = (noisy / "results" / "smoke" / run.name for run in runs("smoke"))
    shutil.rmtree(absent)
    os.utime(kept / "result.json", (2e9, 2e9))  # made before the clock was set back: no reason to make it again
    (lost / "result.json").unlink()
    (damaged / "scores.csv").write_bytes((damaged / "scores.csv").read_bytes()[:-20])
    before = times(noisy)
    done = subprocess.run(
        [sys.executable, "-m", "cldiff", "plan", "smoke"], cwd=noisy, capture_output=True, text=True, check=True
    )
    assert str(damaged.relative_to(noisy)) in done.stderr and "done again" in done.stderr
    killed, lost_by_kills = faults.disturb(noisy, "smoke", kills=4)
    assert sum(killed.values()) == 4 and not lost_by_kills
    assert faults.contents(noisy, "smoke") == faults.contents(paper, "smoke")
    after = times(noisy)
    # A run's notebook is written after its result: a kill between the two leaves a finished run without it.
    again = {p for p in before if any(f"/{f.name}/" in p for f in (lost, damaged))}
    open_to_kills = {p for p in again if p.endswith("/run.ipynb")}
    changed = {path for path in before.keys() - open_to_kills if after[path] != before[path]}
    assert changed == {p for p in before if p.startswith("figures/smoke/")} | again - open_to_kills


def test_a_study_is_drawn_as_far_as_its_runs_are_there(tmp_path):
    """Finetuning alone of one data set, and with one more row of the other: what `python -m cldiff draw` executes."""
    rows = ("fashion_mnist-finetune-s0-*", "mnist-finetune-s0-*", "mnist-replay-w1-s0-*")
    for folder in (path for row in rows for path in (ROOT / "results/paper-cpu").glob(row)):
        shutil.copytree(folder, tmp_path / "results" / folder.name)
    words = {"results": str(tmp_path / "results"), "figures": str(tmp_path / "figures")}
    for name in FIGURES:
        for dataset in ("mnist", "fashion_mnist"):
            drawn(name, dataset=dataset, **words)
    found = {
        name: [row[0] for row in table_of(tmp_path / f"figures/findings-{name}.md")[1:] if row[-1] != "not run yet"]
        for name in ("mnist", "fashion_mnist")
    }
    assert found == {"fashion_mnist": ["1", "6"], "mnist": ["1", "4", "6", "7"]}
    assert (tmp_path / "figures/figure_strip-mnist.gif").exists()
    execute(ROOT / "notebooks/paper.ipynb", tmp_path / "paper.ipynb", {"datasets": ["mnist", "fashion_mnist"], **words})
    page = (tmp_path / "paper.ipynb").read_text()
    for said in (
        "2 of the 5 methods (MNIST), 1 of the 5 methods (Fashion-MNIST)",
        "finding 7: **not run yet** (Fashion-MNIST)",
        "On MNIST (1 seed)",
        "not run yet: 2, 3, 4, 5, 7",
        "not run yet: 2, 3, 5",
    ):
        assert said in page


def test_unknown_profile_is_one_line(paper):
    done = make(paper, "paper", "PROFILE=huge")
    assert done.returncode != 0
    assert "error: unknown profile 'huge'; known: smoke, digits, " in done.stderr
    assert "Traceback" not in done.stderr and not (paper / "results" / "huge").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_source_is_clean(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in book.cells) == 1
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")


def test_every_notebook_is_executed_by_a_test():
    executed = {Path(job["notebook"]).stem for job in jobs("smoke").values() if job["kind"] != "first_task"}
    assert {path.stem for path in NOTEBOOKS} == executed | {
        *TUTORIALS,
        *EXPERIMENTS,
        "bench",
    }  # bench: by test_bench.py


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_notebook_of_an_experiment_draws_every_row(name, tmp_path):
    """On the results of one tiny run, its scores multiplied for each row and seed."""
    rows, settings, tables = EXPERIMENTS[name]
    first = tiny(**settings)
    make_run(first, tmp_path / first.name, device="cpu")
    factors = np.random.default_rng(0)
    labels = set()
    own = [row_run(row, seed=seed, **{**TINY, **settings}) for row, seed in itertools.product(rows, range(2))]
    for run in dict.fromkeys(own):
        folder = tmp_path / "results" / run.name
        shutil.copytree(tmp_path / first.name, folder)
        scores = pd.read_csv(folder / "scores.csv")
        scores.assign(value=scores.value * factors.uniform(1, 2)).to_csv(folder / "scores.csv", index=False)
        result = json.loads((folder / "result.json").read_text())
        result["run"] = dataclasses.asdict(run)
        result["sha256"]["scores.csv"] = file_sha256(folder / "scores.csv")
        (folder / "result.json").write_text(json.dumps(result))
        labels.add(run.label)
    drawn(name, dataset="digits", results=str(tmp_path / "results"), figures=str(tmp_path))
    for table, number in tables.items():
        assert len((tmp_path / f"{table}-digits.md").read_text().splitlines()) == 2 + number + 2
    if name == "replay":
        text = (tmp_path / "arms-digits.md").read_text()
        assert all(f"| {label} |" in text for label in labels)


def test_tables_figures_and_paper_follow_the_number_of_tasks(tmp_path):
    """Ten tasks; one tiny run stands for every row of the study."""
    settings = {"classes_per_task": 1, "order": "shuffled"}
    first = tiny(**settings)
    make_run(first, tmp_path / first.name, device="cpu")
    for row in STUDY:
        run = row_run(row, **{**TINY, **settings})
        folder = tmp_path / "results" / run.name
        shutil.copytree(tmp_path / first.name, folder)
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "run": dataclasses.asdict(run)}))
    words = {"results": str(tmp_path / "results"), "figures": str(tmp_path)}
    for name in FIGURES:
        drawn(name, dataset="digits", **words)
    execute(ROOT / "notebooks" / "paper.ipynb", tmp_path / "paper.ipynb", {"datasets": ["digits"], **words})
    text = (tmp_path / "paper.ipynb").read_text()
    for classes in sequence("digits", **first.sequence):
        assert "{" + ", ".join(map(str, classes)) + "}" in text
    with Image.open(tmp_path / "figure_strip-digits.gif") as strip:
        assert strip.n_frames == 10


def test_opened_by_hand_tables_figures_and_paper_show_the_published_results():
    shown = [job for job in jobs("paper-cpu").values() if job["kind"] in ("figure", "paper")]
    shown = [job for job in shown if job["parameters"].get("dataset") != "fashion_mnist"]
    assert len(shown) == len(FIGURES) + 1
    for job in shown:
        known = inspect_notebook(str(ROOT / job["notebook"]))
        assert {name: ast.literal_eval(known[name]["default"]) for name in job["parameters"]} == job["parameters"]


def test_the_paper_shows_every_data_set_of_a_profile(tmp_path):
    """Those of paper-cpu; smoke's paper has one data set."""
    out = tmp_path / "paper.ipynb"
    execute(ROOT / "notebooks" / "paper.ipynb", out, jobs("paper-cpu")["figures/paper-cpu/paper.ipynb"]["parameters"])
    shown = "\n".join(
        part["data"].get("text/markdown", "")
        for cell in nbformat.read(out, 4).cells
        for part in cell.get("outputs", [])
        if "data" in part
    )
    for name in ("table", "table_differences", "table_task1", "findings", "table_protocols"):
        for dataset in ("mnist", "fashion_mnist"):
            assert (ROOT / "figures/paper-cpu" / f"{name}-{dataset}.md").read_text().strip() in shown
    for caption in ("Table 14.", "Figure 5 (MNIST).", "Figure 5 (Fashion-MNIST)."):
        assert f"**{caption}**" in shown


def test_findings_compare_the_same_seeds(tmp_path):
    """An interrupted SEEDS=3 leaves some methods with fewer seeds."""
    for folder in (ROOT / "results/benchmark-digits").glob("digits-*"):
        if not folder.name.startswith("digits-finetune-") or "-s0-" in folder.name:
            shutil.copytree(folder, tmp_path / "results" / folder.name)
    drawn("findings", dataset="digits", results=str(tmp_path / "results"), figures=str(tmp_path))
    text = (tmp_path / "findings-digits.md").read_text()
    assert "n = 1 seed;" in text and " ± " not in text
