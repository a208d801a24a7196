"""Data sets, checked by SHA-256, cut into sequences of tasks. A new data set is an entry of DATASETS."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .errors import Problem
from .files import answered, locked
from .lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SPLIT_SEED = 0  # the splits are part of the protocol: the same for every run and every seed


class DataError(Problem):
    """Data that is missing or damaged; the message says which file and what to do."""


@dataclass(frozen=True)
class Split:
    """images: uint8 (N, C, H, W); labels: int64 (N,), the classes of the whole data set."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Split:
        return Split(self.images[index], self.labels[index])


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


def load_tasks(dataset: str, root: str | Path = "data", first: int = 0) -> list[Task]:
    """The tasks of a data set of DATASETS: its classes in label order, two for each task, {0, 1}, {2, 3}, ...; the
    first so many, or all (0).

    root: the folder of its files, in torchvision's layout; what is missing is downloaded. Raises ValueError for an
    unknown data set, DataError for a file that is damaged or cannot be had.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}; known: {', '.join(DATASETS)}")
    known = DATASETS[dataset]
    train, test = known.load(Path(root), known.sha256)
    if train.images.shape[1] != known.colours or int(train.labels.max()) + 1 != known.classes:
        raise DataError(
            f"{known.title} has {train.images.shape[1]} colours and {int(train.labels.max()) + 1} classes, "
            f"expected {known.colours} and {known.classes}: mend its entry in DATASETS"
        )
    train, validation = _cut(train, one_in=10)
    tasks = []
    for index in range(first or known.tasks):
        classes = tuple(range(known.classes_per_task * index, known.classes_per_task * (index + 1)))
        of_task = [split[torch.isin(split.labels, torch.tensor(classes))] for split in (train, validation, test)]
        tasks.append(Task(index, classes, *of_task))
    return tasks


def data_sha256(dataset: str) -> str:
    """One hash for the data set: of its files' hashes, all of which load_tasks has checked."""
    return hashlib.sha256("".join(DATASETS[dataset].sha256.values()).encode()).hexdigest()


def _cut(split: Split, one_in: int) -> tuple[Split, Split]:
    """(rest, part): the part holds one in `one_in` images of each class, drawn once and for all."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(SPLIT_SEED))
    part = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique():
        members = order[split.labels[order] == label]
        part[members[: len(members) // one_in]] = True
    return split[~part], split[part]


def _load_digits(root: Path, sha256: dict[str, str]) -> tuple[Split, Split]:
    """scikit-learn's digits: 8x8 pixels of 17 grey values, stretched to 0 .. 255; a fifth is the test split. Read from
    the file in its package: importing the package would cost each run a second and 60 MB."""
    try:
        folder = Path(find_spec("sklearn").submodule_search_locations[0])
        table = torch.from_numpy(np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=","))
    except (AttributeError, OSError, ValueError) as error:
        raise DataError(
            f"scikit-learn's digits.csv.gz cannot be read ({type(error).__name__}): reinstall scikit-learn"
        ) from None
    images = (table[:, :-1] * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = table[:, -1].long()
    found = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    if found != sha256["images and labels"]:
        raise DataError(
            f"scikit-learn's digits have changed: SHA-256 {found[:8]}..., "
            f"expected {sha256['images and labels'][:8]}...; reinstall scikit-learn"
        )
    return _cut(Split(images, labels), one_in=5)


def _load_idx(name: str, root: Path, sha256: dict[str, str]) -> tuple[Split, Split]:
    """A data set of torchvision in the files of MNIST: `name` is that of its class there."""
    import torchvision.datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file
    from torchvision.datasets.utils import check_md5, extract_archive

    source = getattr(torchvision.datasets, name)
    raw = root / source.__name__ / "raw"
    try:  # runs that start together must not unpack into the same file
        lock = locked(raw / ".lock")
    except OSError as error:
        if not all((raw / name).is_file() for name in sha256):
            raise DataError(f"cannot write to the data folder {raw}: {error.strerror}") from None
        lock = nullcontext()  # somebody keeps them for everybody
    with lock:
        for path in (raw / found for name, _ in source.resources for found in (name, name.removesuffix(".gz"))):
            if path.is_dir():
                raise DataError(f"{path} is a folder: expected a file; move the file inside it to its place")
        for name, md5 in source.resources:
            if (raw / name).exists() and not check_md5(str(raw / name), md5):
                raise DataError(f"{raw / name} is damaged (wrong checksum): delete it, and run again")
        for name, _ in source.resources:
            archive, file = raw / name, raw / name.removesuffix(".gz")
            if archive.exists() and not file.exists():
                extract_archive(str(archive), str(raw))
            if not file.exists():
                try:
                    with answered():
                        source(root, download=True)
                except Exception as error:
                    near = file.with_name(file.name.replace("-idx", ".idx"))  # as other tools unpack it
                    todo = f"rename {near} to {file.name}" if near.exists() else f"put it into {raw}"
                    raise DataError(
                        f"{archive.name} is missing: {todo} (no download: {type(error).__name__})"
                    ) from None
            if hashlib.sha256(file.read_bytes()).hexdigest() != sha256[file.name]:
                raise DataError(f"{file} is damaged (wrong SHA-256): delete it, and run again")
        splits = [
            Split(
                read_image_file(str(raw / f"{part}-images-idx3-ubyte"))[:, None],
                read_label_file(str(raw / f"{part}-labels-idx1-ubyte")),
            )
            for part in ("train", "t10k")
        ]
    return splits[0], splits[1]


@dataclass(frozen=True)
class Dataset:
    title: str
    load: Callable[[Path, dict[str, str]], tuple[Split, Split]]  # (root, sha256) -> training and test images
    sha256: dict[str, str]  # of what it is loaded from, by name
    colours: int = 1
    classes: int = 10
    classes_per_task: int = 2
    lenet_epochs: int = 8  # of the LeNet whose features are compared

    @property
    def tasks(self) -> int:
        return self.classes // self.classes_per_task


DATASETS = {
    "digits": Dataset(
        "scikit-learn's digits",
        _load_digits,
        {
            "images and labels": "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382",
        },
        lenet_epochs=30,
    ),  # 1,300 images
    "mnist": Dataset(
        "MNIST",
        partial(_load_idx, "MNIST"),
        {
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": Dataset(
        "Fashion-MNIST",
        partial(_load_idx, "FashionMNIST"),
        {
            "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
}
