"""check_paper.py: what equals the paper's protocol, and what does not."""

import shutil
import subprocess
import sys
from pathlib import Path

import check_paper
import pytest
from check_paper import COMPUTED, FLOOR, ROWS, line, page

from cldiff.errors import Problem
from cldiff.rows import STUDY
from cldiff.run import Run

ROOT = Path(__file__).parents[1]
PAPER = dict(multipliers=(1, 2, 2, 2), attention=16)
FINISHED = ROOT / "results" / "paper-cpu"


def verdicts(runs: list[Run]) -> dict[str, str]:
    return {name: line(row, runs)[1] for name, row in ROWS.items() if name != FLOOR}


def test_every_parameter_has_a_row_with_a_source():
    no_protocol = {"options", "deterministic", "compiled"}  # of methods that the paper does not have, and of speed
    asked = {name.partition("/")[0] for name in ROWS if name != FLOOR}
    assert asked == {*Run.names(), *COMPUTED} - no_protocol
    assert all(row["source"] and (row["relation"] == "not stated") == (not row["value"]) for row in ROWS.values())


def test_all_that_the_paper_states_is_equal_in_runs_of_its_protocol_but_for_what_restarts():
    runs = [Run(d, m, w, **PAPER) for d in ("mnist", "fashion_mnist") for m, w, *_ in STUDY]
    found = verdicts(runs)
    assert [name for name, verdict in found.items() if verdict == "differs"] == ["warm_up", "ema"]
    assert {name for name, verdict in found.items() if verdict == "not stated"} > {"weight/l2", "samples", "seed"}


@pytest.mark.parametrize("name, runs, expected", [
    ("steps", [Run()], ("equal", "20,000", "20,000")),
    ("buffer", [Run(buffer=n) for n in (200, 20, 100)], ("differs", "200", "20 / 100 / 200")),
    ("weight/replay", [Run(method="replay"), Run(method="l2", weight=0.01)], ("differs", "0.01 / 1", "1")),
    ("weight/generative", [Run()], ("differs", "1", "none")),
    ("weight/l2", [Run(method="l2", weight=0.01)], ("not stated", "", "0.01")),
    ("tasks", [Run(), Run(tasks=2)], ("differs", "5", "2 / 5")),
    ("tasks", [Run(dataset="mnist_fashion")], ("differs", "5", "10")),
    ("start", [Run(), Run(start="mnist-finetune-s0-1")], ("not stated", "", "mnist-finetune-s0-1 / none")),
])  # fmt: skip
def test_a_line_has_the_values_of_all_runs(name, runs, expected):
    assert line(ROWS[name], runs) == (name, *expected)


def test_published_runs_are_one_aligned_table_and_no_error():
    done = subprocess.run(
        [sys.executable, "tests/check_paper.py", str(FINISHED)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    title, _, head, *lines, _, floor = done.stdout.splitlines()
    count = len(list(FINISHED.glob("*/result.json")))
    assert title.startswith(f"{FINISHED}: {count} finished runs. ") and len(lines) == len(ROWS) - 1
    runs = head.index("these runs")
    assert all(text[runs - 2 : runs] == "  " and text[runs] != " " for text in lines)
    found = {text.split()[0]: text.split()[1:] for text in lines}
    assert found["steps"] == ["equal", "20,000", "20,000"] and found["batch"] == ["differs", "128", "32"]
    assert found["dataset"] == ["equal", *"mnist / fashion_mnist fashion_mnist / mnist".split()]
    assert "of finetuning's average, within the 0.2 that" in floor


def test_a_floor_that_is_not_far_below_finetuning_is_said(monkeypatch):
    monkeypatch.setitem(ROWS, FLOOR, {**ROWS[FLOOR], "value": "0.001"})
    assert ", beyond the 0.001 that is asked here" in page(FINISHED)


def test_runs_without_finetuning_have_no_floor(tmp_path):
    run = next(FINISHED.glob("*-replay-w1-s0-*"))
    shutil.copytree(run, tmp_path / run.name)
    assert page(tmp_path).endswith("no run of finetuning to compare it with")


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(Problem, match=f"^no finished run in {tmp_path}: [^\n]*$"):
        page(tmp_path)
    run = next(FINISHED.glob("*-replay-w1-s0-*"))
    shutil.copytree(run, tmp_path / run.name)
    (tmp_path / run.name / "scores.csv").write_text("")
    monkeypatch.setattr(sys, "argv", ["check_paper.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        check_paper.main()
    assert stopped.value.code == f"error: {tmp_path / run.name}: scores.csv is not the file that was written"
