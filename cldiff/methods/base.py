"""What a continual-learning method may do. Training calls nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..learner import Learner


@dataclass
class Batch:
    """Examples of one step. The loss is the sum over examples of share * mean squared error against the target."""

    x0: Tensor  # (B, C, H, W), images in [-1, 1]
    task: Tensor  # int64 (B,), task IDs from 0
    t: Tensor  # int64 (B,), timesteps
    noise: Tensor  # (B, C, H, W), the noise in x_t
    share: Tensor  # (B,), weight / B: examples of weight 1 sum to L_simple
    target: Tensor  # (B, C, H, W), what the network should predict: the noise, or a teacher's prediction

    def __add__(self, other: Batch) -> Batch:
        return Batch(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(Batch)))


class Method:
    """Finetuning: nothing but the current task's loss. Other methods override what they need.

    `weight` on the class is the default weight of the method's own loss; None: the method has no such loss and takes
    no weight. What a method stores as tensors in `state` is saved in checkpoints and restored from them.
    """

    label = "Finetuning"
    weight: float | None = None

    def __init__(self, weight: float | None = None):
        self.weight = weight
        self.state: dict[str, Tensor] = {}

    def start_task(self, learner: Learner) -> None:
        """Before each task but the first; learner.net and learner.ema are still those of the task before. Training changes
        both in place: clone what is to be kept."""

    def replay(self, learner: Learner) -> Batch | None:
        """More examples to learn from in this step, in the same forward pass as the current task's."""

    def penalty(self, learner: Learner) -> Tensor | None:
        """A scalar to add to the loss of this step."""

    def adjust_gradients(self, learner: Learner) -> None:
        """After the backward pass, before clipping and the optimiser's step."""
