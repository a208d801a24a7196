"""targets.csv: numbers published by others or fixed by mathematics. Rows of `check` "results" are shown beside finished
runs by check_paper.py; those of "benchmark" beside its own by notebooks/benchmark.ipynb."""

import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import DATA, need

from cldiff import Diffusion, UNet, frechet_distance, load_tasks
from cldiff.diffusion import VARIANCES, log_likelihood
from cldiff.features import load_lenet
from cldiff.rows import BENCHMARK

ROWS = list(csv.DictReader(open(Path(__file__).parent / "targets.csv")))
D = Diffusion()


def images(dataset: str) -> int:
    need(dataset)
    return sum(len(split) for task in load_tasks(dataset, DATA) for split in (task.train, task.validation, task.test))


def variance_bits(variance: str) -> float:
    ratio = D.posterior_variance[1:] / Diffusion(variance=variance).reverse_variance[1:]
    return (0.5 * (ratio - 1 - ratio.log()) / math.log(2)).sum().item()


def prior_bits() -> float:
    white = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return D.bits_per_dim(lambda x, t: x, white, terms=1)[1].item()


def uniform_bits() -> float:
    """A Gaussian so wide that it is flat over the inner pixel values, in units of their total probability."""
    pixels = torch.arange(1, 255, dtype=torch.float64) / 127.5 - 1
    p = log_likelihood(pixels, torch.zeros(()), torch.tensor(1e5, dtype=torch.float64)).exp()
    return -(p / p.sum() * 254 / 256).log2().mean().item()


def all_values() -> float:
    pixels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    return log_likelihood(pixels, torch.tensor(0.3), torch.tensor(0.05, dtype=torch.float64)).exp().sum().item()


def cifar10_parameters() -> int:
    """Without the weights of the one-hot task vector, which Ho et al. do not have."""
    net = UNet(32, 5, 128, (1, 2, 2, 2), blocks=2, attention=16, colours=3)
    return sum(p.numel() for p in net.parameters()) - 5 * net.embed[0].out_features


FOUND = {
    "posterior_variance_487": lambda: D.posterior_variance[487].item(),
    "posterior_variance_999": lambda: D.posterior_variance[999].item(),
    "alpha_bar_last": lambda: D.alpha_bar[-1].item(),
    "prior_bits_of_white": prior_bits,
    **{f"bits_of_variance_{v}": partial(variance_bits, v) for v in VARIANCES},
    "likelihood_of_all_pixel_values": all_values,
    "bits_of_uniform_pixels": uniform_bits,
    "frechet_distance_of_gaussians": lambda: frechet_distance([0, 0], torch.eye(2), [3, 4], 4 * torch.eye(2)),
    "unet_parameters_cifar10": cifar10_parameters,
    **{f"{d}_images": partial(images, d) for d in ("digits", "mnist", "fashion_mnist")},
    **{f"lenet_accuracy_{d}": (lambda d=d: load_lenet(d).accuracy) for d in ("digits", "mnist", "fashion_mnist")},
}


@pytest.mark.parametrize("row", [row for row in ROWS if row["check"] == "test"], ids=lambda row: row["name"])
def test_target(row):
    found = FOUND[row["name"]]()
    value, tolerance = float(row["value"]), float(row["tolerance"])
    good = {"equal": abs(found - value) <= tolerance, "at least": found >= value}
    assert good[row["relation"]], f"expected {row['relation']} {value} (± {tolerance}), found {found}: {row['source']}"


def test_every_target_is_checked():
    assert {row["name"] for row in ROWS if row["check"] == "test"} == FOUND.keys()
    assert all(row["source"] and row["check"] in ("test", "results", "benchmark") for row in ROWS)
    shown = [row["name"].split("/") for row in ROWS if row["check"] == "benchmark"]
    assert {method for _, method in shown} <= {row.method for row in BENCHMARK} and len(shown) == 3 * 6
