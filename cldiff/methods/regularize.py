"""Methods that hold the parameters near those of the past."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import torch
from .base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from ..learner import Learner


class L2(Method):
    """The squared L2 distance to the parameters after the previous task, times `weight`."""

    label = "L2"
    weight = 1.0
    tuned = True

    def start_task(self, learner: Learner) -> None:
        self.state |= {"anchor": vector(learner).detach()}

    def penalty(self, learner: Learner) -> Tensor | None:
        if "anchor" not in self.state:
            return None
        return self.weight * (vector(learner) - self.state["anchor"]).square().sum()


def vector(learner: Learner) -> Tensor:
    """All parameters in one row. torch's parameters_to_vector refuses weights that are channels-last."""
    return torch.cat([p.flatten() for p in learner.net.parameters()])


def distance(learner: Learner, anchor: Tensor, importance: Tensor) -> Tensor:
    """The squared distance to the anchor, each parameter weighed by its importance."""
    return (importance * (vector(learner) - anchor).square()).sum()
