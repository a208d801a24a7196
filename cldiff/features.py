"""Feature extractors: what FID compares, and what task accuracy asks."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import Problem
from .files import Damaged, answered, file_sha256, load_tensors, locked, save_tensors, write_atomically
from .tasks import Split, Task, to_model

LENETS = Path(__file__).parent / "lenet"  # trained once and kept with the package: numbers of two machines compare
BATCH = 64
SUMS = "SHA256SUMS"  # of these files, as sha256sum writes it
INCEPTION = "inception-2015-12-05.pt"  # NVIDIA's TorchScript of the original network, as clean-fid loads it
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # asked of what is downloaded


class FeatureError(Problem):
    """An extractor that cannot be had; the message says which file is missing and where it goes."""


class Extractor(NamedTuple):
    name: str  # as in the column `extractor` of scores.csv
    sha256: str  # of the file of its weights
    accuracy: float | None  # of its classifier on the data set's test images
    extract: Callable[[Tensor], tuple[Tensor, Tensor | None]]  # uint8 (N, C, H, W) -> features (N, F), classes (N,)


class LeNet(nn.Module):
    """LeCun et al.'s network with today's parts: two convolutions, 84 features after the last ReLU, 10 classes."""

    def __init__(self, size: int, colours: int = 1, classes: int = 10):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(colours, 16, 5, padding=2), nn.Conv2d(16, 32, 5, padding=2)
        self.hidden, self.last = nn.Linear(32 * (size // 4) ** 2, 84), nn.Linear(84, classes)
        self.dropout = nn.Dropout(0.25)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 84)."""
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        return F.relu(self.hidden(self.dropout(h.flatten(1))))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.features(x)))


def load_lenet(dataset: str, device: str | torch.device = "cpu", folder: Path = LENETS) -> Extractor:
    """The LeNet of a data set, 84 features. Raises FeatureError if its file is missing or damaged."""
    path = folder / f"{dataset}.pt"
    try:
        found = file_sha256(path)
        if f"{found}  {path.name}\n" not in (folder / SUMS).read_text():
            raise ValueError(f"not the file that {SUMS} lists")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net = LeNet(saved["size"], saved["colours"], len(saved["net"]["last.bias"]))
        net.load_state_dict(saved["net"])
        accuracy = saved["accuracy"]
    except FileNotFoundError:
        raise FeatureError(f"{path} is missing: `python -m cldiff features {dataset}` trains it") from None
    except Exception as error:
        raise FeatureError(
            f"{path} is damaged ({type(error).__name__}): `git checkout` it, or delete it and train another one with "
            f"`python -m cldiff features {dataset}`"
        ) from None
    # A device that has no memory left says nothing about the file.
    net = net.to(device, memory_format=torch.channels_last).eval()  # twice as fast on a CPU
    return Extractor("lenet", found, accuracy, partial(extract, net))


def load_inception(cache: str | Path, device: str | torch.device = "cpu") -> Extractor:
    """Inception v3's 2,048 features of images resized by clean-fid (Parmar et al. 2022), from weights in the folder
    `cache`, downloaded where they are missing. Raises FeatureError if they cannot be had."""
    from cleanfid.downloads_helper import check_download_inception
    from cleanfid.inception_torchscript import InceptionV3W

    path = Path(cache) / INCEPTION
    try:
        if not path.exists():  # where it is, the folder may be somebody's, to be read only
            with locked(path.with_suffix(".lock")), TemporaryDirectory(dir=cache) as unfinished:
                if not path.exists():  # another process may have had it downloaded
                    with answered():
                        check_download_inception(unfinished)
                    if file_sha256(Path(unfinished) / INCEPTION) != INCEPTION_SHA256:
                        raise OSError("not the file that was expected")
                    (Path(unfinished) / INCEPTION).replace(path)
    except OSError as error:
        raise FeatureError(
            f"no Inception features: {path} is missing and its download failed ({type(error).__name__}); "
            f"put NVIDIA's {INCEPTION} there"
        ) from None
    try:
        net = InceptionV3W(str(cache), download=False)
    except (RuntimeError, OSError, ValueError):  # a folder of that name is none of torch's files either
        raise FeatureError(f"no Inception features: {path} is damaged; delete it, it is downloaded again") from None
    net = net.to(device).eval()
    return Extractor("inception", file_sha256(path), None, lambda images: (inception_features(net, images), None))


@torch.inference_mode()
def extract(net: LeNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, F) and classes (N,) of uint8 images (N, C, H, W), on the CPU."""
    device = next(net.parameters()).device
    parts = images.split(250)  # so few stay in a CPU's caches
    features = torch.cat([net.features(to_model(part.to(device))) for part in parts])
    return features.cpu(), net.last(features).argmax(1).cpu()


@torch.inference_mode()
def inception_features(net: nn.Module, images: Tensor) -> Tensor:
    """(N, 2048) of images uint8 (N, C, H, W), grey (C = 1) or RGB (C = 3), on the CPU. Raises FeatureError for
    others."""
    from cleanfid.resize import build_resizer

    if images.shape[1] not in (1, 3):
        raise FeatureError(f"Inception takes grey or RGB images, not {images.shape[1]} colours: use inception=False")
    resize, device, features = build_resizer("clean"), next(net.parameters()).device, []
    for part in images.split(100):
        # clean-fid resizes the channels of a picture one by one: three grey images travel as one picture.
        planes = part.flatten(0, 1)
        planes = F.pad(planes, (0, 0, 0, 0, 0, -len(planes) % 3)).unflatten(0, (-1, 3)).permute(0, 2, 3, 1)
        large = torch.cat([torch.from_numpy(resize(picture)).permute(2, 0, 1) for picture in planes.numpy()])
        large = large[: part.shape[0] * part.shape[1]].unflatten(0, part.shape[:2]).expand(-1, 3, -1, -1)
        features.append(net(large.to(device)).float().cpu())
    return torch.cat(features)


def real_features(extractor: Extractor, tasks: list[Task], cache: str | Path) -> dict[str, list[Tensor]]:
    """Features (N, F) of the real images of each task, by split; those of Inception are kept in `cache`."""

    def compute() -> dict[str, list[Tensor]]:
        return {
            split: [extractor.extract(getattr(task, split).images)[0] for task in tasks]
            for split in ("train", "validation", "test")
        }

    if extractor.name == "lenet":
        return compute()
    parts = [hashlib.sha256(task.train.images.contiguous().numpy()).digest() for task in tasks]  # the cut, too
    images = hashlib.sha256(b"".join(parts)).hexdigest()
    path = Path(cache) / f"features-{extractor.name}-{extractor.sha256[:8]}-{images[:8]}.pt"
    if not path.exists():
        try:
            lock = locked(path.with_suffix(".lock"))
        except OSError:  # somebody's folder of data: they are computed by each run
            return compute()
        with lock:  # runs that start together: one computes them, the others wait
            if not path.exists():
                save_tensors(path, compute())
    try:
        return load_tensors(path)
    except Damaged as error:
        raise FeatureError(f"{error}: delete it, it is made again") from None


def train_lenet(tasks: list[Task], epochs: int) -> LeNet:
    """Adam with a one-cycle learning rate on the training splits; epochs fixed, nothing chosen on test images."""
    train = Split(torch.cat([task.train.images for task in tasks]), torch.cat([task.train.labels for task in tasks]))
    if len(train) < BATCH:
        raise Problem(f"a LeNet cannot be trained on {len(train)} images: expected at least {BATCH}, a batch")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = LeNet(train.images.shape[-1], train.images.shape[1], int(train.labels.max()) + 1).train()
        steps = epochs * (len(train) // BATCH)
        optimizer = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
        for _ in range(epochs):
            order = torch.randperm(len(train))
            for index in order[: len(train) // BATCH * BATCH].split(BATCH):
                part = train[index]
                optimizer.zero_grad()
                F.cross_entropy(net(to_model(part.images)), part.labels).backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def save_lenet(net: LeNet, tasks: list[Task], path: Path) -> float:
    """Keeps a trained LeNet with its accuracy on the test images, which it returns."""
    right = torch.cat([extract(net, task.test.images)[1] == task.test.labels for task in tasks])
    accuracy = right.double().mean().item()
    saved = {
        "net": {name: value.cpu() for name, value in net.state_dict().items()},
        "accuracy": accuracy,
        "size": tasks[0].test.images.shape[-1],
        "colours": tasks[0].test.images.shape[1],
    }
    write_atomically(path, partial(torch.save, saved))
    sums = [f"{file_sha256(p)}  {p.name}\n" for p in sorted(path.parent.glob("*.pt"))]
    write_atomically(path.parent / SUMS, lambda p: p.write_text("".join(sums)))
    return accuracy
