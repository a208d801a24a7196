"""Methods that hold the parameters near those of the past."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .base import Method

if TYPE_CHECKING:
    from ..train import Learner


class L2(Method):
    """The squared L2 distance to the parameters after the previous task, times `weight`."""

    label = "L2"
    weight = 1.0

    def start_task(self, learner: Learner) -> None:
        self.state = {name: p.detach().clone() for name, p in learner.net.named_parameters()}

    def penalty(self, learner: Learner) -> Tensor | None:
        if not self.state or self.weight == 0:
            return None
        distance = sum((p - self.state[name]).square().sum() for name, p in learner.net.named_parameters())
        return self.weight * distance
