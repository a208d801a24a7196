"""What a continual-learning method may do. Training calls nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..errors import Problem
from ..lazy import torch
from ..parameters import Parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..learner import Learner
    from ..unet import UNet


@dataclass(slots=True)
class Batch:
    """Examples of one step. The loss is the sum over examples of share * mean squared error against the target."""

    x0: Tensor  # (B, C, H, W), images in [-1, 1]
    task: Tensor | int  # int64 (B,), task IDs from 0; that of all, where networks are chosen by it (networks.ByTask)
    t: Tensor  # int64 (B,), timesteps
    noise: Tensor  # (B, C, H, W), the noise in x_t
    share: Tensor  # (B,), weight / B: examples of weight 1 sum to L_simple
    target: Tensor  # (B, C, H, W), what the network should predict: the noise, or a teacher's prediction

    def __add__(self, other: Batch) -> Batch:
        if not isinstance(other, Batch):
            raise Problem(f"a Batch and {type(other).__name__}: expected two, as replayed() of a replay returns one")
        return Batch(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(Batch)))


def check_batch(batch: Batch, image: tuple[int, ...], timesteps: int, ids: int) -> None:
    """Raises Problem for what would train without a word, and wrongly. image: (C, H, W); ids: how many there are.
    Numbers are looked at on a CPU alone: a GPU would have to be waited for."""
    n = len(batch.t)
    for name, shape in {"share": (n,), "x0": (n, *image), "noise": (n, *image), "target": (n, *image)}.items():
        value = getattr(batch, name)
        if value.shape != shape or value.dtype != torch.float32 or not n:
            found = f"{value.dtype} {tuple(value.shape)}"
            raise Problem(f"batch: {name} is {found}, expected torch.float32 {shape} of at least one example")
        if value.requires_grad:
            raise Problem(f"batch: {name} has a gradient, expected a constant: make it under torch.no_grad()")
    for name, value, end in (("t", batch.t, timesteps), ("task", batch.task, ids)):
        if isinstance(value, int):
            value = torch.full_like(batch.t, value)
        if value.shape != (n,) or value.dtype != torch.int64:
            raise Problem(f"batch: {name} is {value.dtype} {tuple(value.shape)}, expected torch.int64 ({n},)")
        if value.device.type == "cpu" and (value.min() < 0 or value.max() >= end):
            raise Problem(f"batch: {name} is {value.min()} .. {value.max()}, expected 0 .. {end - 1}")
    if batch.t.device.type == "cpu":
        if not all(value.isfinite().all() for value in (batch.share, batch.x0, batch.noise, batch.target)):
            raise Problem("batch: share, x0, noise or target has numbers that are not finite")
        if batch.x0.abs().max() > 1.01:
            raise Problem(f"batch: x0 reaches {batch.x0.abs().max():g}, expected [-1, 1]: to_model() makes it so")


def check_state(state: dict) -> None:
    """Raises Problem for what a method keeps and no checkpoint can hold."""
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise Problem(f"state[{name!r}] is {type(value).__name__}, expected a tensor: torch.tensor() makes it one")


class Method:
    """Finetuning: nothing but the current task's loss. Other methods override what they need.

    What a method stores as tensors in `state` is saved in checkpoints and restored from them, on the same device;
    whatever must outlast a step belongs there.
    """

    label = "Finetuning"  # in tables and legends
    # Default weight of the method's own loss; None: it has no such loss and takes no weight.
    weight: float | None = None
    tuned = False  # whether the weight is always one that a sweep chose: labels leave it out
    # Whether the method does nothing in the first task, which is then trained once for all such.
    shares_first_task = True
    by_task = False  # whether each task has weights of its own, so that the network must be given its ID
    passes = 3  # forward passes that an image costs in a step; a backward pass counts as two
    version = 1  # raised when changed code gives other numbers: part of a run's name

    Options = Parameters  # a frozen dataclass of parameters: the method's own, beside its weight

    def __init__(self, weight: float | None = None, options: Parameters | None = None):
        self.weight = weight
        self.options = options or self.Options()
        self.state: dict[str, Tensor] = {}

    @staticmethod
    def check(options: Parameters, timesteps: int) -> None:
        """Raises ValueError for options that fit no run of so many timesteps, or not each other."""

    def held(self, learner: Learner) -> dict[str, int]:
        """What is kept from task to task beside one network: "images", real ones, and "bytes" in all."""
        own = sum(p.nbytes for p in learner.net.parameters()) - 4 * learner.parameters
        return {"images": 0, "bytes": own + sum(value.nbytes for value in self.state.values())}

    def build(self, net: UNet) -> nn.Module:
        """The network to train, made from a new one before the first step and whenever one is loaded: adapters go here.
        What is returned is called as the U-Net is. The average is a copy of it."""
        return net

    def start_task(self, learner: Learner) -> None:
        """Before each task but the first; learner.net and learner.ema are still those of the task before. Training
        changes both in place: clone what is to be kept."""

    def batch(self, learner: Learner, current: Batch) -> Batch:
        """The examples of this step, all in one forward pass: the current task's, and more; or others altogether."""
        return current

    def penalty(self, learner: Learner) -> Tensor | None:
        """A scalar to add to the loss of this step."""

    def adjust_gradients(self, learner: Learner) -> None:
        """After the backward pass, before clipping and the optimiser's step."""

    def after_step(self, learner: Learner) -> None:
        """After the optimiser's step; gradients are those that it took."""

    def end_task(self, learner: Learner) -> None:
        """After the last step of each task but the first, before anything is measured, without gradients: for what
        changes learner.ema, which is measured, and learner.net, from which the next task goes on, in place."""
