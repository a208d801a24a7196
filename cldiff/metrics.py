"""Metrics of one model on one task. A new metric is an entry of METRICS; what is measured when stands in measure.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from .diffusion import VARIANCES, Diffusion, Model
from .lazy import no_grad, torch
from .tasks import Task, to_model

if TYPE_CHECKING:
    from torch import Tensor

NEIGHBOURS = 3  # of precision and recall
REPLICATES = 50  # of each score, over resampled images


class Gaussian(NamedTuple):
    """Fitted to features (N, F), in float64."""

    mean: Tensor  # (F,)
    root: Tensor  # (min(N, F), F); root.T @ root is the covariance

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        x = features.double()
        return cls(x.mean(0), torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r").R)


def fid(features1: Tensor | Gaussian, features2: Tensor | Gaussian) -> float:
    """Fréchet distance between the Gaussians fitted to two sets of features, (N, F) and (M, F), in float64.

    Heusel et al. 2017, eq. 6, without the square root of a matrix, which takes minutes where F is 2,048: with RᵀR and
    SᵀS the covariances, the trace of (RᵀR SᵀS)^(1/2) is the sum of R Sᵀ's singular values. What is compared often is
    given fitted.
    """
    (mean1, root1), (mean2, root2) = (x if isinstance(x, Gaussian) else Gaussian.of(x) for x in (features1, features2))
    common = torch.linalg.svdvals(root1 @ root2.T).sum()
    return ((mean1 - mean2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * common).item()


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    """Fréchet distance of two Gaussians with these means (F,) and covariances (F, F), arrays or tensors, in float64
    (Heusel et al. 2017, eq. 6): fid() of what they are fitted to."""

    def gaussian(mean, cov) -> Gaussian:
        values, vectors = torch.linalg.eigh(torch.as_tensor(cov, dtype=torch.float64))
        root = values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T
        return Gaussian(torch.as_tensor(mean, dtype=torch.float64), root)

    return fid(gaussian(mean1, cov1), gaussian(mean2, cov2))


def fid_floor(features: Tensor, n: int) -> float:
    """FID between two disjoint parts of real features, n each, or halves where there are fewer than 2 n."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    n = min(n, len(features) // 2)
    return fid(features[order[:n]], features[order[n : 2 * n]])


def kid(features: Tensor, real: Tensor) -> float:
    """The unbiased squared MMD with a cubic kernel between features (N, F) and (M, F), mean over 20 subsets of at most
    1,000 (Binkowski et al. 2018), by torch-fidelity."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(1000, len(features), len(real))
    found = kid_features_to_metric(
        features.double(), real.double(), kid_subsets=20, kid_subset_size=size, verbose=False
    )
    return found[KEY_METRIC_KID_MEAN]


@lru_cache(maxsize=1)  # both come from the same distances
def precision_recall(features: Tensor, real: Tensor) -> tuple[float, float]:
    """Of generated (N, F) and real features (M, F), with NEIGHBOURS, from equal numbers of both (Kynkäänniemi et al.
    2019), by torch-fidelity."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    n = min(len(features), len(real))
    drawn, real = (x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]] for x in (features, real))
    found = prc_features_to_metric(drawn, real, prc_neighborhood=NEIGHBOURS, verbose=False)
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def sample_sizes(n: int) -> list[int]:
    """Numbers of images at which the bias of FID is looked at: 8, 16, 32, ... and n."""
    return [size for k in range(3, 40) if (size := 2**k) < n] + [n]


def resampled(n: int) -> Tensor:
    """Indices (REPLICATES, n) of bootstrap samples over n images: the same for every method, whose images pair up."""
    return torch.randint(n, (REPLICATES, n), generator=torch.Generator().manual_seed(0))


def task_accuracy(classes: Tensor, wanted: tuple[int, ...]) -> float:
    """Share of samples for a task ID that a classifier puts into that task's classes: int64 (N,)."""
    return torch.isin(classes, torch.tensor(wanted)).double().mean().item()


def copied(samples: Tensor, kept: Tensor) -> float:
    """Share of samples that are nearly one of the images kept of their task: closer to it than a third of the way to
    any other, in pixels (Yoon et al. 2023). samples: uint8 (N, C, H, W); kept: (M, C, H, W), M of at least 2."""
    near = torch.cdist(samples.flatten(1).double(), kept.flatten(1).double()).topk(2, largest=False).values
    return (near[:, 0] < near[:, 1] / 3).double().mean().item()


@no_grad
def losses_by_timestep(
    diffusion: Diffusion,
    model: Model,
    images: Tensor,
    timesteps: list[int],
    generator: torch.Generator,
    batch_size: int = 512,
) -> list[float]:
    """L_simple at each timestep, mean over images uint8 (N, C, H, W), one draw of noise for each of them."""
    x0 = to_model(images)
    t = torch.tensor(timesteps, device=images.device).repeat_interleave(len(x0))
    x0 = x0.repeat(len(timesteps), 1, 1, 1)
    parts = [
        diffusion.losses(model, x, s, torch.randn(x.shape, generator=generator, device=x.device))
        for x, s in zip(x0.split(batch_size), t.split(batch_size))
    ]
    return torch.cat(parts).double().view(len(timesteps), -1).mean(1).tolist()


class Real:
    """Features of real images, (N, F), and the Gaussian fitted to them."""

    def __init__(self, features: Tensor):
        self.features, self.gaussian = features, Gaussian.of(features)


class Drawn:
    """Samples of one model for one task in the eyes of one extractor: what their metrics are made of."""

    def __init__(self, features: Tensor, classes: Tensor | None, task: Task, current: Task):
        # (N, F); int64 (N,), None where the extractor has no classifier
        self.features, self.classes = features, classes
        self.task, self.current = task, current  # whose samples they are; the task that was learned last

    @cached_property
    def gaussian(self) -> Gaussian:
        return Gaussian.of(self.features)

    def resampled(self, pick: Tensor) -> Drawn:
        return Drawn(self.features[pick], None if self.classes is None else self.classes[pick], self.task, self.current)


class Predictor:
    """One model for one task, and test images that it has not seen: what bounds are made of, from one pass."""

    def __init__(self, diffusion: Diffusion, model: Model, images: Tensor, terms: int, generator: torch.Generator):
        """images: uint8 (N, C, H, W); terms: timesteps evaluated for each of them."""
        self.diffusion, self.model, self.images, self.terms, self.generator = diffusion, model, images, terms, generator

    @cached_property
    def bits(self) -> dict[tuple[str, bool], Tensor]:
        """The variational bound of each image in bits per dimension, (N,), by reverse variance and clipping."""
        found = self.diffusion.bounds(self.model, to_model(self.images), BOUNDS, self.generator, self.terms)
        return {choice: total for choice, (total, _, _) in zip(BOUNDS, found)}


@dataclass(frozen=True)
class Metric:
    """title, digits: in tables; higher: whether more is better; headline: whether tables of results show its average
    and forgetting, so that it is resampled too."""

    title: str
    digits: int
    value: Callable
    higher: bool = False
    headline: bool = False
    split: ClassVar[str | None] = None  # which images the tables compare with


class AgainstReal(Metric):
    """value(drawn: Drawn, real: Real) -> float, for each extractor and each split of real images."""

    split = "train"  # as published; test images do not reward memorisation and stand in scores.csv too


class OfClasses(Metric):
    """value(drawn: Drawn) -> float, for each extractor that has a classifier."""


class AgainstKept(Metric):
    """value(samples: uint8 (N, C, H, W), kept: uint8 (M, C, H, W)) -> float, in pixels; kept: the images of the task
    that methods of replay store, whether this one does or not."""

    split = "buffer"


@dataclass(frozen=True)
class OfImages(Metric):
    """value(predictor: Predictor) -> (N,), for each test image; the score is the mean. how: what the column `sampler`
    adds to the number of timesteps."""

    how: str = ""
    split = "test"


BOUNDS = [(variance, clip) for variance in VARIANCES for clip in (True, False)]  # the first is the paper's
METRICS: dict[str, Metric] = {
    "fid": AgainstReal("FID", 1, lambda drawn, real: fid(drawn.gaussian, real.gaussian), headline=True),
    "kid": AgainstReal("KID", 1, lambda drawn, real: kid(drawn.features, real.features)),
    "precision": AgainstReal(
        "precision", 3, lambda drawn, real: precision_recall(drawn.features, real.features)[0], True
    ),
    "recall": AgainstReal("recall", 3, lambda drawn, real: precision_recall(drawn.features, real.features)[1], True),
    "bpd": OfImages("BPD", 3, lambda p: p.bits["fixedlarge", True], headline=True, how="-fixedlarge-clipped"),
    "bpd_unclipped": OfImages("BPD, unclipped", 3, lambda p: p.bits["fixedlarge", False], how="-fixedlarge-unclipped"),
    "bpd_fixedsmall": OfImages("BPD, fixedsmall", 3, lambda p: p.bits["fixedsmall", True], how="-fixedsmall-clipped"),
    "bpd_fixedsmall_unclipped": OfImages(
        "BPD, fixedsmall, unclipped", 3, lambda p: p.bits["fixedsmall", False], how="-fixedsmall-unclipped"
    ),
    "accuracy": OfClasses("accuracy", 3, lambda d: task_accuracy(d.classes, d.task.classes), True, headline=True),
    "copied": AgainstKept("copies of the buffer", 3, copied),
    "taken_for_current": OfClasses("taken for the last task", 3, lambda d: task_accuracy(d.classes, d.current.classes)),
}


def metrics_of(kind: type[Metric], headline: bool = False) -> dict[str, Metric]:
    """Those of METRICS of a kind, or only those that tables of results show."""
    return {
        name: metric for name, metric in METRICS.items() if isinstance(metric, kind) and metric.headline >= headline
    }
