"""Averages of networks: what was learned before is mixed in when a task is over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..parameters import Parameters, number
from .base import Method
from .distill import frozen

if TYPE_CHECKING:
    from ..learner import Learner


class ModelAveraging(Method):
    """Continual model averaging (CoMA, Marouf et al. 2024, arXiv 2312.08977): training moves freely, and after the task
    the network is the mean of what it was before and what it has become; the next task starts from that."""

    label = "Model averaging"

    @dataclass(frozen=True)
    class Options(Parameters):
        old: float = number(0.5, 0, 1, help="share of the network from before the task; 0: the moving average alone")

    def start_task(self, learner: Learner) -> None:
        self.state |= frozen(learner)

    def end_task(self, learner: Learner) -> None:
        for (name, average), own in zip(learner.ema.named_parameters(), learner.net.parameters()):
            average.lerp_(self.state[f"teacher.{name}"], self.options.old)
            own.copy_(average)
