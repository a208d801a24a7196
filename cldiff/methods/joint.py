"""Joint training: what the others could reach if no data were ever taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import torch
from .base import Batch, Method

if TYPE_CHECKING:
    from ..learner import Learner


class Joint(Method):
    """Each batch is drawn from the training images of all tasks so far, as large as any method's. A task has as many
    steps as with the others, those of one task: they are spread over ever more images."""

    label = "Joint training"
    seen = 0  # tasks in the union

    def held(self, learner: Learner) -> dict[str, int]:
        past = learner.images[: learner.task]
        return {"images": sum(map(len, past)), "bytes": sum(images.nbytes for images in past)}

    def batch(self, learner: Learner, current: Batch) -> Batch:
        if learner.task == 0:
            return current
        if self.seen != learner.task + 1:  # not in the state: checkpoints would hold the data set
            self.seen = learner.task + 1
            self.images = torch.cat(learner.images[: self.seen])
            self.owner = torch.cat(learner.ids.train[: self.seen])
        return learner.draw(self.images, self.owner, "joint")
