"""Generative distillation that is held along one direction for each past task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..parameters import Parameters, number
from .base import Batch
from .fisher import Rank1EWC
from .generative_distillation import GenerativeDistillation

if TYPE_CHECKING:
    from ..learner import Learner


class Rank1Distillation(Rank1EWC):
    """Rank-1 EWC of weight `weight` beside generative distillation (arXiv 2509.23593, which finds the pair better than
    either); with weight 0 neither."""

    label = "Distillation and rank-1 EWC"
    passes = GenerativeDistillation.passes

    @dataclass(frozen=True)
    class Options(Rank1EWC.Options):
        distillation: float = number(1.0, 0, help="weight of generative distillation")

    def __init__(self, weight: float, options: Parameters | None = None):
        super().__init__(weight, options)
        self.distillation = GenerativeDistillation(self.options.distillation)

    def start_task(self, learner: Learner) -> None:
        super().start_task(learner)
        if self.distillation.weight:
            self.distillation.start_task(learner)
            self.state |= self.distillation.state

    def batch(self, learner: Learner, current: Batch) -> Batch:
        if self.distillation.weight == 0:
            return current
        self.distillation.state = self.state  # which may come from a checkpoint
        return self.distillation.batch(learner, current)
