"""The files of data sets, checked by SHA-256 and read."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])


def cut(split: Split, one_in: int) -> tuple[Split, Split]:
    """(rest, part): the part holds one in `one_in` images of each class, drawn once and for all."""
    if len(split.labels) != len(split.images):
        raise DataError(f"{len(split.images)} images and {len(split.labels)} labels: expected one for each image")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(SPLIT_SEED))
    part = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique():
        members = order[split.labels[order] == label]
        part[members[: len(members) // one_in]] = True
    return split[~part], split[part]


def load_digits(root: Path, sha256: dict[str, str]) -> tuple[Split, Split]:
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
    return cut(Split(images, labels), one_in=5)


@contextmanager
def _to_oneself(folder: Path, files: list[Path], archives: Sequence[Path] = ()) -> Iterator[None]:
    """A folder of data in which these files are read or made: runs that start together must not write into the same
    one. Raises DataError where one is a folder, or is missing and cannot be written."""
    for path in (*files, *archives):
        if path.is_dir():
            raise DataError(f"{path} is a folder: expected a file; move the file inside it to its place")
    try:
        lock = locked(folder / ".lock")
    except OSError as error:
        if not all(path.exists() for path in files):
            raise DataError(f"cannot write to the data folder {folder}: {error.strerror}") from None
        lock = nullcontext()  # somebody keeps them for everybody
    with lock:
        yield


def load_idx(name: str, root: Path, sha256: dict[str, str]) -> tuple[Split, Split]:
    """A data set of torchvision in the files of MNIST: `name` is that of its class there."""
    import torchvision.datasets
    from torchvision.datasets.mnist import read_image_file, read_label_file
    from torchvision.datasets.utils import check_md5, extract_archive

    source = getattr(torchvision.datasets, name)
    raw = root / source.__name__ / "raw"
    with _to_oneself(raw, [raw / name for name in sha256], [raw / name for name, _ in source.resources]):
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
                    file.stat()  # torchvision takes files of its old form, which are elsewhere, for these
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


def _archive(path: Path, url: str, md5: str, sha256: str) -> bytes:
    """The content of an archive, downloaded where it is missing. It is read as it is: what is unpacked beside it, and
    whether that is whole, does not matter."""
    from torchvision.datasets.utils import download_url

    with _to_oneself(path.parent, [path]):
        if not path.exists():
            try:
                with answered():
                    download_url(url, str(path.parent), path.name, md5)
            except Exception as error:
                if not path.exists():  # else it is not whole, which its SHA-256 says
                    why = type(error).__name__
                    raise DataError(f"{path.name} is missing: put it into {path.parent} (no download: {why})") from None
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} is damaged (wrong SHA-256): delete it, and run again")
    return content


def load_packed_idx(name: str, root: Path, sha256: dict[str, str]) -> tuple[Split, Split]:
    """As load_idx, from files of which only the archives' hashes are known."""
    import torchvision.datasets

    source = getattr(torchvision.datasets, name)
    found = {}
    for file, md5 in source.resources:
        url = source.mirrors[0] + file
        content = gzip.decompress(_archive(root / name / "raw" / file, url, md5, sha256[file]))
        sizes = np.frombuffer(content, ">i4", content[3], offset=4)  # the fourth byte: how many sizes there are
        found[file] = torch.from_numpy(
            np.frombuffer(content, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes).copy()
        )
    splits = [
        Split(found[f"{part}-images-idx3-ubyte.gz"][:, None], found[f"{part}-labels-idx1-ubyte.gz"].long())
        for part in ("train", "t10k")
    ]
    return splits[0], splits[1]


def load_cifar10(root: Path, sha256: dict[str, str]) -> tuple[Split, Split]:
    """CIFAR-10 from its archive for Python: 32x32 pixels, red, green and blue."""
    from torchvision.datasets import CIFAR10 as source

    content = _archive(root / source.filename, source.url, source.tgz_md5, sha256[source.filename])
    splits = []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for names in (source.train_list, source.test_list):
            # Pickles run code; by its SHA-256 this archive is the one that everybody has.
            members = [archive.extractfile(f"{source.base_folder}/{name}") for name, _ in names]
            batches = [pickle.load(member, encoding="latin1") for member in members]
            images = torch.from_numpy(np.concatenate([batch["data"] for batch in batches])).view(-1, 3, 32, 32)
            splits.append(Split(images, torch.tensor([label for batch in batches for label in batch["labels"]])))
    return splits[0], splits[1]
