"""Methods that hold the parameters near those of the past."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.utils import parameters_to_vector

from .base import Method

if TYPE_CHECKING:
    from ..train import Learner


class L2(Method):
    """The squared L2 distance to the parameters after the previous task, times `weight`."""

    label = "L2"
    weight = 1.0

    def start_task(self, learner: Learner) -> None:
        self.state = {"anchor": parameters_to_vector(learner.net.parameters()).detach()}

    def penalty(self, learner: Learner) -> Tensor | None:
        if not self.state or self.weight == 0:
            return None
        return self.weight * (parameters_to_vector(learner.net.parameters()) - self.state["anchor"]).square().sum()
