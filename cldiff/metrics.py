"""Metrics of one model on one task, and what becomes of them over a sequence of tasks."""

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .diffusion import VARIANCES, Diffusion, Model
from .tasks import to_model

REPLICATES = 50  # of each score, over resampled images
DRAWS = 10_000  # of the bootstrap of a difference


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


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6), by clean-fid.

    mean: (F,), cov: (F, F), float64, F of at least 2.
    """
    from cleanfid.fid import frechet_distance as clean_fid
    with warnings.catch_warnings():  # SciPy warns of clean-fid's call, and of features that never fire; both do no harm
        warnings.simplefilter("ignore")
        return float(clean_fid(np.asarray(mean1, float), np.asarray(cov1, float),
                               np.asarray(mean2, float), np.asarray(cov2, float)))


class Gaussian(NamedTuple):
    """Fitted to features (N, F), in float64."""

    mean: Tensor  # (F,)
    root: Tensor  # (min(N, F), F), upper triangular; root.T @ root is the covariance

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        x = features.double()
        return cls(x.mean(0), torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r").R)


def fid(features1: Tensor | Gaussian, features2: Tensor | Gaussian) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features, (N, F) and (M, F), in float64.

    Equal to frechet_distance of their means and covariances, without the square root of a matrix, which takes minutes
    where F is 2,048: with RᵀR and SᵀS the covariances, the trace of (RᵀR SᵀS)^(1/2) is the sum of R Sᵀ's singular values.
    What is compared often is given fitted.
    """
    (mean1, root1), (mean2, root2) = (x if isinstance(x, Gaussian) else Gaussian.of(x) for x in (features1, features2))
    common = torch.linalg.svdvals(root1 @ root2.T).sum()
    return ((mean1 - mean2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * common).item()


def fid_floor(features: Tensor, n: int) -> float:
    """FID between two disjoint parts of real features, n each, or halves where there are fewer than 2 n."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    n = min(n, len(features) // 2)
    return fid(features[order[:n]], features[order[n: 2 * n]])


def distances(features: Tensor, real: Tensor) -> dict[str, float]:
    """What tells generated (N, F) from real features (M, F), beside fid, by name.

    kid: the unbiased squared MMD with a cubic kernel (Binkowski et al. 2018), mean over 20 subsets of at most
    1,000; precision and recall with 3 neighbours, from equal numbers of both (Kynkäänniemi et al. 2019). All by
    torch-fidelity.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
    n = min(len(features), len(real))
    kid = kid_features_to_metric(features.double(), real.double(), kid_subsets=20, kid_subset_size=min(1000, n),
                                 verbose=False)
    some = lambda x: x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]]  # noqa: E731
    prc = prc_features_to_metric(some(features), some(real), verbose=False)
    return {"kid": kid[KEY_METRIC_KID_MEAN], "precision": prc[KEY_METRIC_PRECISION], "recall": prc[KEY_METRIC_RECALL]}


def sample_sizes(n: int) -> list[int]:
    """Numbers of images at which the bias of FID is looked at: 8, 16, 32, ... and n."""
    return [size for k in range(3, 40) if (size := 2**k) < n] + [n]


def resampled(n: int) -> Tensor:
    """Indices (REPLICATES, n) of bootstrap samples over n images: the same for every method, whose images pair up."""
    return torch.randint(n, (REPLICATES, n), generator=torch.Generator().manual_seed(0))


def task_accuracy(classes: Tensor, wanted: tuple[int, ...]) -> float:
    """Share of samples for a task ID that a classifier puts into that task's classes: int64 (N,)."""
    return torch.isin(classes, torch.tensor(wanted)).double().mean().item()


@torch.no_grad()
def losses_by_timestep(diffusion: Diffusion, model: Model, images: Tensor, timesteps: list[int],
                       generator: torch.Generator, batch_size: int = 512) -> list[float]:
    """L_simple at each timestep, mean over images uint8 (N, C, H, W), one draw of noise for each of them."""
    x0 = to_model(images)
    t = torch.tensor(timesteps, device=images.device).repeat_interleave(len(x0))
    x0 = x0.repeat(len(timesteps), 1, 1, 1)
    parts = [diffusion.losses(model, x, s, torch.randn(x.shape, generator=generator, device=x.device))
             for x, s in zip(x0.split(batch_size), t.split(batch_size))]
    return torch.cat(parts).double().view(len(timesteps), -1).mean(1).tolist()


BOUNDS = {  # the first is the paper's
    f"bpd{'' if variance == VARIANCES[0] else '_' + variance}{'' if clip else '_unclipped'}": (variance, clip)
    for variance in VARIANCES for clip in (True, False)}


def bits_per_dim(diffusion: Diffusion, model: Model, images: Tensor, terms: int, generator: torch.Generator,
                 names: tuple[str, ...] = ("bpd",)) -> dict[str, Tensor]:
    """The variational bound of each image uint8 (N, C, H, W), bits per dimension (N,), for names of BOUNDS."""
    found = diffusion.bounds(model, to_model(images), [BOUNDS[name] for name in names], generator, terms)
    return {name: total for name, (total, _, _) in zip(names, found)}


def result_matrix(scores: pd.DataFrame, metric: str, split: str | None = None, extractor: str = "lenet") -> np.ndarray:
    """m[j, i] of one run's scores: rows after each task, columns by task, NaN above the diagonal.

    split, extractor: which images a distance compares with, and in whose features. Raises ValueError if the scores are
    not those of one run.
    """
    rows = scores[(scores.metric == metric) & (scores.split.isna() if split is None else scores.split == split)
                  & (scores.extractor.isna() | (scores.extractor == extractor))]
    if rows.empty or rows.duplicated(["after_task", "eval_task"]).any():
        raise ValueError(f"no {metric} ({split}) of one run among these scores")
    matrix = np.full((int(rows.after_task.max()),) * 2, np.nan)
    matrix[rows.after_task.astype(int) - 1, rows.eval_task.astype(int) - 1] = rows.value
    return matrix


SPLITS = {"fid": "train", "bpd": "test", "accuracy": None}  # of the tables: FID against training images, as published


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Average and forgetting of each run and metric, one row each. The forgetting of task accuracy counts what was
    lost, so that positive means worse for all three. Raises ValueError for two runs of one label and seed."""
    rows = []
    runs = scores[["run", "label", "seed"]].drop_duplicates()
    if (twins := runs[runs.duplicated(["label", "seed"], keep=False)]).size:
        raise ValueError(f"{' and '.join(twins.run[:2])} would be one row of a table: delete or move one of them")
    for (name, label, seed), run in scores.groupby(["run", "label", "seed"], sort=False):
        for metric, split in SPLITS.items():
            matrix = result_matrix(run, metric, split)
            sign = -1 if metric == "accuracy" else 1
            rows.append({"run": name, "label": label, "seed": seed, "metric": metric, "average": average(matrix),
                         "forgetting": sign * forgetting(matrix)})
    return pd.DataFrame(rows)


def summarise_replicates(bootstrap: pd.DataFrame) -> pd.DataFrame:
    """summarise() of each replicate: one row for each run, metric and replicate."""
    columns = [name for name in bootstrap.columns if name.startswith("replicate")]
    tables = []
    for (name, label, seed, metric), rows in bootstrap.groupby(["run", "label", "seed", "metric"], sort=False):
        tasks = rows.after_task.max()
        last, learned = (rows[choice].set_index("eval_task")[columns] for choice in
                         (rows.after_task == tasks, rows.after_task == rows.eval_task))
        sign = -1 if metric == "accuracy" else 1
        tables.append(pd.DataFrame({
            "run": name, "label": label, "seed": seed, "metric": metric, "replicate": range(len(columns)),
            "average": last.mean().to_numpy(), "forgetting": sign * (last - learned).drop(tasks).mean().to_numpy()}))
    return pd.concat(tables, ignore_index=True)


class Difference(NamedTuple):
    """Mean of a paired difference with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_difference(one: np.ndarray, other: np.ndarray, draws: int = DRAWS) -> Difference:
    """The mean over seeds of one - other, and where 95 % of its bootstrap over seeds and images lie.

    one, other: (S, 1 + K), a row for each seed, the same seeds in both: the value, then K replicates of it over
    resampled images. A draw picks S seeds with replacement and for each the image noise of one replicate, the
    same for both methods. With one seed only images are resampled. Replicates count by their distance from their own
    mean, because the FID of a resample is larger than the FID.
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
        means += noise[seeds, random.integers(noise.shape[1], size=seeds.shape)].mean(1)
    return Difference(float(value.mean()), *(float(q) for q in np.percentile(means, (2.5, 97.5))))


def compare(summary: pd.DataFrame, replicates: pd.DataFrame, one: str, other: str, metric: str, kind: str) -> Difference:
    """paired_difference of two labels' "average" or "forgetting" of a metric, over the seeds that both have.

    summary: of summarise(); replicates: of summarise_replicates().
    """
    def values(label: str) -> pd.DataFrame:
        pick = lambda table: table[(table.label == label) & (table.metric == metric)]  # noqa: E731
        noise = pick(replicates).pivot(index="seed", columns="replicate", values=kind)
        return pd.concat([pick(summary).set_index("seed")[kind], noise], axis=1)

    first, second = values(one), values(other)
    both = first.index.intersection(second.index)
    return paired_difference(first.loc[both].to_numpy(), second.loc[both].to_numpy())
