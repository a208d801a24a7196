"""Feature extractors: what FID compares, and what task accuracy asks."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from .runs import PROTOCOL, write_atomically
from .tasks import Split, Task, to_model

EPOCHS = {"digits": 30, "mnist": 6, "fashion_mnist": 8}
BATCH = 64


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


class Extractor(NamedTuple):
    name: str  # as in the column `extractor` of scores.csv
    sha256: str  # of its weights
    accuracy: float  # of its classifier on the data set's test images
    real: dict[str, list[Tensor]]  # features of the "train" and "test" images of each task, (N, F)
    extract: Callable[[Tensor], tuple[Tensor, Tensor]]  # uint8 (N, C, H, W) -> features (N, F), classes int64 (N,)


def load_lenet(dataset: str, tasks: list[Task], cache: str | Path, device: str | torch.device = "cpu") -> Extractor:
    """LeNet trained on all training images of the data set: from `cache`, or trained now and kept there."""
    path = Path(cache) / f"lenet-{dataset}-{PROTOCOL}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # runs that start together: one trains it, the others wait
        if not path.exists():
            save_lenet(train_lenet(dataset, tasks, device), tasks, path)
    net = LeNet(tasks[0].train.images.shape[-1], tasks[0].train.images.shape[1])
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(saved["net"])
        weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
        return Extractor("lenet", hashlib.sha256(weights).hexdigest(), saved["accuracy"], saved["real"],
                         partial(extract, net.to(device).eval()))
    except Exception as error:
        raise RuntimeError(f"{path} is damaged ({type(error).__name__}): delete it, it is trained again") from None


def save_lenet(net: LeNet, tasks: list[Task], path: Path) -> None:
    """Keeps a trained LeNet, with its accuracy and the features of all real images, which every run needs."""
    real = {split: [extract(net.eval(), getattr(task, split).images) for task in tasks] for split in ("train", "test")}
    right = torch.cat([classes == task.test.labels for task, (_, classes) in zip(tasks, real["test"])])
    saved = {"net": net.state_dict(), "accuracy": right.double().mean().item(),
             "real": {split: [features for features, _ in parts] for split, parts in real.items()}}
    write_atomically(path, lambda temporary: torch.save(saved, temporary))


@torch.inference_mode()
def extract(net: LeNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, F) and classes (N,) of uint8 images (N, C, H, W), on the CPU."""
    device = next(net.parameters()).device
    features = torch.cat([net.features(to_model(part.to(device))) for part in images.split(1000)])
    return features.cpu(), net.last(features).argmax(1).cpu()


def train_lenet(dataset: str, tasks: list[Task], device: str | torch.device = "cpu") -> LeNet:
    """Adam with a one-cycle learning rate on the training splits; epochs fixed, nothing chosen on test images."""
    train = Split(torch.cat([task.train.images for task in tasks]).to(device),
                  torch.cat([task.train.labels for task in tasks]).to(device))
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(0)
        net = LeNet(train.images.shape[-1], train.images.shape[1]).to(device).train()
        steps = EPOCHS[dataset] * (len(train) // BATCH)
        optimizer = torch.optim.Adam(net.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
        for _ in range(EPOCHS[dataset]):
            order = torch.randperm(len(train), device=device)
            for index in order[: len(train) // BATCH * BATCH].split(BATCH):
                part = train[index]
                optimizer.zero_grad()
                F.cross_entropy(net(to_model(part.images)), part.labels).backward()
                optimizer.step()
                schedule.step()
    return net
