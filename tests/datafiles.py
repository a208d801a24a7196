"""Files of KMNIST and CIFAR-10 as their makers wrote them, with few images: every pixel says what it is."""

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

from cldiff.tasks import DATASETS

NUMBERS = {"train": 20, "t10k": 10}  # images of each class


def pixels(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Noise: no two pixels, rows, colours or images can be exchanged unnoticed."""
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def write_kmnist(root: Path) -> dict[str, np.ndarray]:
    """Images (N, 1, 28, 28) by split, labels 0, 1, ..., 9, 0, 1, ... The four archives, gzipped idx files."""
    raw = root / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    found = {}
    for seed, (part, n) in enumerate(NUMBERS.items()):
        found[part] = pixels((10 * n, 1, 28, 28), seed)
        images = struct.pack(">4i", 0x803, 10 * n, 28, 28) + found[part].tobytes()
        labels = struct.pack(">2i", 0x801, 10 * n) + bytes(range(10)) * n
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return found


def python2_pickle(images: np.ndarray, labels: list[int]) -> bytes:
    """{"data": uint8 (N, 3072), "labels": [...]} as Python 2 and its NumPy wrote it."""
    data = images.reshape(len(images), -1)
    return b"".join(
        [
            b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01",
            b"".join(b"J" + struct.pack("<i", n) for n in data.shape) + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + struct.pack("<i", data.size) + data.tobytes() + b"tbU\x06labels](",
            b"".join(b"K" + bytes([label]) for label in labels) + b"eu.",
        ]
    )


def write_cifar10(root: Path) -> dict[str, np.ndarray]:
    """Images (N, 3, 32, 32) by split, labels as above: five batches and the test batch in one archive."""
    root.mkdir(parents=True, exist_ok=True)
    found = {part: pixels((10 * n, 3, 32, 32), seed) for seed, (part, n) in enumerate(NUMBERS.items())}
    batches = {f"data_batch_{k + 1}": images for k, images in enumerate(np.split(found["train"], 5))}
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name, images in {**batches, "test_batch": found["t10k"]}.items():
            content = python2_pickle(images, list(range(10)) * (len(images) // 10))
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return found


def known(monkeypatch, dataset: str, root: Path) -> dict[str, np.ndarray]:
    """Writes the files of a data set and makes their hashes the known ones."""
    found = {"kmnist": write_kmnist, "cifar10": write_cifar10}[dataset](root)
    for name in DATASETS[dataset].sha256:
        content = next(root.rglob(name)).read_bytes()
        monkeypatch.setitem(DATASETS[dataset].sha256, name, hashlib.sha256(content).hexdigest())
    return found
