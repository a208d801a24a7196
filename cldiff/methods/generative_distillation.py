"""Generative distillation: the model from before the task draws images, and says what noise it sees in them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .base import Batch
from .distill import frozen, prediction
from .replay import GenerativeReplay

if TYPE_CHECKING:
    from ..learner import Learner


class GenerativeDistillation(GenerativeReplay):
    """Generative distillation (Masip et al. 2023, arXiv 2311.14028): generative replay towards what the average from
    before the task predicts, not towards the noise. In task k the current loss counts 1/k, distillation
    (1 - 1/k) * weight; with weight 0 this is finetuning."""

    label = "Generative distillation"
    passes = 7

    def start_task(self, learner: Learner) -> None:
        super().start_task(learner)
        self.state |= frozen(learner)

    def batch(self, learner: Learner, current: Batch) -> Batch:
        if not self.state or self.weight == 0:
            return current
        share = 1 / (learner.task + 1)
        old = learner.draw(self.state["images"], self.state["task"], "replay", self.weight * (1 - share))
        return replace(current, share=current.share * share) + replace(old, target=prediction(learner, self.state, old))
