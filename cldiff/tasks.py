"""Data sets, checked by SHA-256, cut into sequences of tasks. A new data set is an entry of DATASETS."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .lazy import torch
from .loaders import DataError, Split, cut, load_cifar10, load_digits, load_idx, load_packed_idx

if TYPE_CHECKING:
    from torch import Tensor


# Orders of tasks: (array, seed) -> array.
ORDERS = {
    "label": lambda tasks, seed: tasks,
    "reversed": lambda tasks, seed: tasks[::-1],
    "shuffled": lambda tasks, seed: np.random.default_rng([seed, len(tasks)]).permutation(tasks),
}


@dataclass(frozen=True)
class Task:
    """One task of the sequence. `index` is the task ID, from 0; figures and result files count from 1."""

    index: int
    classes: tuple[int, ...]
    train: Split
    validation: Split  # a tenth of each class's training images
    test: Split


def to_model(images: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """The nearest of the 256 values of a pixel; what lies outside [-1, 1] is clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def sequence(
    dataset: str, first: int = 0, order: str = "label", classes_per_task: int = 2, seed: int = 0
) -> list[tuple[int, ...]]:
    """The classes of each task: those of a data set in label order, cut into tasks of so many, {0, 1}, {2, 3}, ...; the
    tasks in this order, one of ORDERS; the first so many of them, or all (0). Raises ValueError for an unknown
    order and a cut that does not come out even."""
    classes = DATASETS[dataset].classes
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: expected one of {', '.join(ORDERS)}")
    if classes_per_task < 1 or classes % classes_per_task:
        raise ValueError(
            f"classes_per_task={classes_per_task}: expected a divisor of {classes}, the classes of {dataset}"
        )
    starts = np.arange(0, classes, classes_per_task)
    starts = ORDERS[order](starts, seed)[: first or None]
    return [tuple(range(start, start + classes_per_task)) for start in starts.tolist()]


def load_tasks(dataset: str, root: str | Path = "data", first: int = 0, **cut_and_order) -> list[Task]:
    """The tasks of a data set of DATASETS, as sequence() lists them, whose parameters these are.

    root: the folder of its files, in torchvision's layout; what is missing is downloaded. Raises ValueError for an
    unknown data set, DataError for a file that is damaged or cannot be had.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}")
    splits = _splits(dataset, Path(root))
    tasks = []
    for index, classes in enumerate(sequence(dataset, first, **cut_and_order)):
        of_task = [split[torch.isin(split.labels, torch.tensor(classes))] for split in splits]
        tasks.append(Task(index, classes, *of_task))
    return tasks


def _splits(dataset: str, root: Path) -> list[Split]:
    """Training, validation and test images; those of a data set of several are those of its parts."""
    known = DATASETS[dataset]
    if known.parts:
        starts = np.cumsum([0, *(DATASETS[part].classes for part in known.parts)]).tolist()
        return [
            Split(
                torch.cat([split.images for split in splits]),
                torch.cat([split.labels + start for split, start in zip(splits, starts)]),
            )
            for splits in zip(*(_splits(part, root) for part in known.parts))
        ]
    train, test = known.load(root, known.sha256)
    for name, split in (("training", train), ("test", test)):
        images, labels = split.images, split.labels
        kinds = f"{images.dtype} {tuple(images.shape)}, labels {labels.dtype} {tuple(labels.shape)}"
        alike = images.shape[1:] == train.images.shape[1:] and labels.shape == images.shape[:1]
        known_kind = images.ndim == 4 and images.dtype == torch.uint8 and labels.dtype == torch.int64
        if not (alike and known_kind and images.shape[1] in (1, 3) and 4 <= images.shape[2] == images.shape[3]):
            raise DataError(
                f"{known.title}: its {name} images are {kinds}; expected square ones, uint8 (N, 1 or 3 colours, "
                "height, width), of 4 pixels or more, as large in both splits, and int64 (N,): mend its loader"
            )
        if images.shape[1] != known.colours or labels.unique().tolist() != list(range(known.classes)):
            raise DataError(
                f"{known.title} has {images.shape[1]} colours and {len(labels.unique())} classes up to {labels.max()} "
                f"in its {name} images, expected {known.colours} and all of 0 .. {known.classes - 1}: mend its loader, "
                "or its entry in DATASETS"
            )
    return [*cut(train, one_in=10), test]


def data_sha256(dataset: str) -> str:
    """One hash for the data set: of its files' hashes, all of which load_tasks has checked, or of its parts'."""
    known = DATASETS[dataset]
    hashes = map(data_sha256, known.parts) if known.parts else known.sha256.values()
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    title: str
    load: Callable[[Path, dict[str, str]], tuple[Split, Split]] | None  # (root, sha256) -> training and test images
    sha256: dict[str, str]  # of what it is loaded from, by name
    colours: int = 1
    classes: int = 10
    lenet_epochs: int = 8  # of the LeNet whose features are compared
    parts: tuple[str, ...] = ()  # instead of a loader: data sets of one size, whose classes follow each other


DATASETS = {
    "digits": Dataset(
        "scikit-learn's digits",
        load_digits,
        {
            "images and labels": "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382",
        },
        lenet_epochs=30,
    ),  # 1,300 images
    "mnist": Dataset(
        "MNIST",
        partial(load_idx, "MNIST"),
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": Dataset(
        "Fashion-MNIST",
        partial(load_idx, "FashionMNIST"),
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
    "kmnist": Dataset(
        "KMNIST",
        partial(load_packed_idx, "KMNIST"),
        {
            "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
    ),
    "cifar10": Dataset(
        "CIFAR-10",
        load_cifar10,
        {"cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"},
        colours=3,
    ),
    "mnist_fashion": Dataset("MNIST and Fashion-MNIST", None, {}, classes=20, parts=("mnist", "fashion_mnist")),
}
