"""Generative distillation: the model from before the task draws images, and says what noise it sees in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..parameters import flag
from .base import Batch
from .distill import frozen, prediction
from .replay import GenerativeReplay

if TYPE_CHECKING:
    from ..learner import Learner


class GenerativeDistillation(GenerativeReplay):
    """Generative distillation (Masip et al. 2023, arXiv 2311.14028): generative replay towards what the average from
    before the task predicts, not towards the noise; with weight 0 this is finetuning."""

    label = "Generative distillation"
    passes = 7

    @dataclass(frozen=True)
    class Options(GenerativeReplay.Options):
        shared: bool = flag(True, help="in task k the current loss counts 1/k, distillation (1 - 1/k) * weight")

    def start_task(self, learner: Learner) -> None:
        super().start_task(learner)
        self.state |= frozen(learner)

    def replayed(self, learner: Learner) -> Batch:
        old = super().replayed(learner)
        return replace(old, target=prediction(learner, self.state, old))
