"""Learning without forgetting: old tasks are rehearsed on the new task's images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..lazy import torch
from .base import Batch, Method
from .distill import frozen, prediction

if TYPE_CHECKING:
    from ..learner import Learner


class LwF(Method):
    """Learning without forgetting (Li and Hoiem 2016, eq. 2): under the IDs of past tasks, drawn at random, the current
    noised images are to give what the average from before the task predicts, times `weight`."""

    label = "Learning without forgetting"
    weight = 1.0
    passes = 7

    def start_task(self, learner: Learner) -> None:
        self.state |= frozen(learner)

    def batch(self, learner: Learner, current: Batch) -> Batch:
        if learner.task == 0:
            return current
        generator = learner.generator("past task")
        past = learner.ids.past(learner.task)
        past = past[torch.randint(len(past), current.task.shape, generator=generator, device=learner.device)]
        old = replace(current, task=past, share=self.weight * current.share)
        return current + replace(old, target=prediction(learner, self.state, old))
