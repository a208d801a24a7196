"""What docs/results.md says in numbers of 20,000 steps is what the results in git have: another seed, or another hand,
changes one without the other."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cldiff import load_curves, load_scores
from cldiff.evidence import FINETUNING, GENERATIVE, L2, LIGHT, REPLAY
from cldiff.rows import STUDY
from cldiff.stats import result_matrix

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "paper-cpu"


@cache
def matrix(label: str, metric: str) -> np.ndarray:
    """Mean over seeds."""
    scores = load_scores(RESULTS, "mnist", STUDY)
    split = {"accuracy": None, "taken_for_current": None}.get(metric, "test")
    return np.mean(
        [result_matrix(of, metric, split) for _, of in scores[scores.label == label].groupby("seed")], axis=0
    )


def average(label: str, metric: str = "fid") -> float:
    return matrix(label, metric)[-1].mean()


def old(label: str, metric: str) -> float:
    return matrix(label, metric)[-1, :-1].mean()


def learned(label: str, metric: str = "fid") -> np.ndarray:
    return np.diag(matrix(label, metric))


def right(label: str) -> float:
    return 100 * old(label, "accuracy")


def curve(label: str, timestep: int | None, *steps: int) -> list[float]:
    """Task 1 on validation images: a loss as a multiple of that after task 1, or the bits, steps after it."""
    curves = load_curves(RESULTS, "mnist", STUDY)
    rows = curves[(curves.label == label) & (curves.split == "validation")]
    rows = rows[rows.timestep.isna() if timestep is None else rows.timestep == timestep]
    values = rows.groupby("step")["bpd" if timestep is None else "loss"].mean()
    return [values[20_000 + s] / (1 if timestep is None else values[20_000]) for s in steps]


FOUR = "{:.0f}, {:.0f}, {:.0f} and {:.0f}"
SAID = {
    "after each was learned, old tasks have FID {:.0f}; in the end they have {:,.0f}, and {:.0f} % of": lambda: (
        learned(FINETUNING)[:-1].mean(),
        old(FINETUNING, "fid"),
        right(FINETUNING),
    ),
    "Average BPD in the end is {:.3f}: *less* than that of five\ntasks just learned, {:.3f}.": lambda: (
        average(FINETUNING, "bpd"),
        learned(FINETUNING, "bpd").mean(),
    ),
    f"it learns new tasks badly (FID {FOUR} right after tasks 2 to 5, under finetuning {FOUR})": lambda: (
        *learned(L2)[1:],
        *learned(FINETUNING)[1:],
    ),
    "loses old ones all the same: {:.0f}, {:.0f} % right, {:.0f} % taken for the last task": lambda: (
        old(L2, "fid"),
        right(L2),
        100 * old(L2, "taken_for_current"),
    ),
    "Its average FID, {:.0f}, is below finetuning's {:,.0f}, its bits, {:.3f}, are above {:.3f}.": lambda: (
        average(L2),
        average(FINETUNING),
        average(L2, "bpd"),
        average(FINETUNING, "bpd"),
    ),
    "the worst bits: old tasks {:.0f}, {:.0f} % right, and {:.2f} bits ({:.2f} when learned)": lambda: (
        old(REPLAY, "fid"),
        right(REPLAY),
        old(REPLAY, "bpd"),
        learned(REPLAY, "bpd")[:-1].mean(),
    ),
    f"New tasks pay: FID right after tasks 2 to 5 is {FOUR}": lambda: learned(REPLAY)[1:],
    "has the best bits, {:.3f}, but only {:.3f} below finetuning": lambda: (
        average(LIGHT, "bpd"),
        average(FINETUNING, "bpd") - average(LIGHT, "bpd"),
    ),
    "Old tasks have FID {:.0f}, {:.0f} % right, and precision {:.2f} ({:.2f} when learned)": lambda: (
        old(LIGHT, "fid"),
        right(LIGHT),
        old(LIGHT, "precision"),
        learned(LIGHT, "precision")[:-1].mean(),
    ),
    "old tasks have FID {:.0f}, {:.0f} % right, and {:.2f} bits": lambda: (
        old(GENERATIVE, "fid"),
        right(GENERATIVE),
        old(GENERATIVE, "bpd"),
    ),
    "task 1's FID goes {:.0f}, {:.0f}, {:.0f}, {:.0f}, {:.0f}": lambda: matrix(GENERATIVE, "fid")[:, 0],
    "(average {:.0f} against {:.0f}) and better than with 0.01, the study's choice ({:.0f})": lambda: map(
        average, (GENERATIVE, REPLAY, LIGHT)
    ),
    "by BPD it is the other way round ({:.2f} against {:.2f} and {:.2f})": lambda: (
        average(label, "bpd") for label in (GENERATIVE, REPLAY, LIGHT)
    ),
    "is {:.2f} (t = 500) and {:.2f} times (t = 700) what it was, after all 20,000 it is {:.2f} and {:.2f}": lambda: (
        curve(FINETUNING, t, step)[0] for step in (1_000, 20_000) for t in (500, 700)
    ),
    "at t = 50 is {:.1f}, {:.1f}, {:.1f} and {:.1f} times what it was": lambda: curve(
        REPLAY, 50, 1_000, 5_000, 10_000, 20_000
    ),
    "from {:.2f} to {:.2f} after 1,000 to 3,000 steps": lambda: curve(REPLAY, None, 0, 2_000),
}


@pytest.mark.parametrize("words", SAID, ids=lambda words: words[:40])
def test_quoted_numbers_are_those_of_the_results(words):
    said = words.format(*SAID[words]())
    assert said in (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), f"results say: {said}"
