"""Metrics of one model on one task, and what becomes of them over a sequence of tasks."""

import warnings

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .diffusion import Diffusion, Model
from .tasks import to_model


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


def fid(features1: Tensor, features2: Tensor) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features, (N, F) and (M, F), in float64."""
    x, y = features1.double().numpy(), features2.double().numpy()
    return frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))


def fid_floor(features: Tensor, n: int) -> float:
    """FID between two disjoint parts of real features, n each, or halves where there are fewer than 2 n."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    n = min(n, len(features) // 2)
    return fid(features[order[:n]], features[order[n: 2 * n]])


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


def bits_per_dim(diffusion: Diffusion, model: Model, images: Tensor, terms: int, generator: torch.Generator) -> float:
    """The variational bound of images uint8 (N, C, H, W), mean over images, bits per dimension."""
    total, _, _ = diffusion.bits_per_dim(model, to_model(images), terms=terms, generator=generator)
    return total.mean().item()


def result_matrix(scores: pd.DataFrame, metric: str, split: str | None = None) -> np.ndarray:
    """m[j, i] of one run's scores: rows after each task, columns by task, NaN above the diagonal.

    split: which images FID was compared with. Raises ValueError if the scores are not those of one run.
    """
    rows = scores[(scores.metric == metric) & (scores.split.isna() if split is None else scores.split == split)]
    if rows.empty or rows.duplicated(["after_task", "eval_task"]).any():
        raise ValueError(f"no {metric} ({split}) of one run among these scores")
    matrix = np.full((int(rows.after_task.max()),) * 2, np.nan)
    matrix[rows.after_task.astype(int) - 1, rows.eval_task.astype(int) - 1] = rows.value
    return matrix


SPLITS = {"fid": "train", "bpd": "test", "accuracy": None}  # of the tables: FID against training images, as published


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Average and forgetting of each run and metric, one row each. The forgetting of task accuracy counts what was
    lost, so that positive means worse for all three."""
    rows = []
    for (name, label, seed), run in scores.groupby(["run", "label", "seed"], sort=False):
        for metric, split in SPLITS.items():
            matrix = result_matrix(run, metric, split)
            sign = -1 if metric == "accuracy" else 1
            rows.append({"run": name, "label": label, "seed": seed, "metric": metric, "average": average(matrix),
                         "forgetting": sign * forgetting(matrix)})
    return pd.DataFrame(rows)
