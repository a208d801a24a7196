"""What findings are asked of: the results of the study's rows, as arrays over their seeds, and comparisons of these."""

import numpy as np
import pandas as pd

from .rows import Row
from .stats import Difference, compare, paired_difference, ranking, result_matrix, summarise, summarise_replicates
from .study import labels_of

# The paper's rows, whatever else stands in STUDY.
FINETUNING, L2, REPLAY, LIGHT, GENERATIVE = STUDIED = labels_of(
    [Row("finetune"), Row("l2"), Row("replay", 1.0), Row("replay", 0.01), Row("generative", 1.0)]
)


def answer(difference: Difference) -> bool | None:
    """Is the first smaller? None: within noise."""
    return True if difference.high < 0 else False if difference.low > 0 else None


def less(one: np.ndarray | float, other: np.ndarray | float) -> bool | None:
    """Over seeds: is `one` smaller? Arrays over seeds, or numbers."""
    one, other = np.broadcast_arrays(np.asarray(one, float), np.asarray(other, float))
    return answer(paired_difference(one[:, None], other[:, None]))


def show(values: np.ndarray, form: str = ",.0f") -> str:
    """Mean ± standard error over seeds, in a format; with "%" in percent."""
    values, unit = np.asarray(values, float), ""
    if form.endswith("%"):
        values, form, unit = 100 * values, form[:-1] + "f", "%"
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{error}{unit}"


class Evidence:
    """What was measured of the studied rows that are there, as arrays over the seeds that all of these have.

    scores, curves, bootstrap: tidy tables of one data set, as load_scores and its siblings return; run: the parameters
    that its runs share. Raises ValueError without finetuning.
    """

    def __init__(self, scores: pd.DataFrame, curves: pd.DataFrame, bootstrap: pd.DataFrame, run: dict):
        self.missing = [label for label in STUDIED if label not in set(scores.label)]
        if FINETUNING in self.missing:
            raise ValueError(f"no results of {'; '.join(self.missing)}: the findings compare {'; '.join(STUDIED)}")
        of_label = scores[scores.label.isin(STUDIED)].groupby("label").seed.unique().map(set)
        if not (seeds := set.intersection(*of_label)):  # of an interrupted SEEDS=3, the whole ones
            raise ValueError("no seed that all rows have: the findings compare runs of the same seeds")
        self.scores, self.curves, bootstrap = (
            table[table.label.isin(STUDIED) & table.seed.isin(seeds)] for table in (scores, curves, bootstrap)
        )
        self.summary, self.replicates = summarise(self.scores), summarise_replicates(bootstrap)
        self.seeds, self.steps, self.early, self.late = len(seeds), run["steps"], run["early"], run["late"]

    def old_and_new(self, label: str, metric: str, split: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The mean of a metric over all tasks but the last: after the last task, and right after each was learned."""
        rows = self.scores[self.scores.label == label]
        matrices = [result_matrix(run, metric, split) for _, run in rows.groupby("seed")]
        return np.array([m[-1, :-1].mean() for m in matrices]), np.array([np.diag(m)[:-1].mean() for m in matrices])

    def task1(
        self, label: str, timestep: int | None = None, split: str = "validation"
    ) -> tuple[np.ndarray, np.ndarray]:
        """A curve of task 1, its loss at a timestep or else its bound: at the end of task 1, and at the end."""
        rows = self.curves[(self.curves.label == label) & (self.curves.split == split)]
        rows = rows[rows.timestep.isna() if timestep is None else rows.timestep == timestep]
        values = rows.pivot(index="step", columns="seed", values="bpd" if timestep is None else "loss")
        return values.loc[self.steps].to_numpy(), values.iloc[-1].to_numpy()

    def rise(self, label: str, timestep: int | None = None, split: str = "validation") -> np.ndarray:
        """Of a curve of task 1 from its end to the end: of the bound in bits, of a loss as a share."""
        before, after = self.task1(label, timestep, split)
        return after - before if timestep is None else after / before - 1

    def value(self, label: str, metric: str, kind: str = "average") -> np.ndarray:
        rows = self.summary[(self.summary.label == label) & (self.summary.metric == metric)]
        return rows.sort_values("seed")[kind].to_numpy()

    def smaller(self, one: str, other: str, metric: str, kind: str) -> bool | None:
        """Over seeds and images: is one label's score smaller than the other's?"""
        return answer(compare(self.summary, self.replicates, one, other, metric, kind))

    def smallest(self, label: str, metric: str, kind: str) -> bool | None:
        """Over seeds and images: is this label's score smaller than that of every other?"""
        others = [self.smaller(label, other, metric, kind) for other in STUDIED if other != label]
        return False if False in others else None if None in others else True

    def best(self, metric: str, kind: str = "average") -> str:
        """The label with the best mean."""
        return ranking(self.summary, metric, kind)[0]
