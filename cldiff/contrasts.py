"""An experiment of many arms: outcomes of each run, the choice of arms on validation images, and contrasts."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from .results import load_curves, load_scores
from .stats import average, forgetting, result_matrix


class Contrast(NamedTuple):
    """A question that is fixed before the runs: does the first arm differ from the second in an outcome?"""

    question: str
    first: str  # labels
    second: str
    outcome: str  # a column of outcomes()


def outcomes(scores: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """One row for each label and seed (the index), of the model after the last task.

    fid, bpd, recall (on test images), accuracy: averages over tasks; fid of old tasks and of the new one as fid_old and
    fid_new; bpd_old; fid_learned: mean over tasks right after each; forgetting, of FID, and forgetting_bpd; copied:
    share of old tasks' samples that are copies of buffer images, NaN where they were not counted. To choose by, on
    validation images: fid_validation, average over tasks; bpd_validation, of task 1.
    """
    rows = []
    ends = curves[curves.step == curves.step.max()].set_index("run")
    for (run, label, seed), part in scores.groupby(["run", "label", "seed"], sort=False):
        fid, bpd, recall = (result_matrix(part, metric, "test") for metric in ("fid", "bpd", "recall"))
        copied = result_matrix(part, "copied", "buffer") if (part.metric == "copied").any() else fid * np.nan
        end = ends.loc[run]
        rows.append(
            {
                "label": label,
                "seed": seed,
                "fid": average(fid),
                "bpd": average(bpd),
                "fid_old": fid[-1, :-1].mean(),
                "fid_new": fid[-1, -1],
                "bpd_old": bpd[-1, :-1].mean(),
                "fid_learned": np.diag(fid).mean(),
                "forgetting": forgetting(fid),
                "forgetting_bpd": forgetting(bpd),
                "recall": average(recall),
                "accuracy": average(result_matrix(part, "accuracy")),
                "copied": copied[-1, :-1].mean(),
                "fid_validation": average(result_matrix(part, "fid", "validation")),
                "bpd_validation": end.bpd.dropna().item(),
            }
        )
    return pd.DataFrame(rows).set_index(["label", "seed"])


def outcomes_by(
    name: str, settings: dict[object, dict], results: str | Path, dataset: str
) -> tuple[dict[object, pd.DataFrame], pd.DataFrame]:
    """Of runs that differ in some settings (parameters of Run, by what they are called): the scores of each, and
    outcomes() of all, with columns label, seed and `name`, what theirs are called."""
    scores = {key: load_scores(results, dataset, **values) for key, values in settings.items()}
    curves = {key: load_curves(results, dataset, **values) for key, values in settings.items()}
    found = {key: outcomes(scores[key], curves[key]) for key in settings}
    return scores, pd.concat(found, names=[name]).reset_index()


def best(found: pd.DataFrame, labels: list[str], *by: str) -> list[str]:
    """The label with the lowest mean over seeds of an outcome; of several outcomes, those that share the lowest sum of
    ranks in them, in the order of labels."""
    ranks = found.loc[labels, list(by)].groupby("label", sort=False).mean().rank().sum(axis=1)
    return list(ranks.index[ranks == ranks.min()])


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) correction of p-values for their number."""
    order, n = np.argsort(p), len(p)
    adjusted = np.empty(n)
    adjusted[order] = np.maximum.accumulate(p[order] * (n - np.arange(n))).clip(max=1)
    return adjusted


def compared(found: pd.DataFrame, contrasts: list[Contrast]) -> pd.DataFrame:
    """Each contrast with means over the seeds that both arms have, their difference with its 95 % interval, and p of a
    paired t-test, corrected by Holm for all of them; of one seed the difference alone, the others NaN. FID, which
    differs by factors, is compared by its logarithm: its means are geometric, its difference is their ratio."""
    rows, arms = [], list(found.index.unique(0))
    for question, first, second, outcome in contrasts:
        for asked, known in ((first, arms), (second, arms), (outcome, list(found.columns))):
            if asked not in known:
                raise ValueError(
                    f"{question}: no {asked!r} among what was measured; expected one of {'; '.join(known)}"
                )
        one, other = found.loc[first, outcome], found.loc[second, outcome]
        seeds = one.index.intersection(other.index)
        if seeds.empty:
            raise ValueError(
                f"{question}: {first} and {second} have no seed in common; expected runs of the same (SEEDS=)"
            )
        one, other, ratio = one[seeds], other[seeds], outcome.startswith("fid")
        if ratio:
            one, other = np.log(one), np.log(other)
        pairs = one - other
        low, high, p = np.nan, np.nan, np.nan
        if len(seeds) > 1:
            test = stats.ttest_1samp(pairs, 0)
            (low, high), p = test.confidence_interval(), test.pvalue
        back = np.exp if ratio else np.asarray
        rows.append(
            {
                "question": question,
                "first": first,
                "second": second,
                "outcome": outcome,
                "seeds": len(seeds),
                "mean of the first": back(one.mean()),
                "mean of the second": back(other.mean()),
                **dict(zip(("difference", "low", "high"), back([pairs.mean(), low, high]))),
                "ratio": ratio,
                "p": p,
            }
        )
    table = pd.DataFrame(rows)
    return table.assign(holm=holm(table.p.to_numpy()))
