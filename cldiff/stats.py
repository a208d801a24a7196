"""What becomes of a metric over a sequence of tasks, over seeds, and between methods."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from .metrics import Metric, OfImages, metrics_of

DRAWS = 10_000  # of the bootstrap of a difference
CHANCE = {  # what an interval over so many seeds asks for
    2: "both agree in sign, which chance alone does one time in two",
    3: "all agree in sign, which chance alone does one time in four",
}
HEADLINES: dict[str, Metric] = metrics_of(Metric, headline=True)


def average(matrix: np.ndarray) -> float:
    """Mean over tasks after the last one: the mean of the last row of m[j, i], task i after training on task j."""
    return float(np.mean(_square(matrix)[-1]))


def forgetting(matrix: np.ndarray) -> float:
    """Mean over all tasks but the last of m[N, i] - m[i, i]. For FID and BPD positive means worse."""
    m = _square(matrix)
    if len(m) < 2:
        raise ValueError("forgetting needs at least two tasks")
    return float(np.mean(m[-1, :-1] - np.diag(m)[:-1]))


def _square(matrix: np.ndarray) -> np.ndarray:
    m = np.asarray(matrix, dtype=float)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or m.size == 0:
        raise ValueError(f"a result matrix of shape {m.shape}: expected (N, N), rows after each task")
    return m


def result_matrix(scores: pd.DataFrame, metric: str, split: str | None = None, extractor: str = "lenet") -> np.ndarray:
    """m[j, i] of one run's scores: rows after each task, columns by task, NaN above the diagonal.

    split, extractor: which images a distance compares with, and in whose features. Raises ValueError if the scores are
    not those of one run.
    """
    rows = scores[
        (scores.metric == metric)
        & (scores.split.isna() if split is None else scores.split == split)
        & (scores.extractor.isna() | (scores.extractor == extractor))
    ]
    if rows.empty:
        pairs = scores[scores.metric == metric][["split", "extractor"]].drop_duplicates()
        known = pairs.astype(object).where(pairs.notna(), None).to_numpy().tolist()
        raise ValueError(
            f"no {metric} with split={split!r}, extractor={extractor!r} among these scores: expected one of "
            f"{known or sorted(scores.metric.unique())}"
        )
    if rows.duplicated(["after_task", "eval_task"]).any():
        raise ValueError(f"several values of {metric} for a task: expected one run, and one number of images")
    matrix = np.full((int(rows.after_task.max()),) * 2, np.nan)
    matrix[rows.after_task.astype(int) - 1, rows.eval_task.astype(int) - 1] = rows.value
    return matrix


def sign(metric: str) -> int:
    """+1 where less is better, -1 where more is."""
    return -1 if HEADLINES[metric].higher else 1


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each run and headline metric that was measured: its average, its mean over tasks right after each was
    learned, and its forgetting, which of a metric of which more is better counts what was lost, so that positive means
    worse for all. Raises ValueError for two data sets, two runs of one label and seed, or of one label and two
    weights."""
    rows = []
    if "dataset" in scores and scores.dataset.nunique() > 1:
        raise ValueError(f"scores of {' and '.join(scores.dataset.unique())}: expected those of one data set")
    runs = scores[["run", "label", "seed", "weight"]].drop_duplicates()
    for found, same in ((runs, ["label", "seed"]), (runs.drop_duplicates(["label", "weight"]), "label")):
        for _, twins in found[found.duplicated(same, keep=False)].groupby(same, sort=False):
            raise ValueError(
                f"{' and '.join(twins.run[:2])} would be one row of a table: give their methods labels of their own "
                "or, where the method is one, delete or move one of them"
            )
    for (name, label, seed), run in scores.groupby(["run", "label", "seed"], sort=False):
        for metric, m in HEADLINES.items():
            if (run.metric == metric).any():
                matrix = result_matrix(run, metric, m.split)
                rows.append(
                    {
                        "run": name,
                        "label": label,
                        "seed": seed,
                        "metric": metric,
                        "average": average(matrix),
                        "learned": float(np.diag(matrix).mean()),
                        "forgetting": sign(metric) * forgetting(matrix),
                    }
                )
    return pd.DataFrame(rows)


def ranking(summary: pd.DataFrame, metric: str, kind: str = "average") -> list[str]:
    """The labels by their means over seeds of a metric's "average" or "forgetting", the best first."""
    means = summary[summary.metric == metric].groupby("label", sort=False)[kind].mean()
    more = kind == "average" and HEADLINES[metric].higher
    return list(means.sort_values(ascending=not more, kind="stable").index)


def summarise_replicates(bootstrap: pd.DataFrame) -> pd.DataFrame:
    """summarise() of each replicate: one row for each run, metric and replicate."""
    columns = [name for name in bootstrap.columns if name.startswith("replicate")]
    tables = []
    for (name, label, seed, metric), rows in bootstrap.groupby(["run", "label", "seed", "metric"], sort=False):
        tasks = rows.after_task.max()
        last, learned = (
            rows[choice].set_index("eval_task")[columns]
            for choice in (rows.after_task == tasks, rows.after_task == rows.eval_task)
        )
        tables.append(
            pd.DataFrame(
                {
                    "run": name,
                    "label": label,
                    "seed": seed,
                    "metric": metric,
                    "replicate": range(len(columns)),
                    "average": last.mean().to_numpy(),
                    "learned": learned.mean().to_numpy(),
                    "forgetting": sign(metric) * (last - learned).drop(tasks).mean().to_numpy(),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


class Difference(NamedTuple):
    """Mean of a paired difference with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(one: np.ndarray, other: np.ndarray, draws: int = DRAWS, same_images: bool = False) -> Difference:
    """The mean over seeds of one - other, and where 95 % of its bootstrap over seeds and images lie.

    one, other: (S, 1 + K), a row for each seed, the same seeds in both: the value, then K replicates of it over
    resampled images. A draw picks S seeds with replacement and for each the image noise of one replicate, the same for
    both methods and, where all seeds are measured on the same images, whose noise more seeds do not average out, for
    all seeds. With one seed only images are resampled. Replicates count by their distance from their own mean, because
    the FID of a resample is larger than the FID.
    """
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(f"values of shapes {one.shape} and {other.shape}: expected the same seeds and replicates")
    difference = one - other
    value, noise = difference[:, 0], difference[:, 1:]
    random = np.random.default_rng(0)
    seeds = random.integers(len(value), size=(draws, len(value)))
    means = value[seeds].mean(1)
    if noise.size:
        noise = noise - noise.mean(1, keepdims=True)
        size = (draws, 1) if same_images else seeds.shape
        means += noise[seeds, random.integers(noise.shape[1], size=size)].mean(1)
    return Difference(float(value.mean()), *(float(q) for q in np.percentile(means, (2.5, 97.5))))


def compare(
    summary: pd.DataFrame, replicates: pd.DataFrame, one: str, other: str, metric: str, kind: str
) -> Difference:
    """paired_difference of two labels' "average" or "forgetting" of a metric, over the seeds that both have.

    summary: of summarise(); replicates: of summarise_replicates().
    """

    def values(label: str) -> pd.DataFrame:
        mean, noise = (t[(t.label == label) & (t.metric == metric)] for t in (summary, replicates))
        noise = noise.pivot(index="seed", columns="replicate", values=kind)
        return pd.concat([mean.set_index("seed")[kind], noise], axis=1)

    first, second = values(one), values(other)
    both = first.index.intersection(second.index)
    if both.empty:
        raise ValueError(f"{one} and {other} have no seed in common; expected runs of the same (SEEDS=)")
    same_images = isinstance(HEADLINES[metric], OfImages)
    return paired_difference(first.loc[both].to_numpy(), second.loc[both].to_numpy(), same_images=same_images)


def sweep_table(scores: pd.DataFrame) -> pd.DataFrame:
    """What a sweep is judged by, one row for each method, weight and seed: FID and KID against validation images.
    Finetuning stands for weight 0 of every method."""
    rows, alone = [], scores[scores.method == "finetune"]
    methods = scores[scores.weight.notna()].method.unique()
    if len(alone):  # beside it, weight 0 of an older sweep would be there twice
        scores = scores[scores.weight != 0]
    scores = pd.concat([scores, *(alone.assign(method=method, weight=0.0) for method in methods)])
    for (method, weight, seed), run in scores.groupby(["method", "weight", "seed"]):
        fid, kid = (result_matrix(run, metric, "validation") for metric in ("fid", "kid"))
        rows.append(
            {
                "method": method,
                "weight": weight,
                "seed": seed,
                "average FID": average(fid),
                "forgetting FID": forgetting(fid),
                "average KID": average(kid),
            }
        )
    return pd.DataFrame(rows)


def best_weights(scores: pd.DataFrame) -> dict[str, float]:
    """The rule of a sweep: for each method the weight above 0, which is finetuning, with the lowest average FID against
    validation images after the last task, mean over seeds; of equal weights the smallest."""
    means = sweep_table(scores[scores.weight > 0]).groupby(["method", "weight"])["average FID"].mean()
    return {method: float(means[method].idxmin()) for method in means.index.unique("method")}
