"""One network for each task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..parameters import Parameters, among
from .base import Batch, Method

if TYPE_CHECKING:
    from torch import nn

    from ..learner import Learner
    from ..unet import UNet


class Separate(Method):
    """One network for each task, each as large as the one that other methods have for all: nothing is forgotten. Only
    the current task's moves: the others have no gradients, and Adam skips them."""

    label = "One model for each task"
    shares_first_task = False  # its weights have other names
    by_task = True

    @dataclass(frozen=True)
    class Options(Parameters):
        start: str = among(
            "scratch", ("scratch", "previous"), help="of a task's network: a new one, or the task before's"
        )

    def build(self, net: UNet) -> nn.Module:
        from ..networks import Networks

        return Networks([net, *(type(net)(**net.arguments) for _ in range(1, net.tasks))])

    def batch(self, learner: Learner, current: Batch) -> Batch:
        return replace(current, task=learner.task)

    def start_task(self, learner: Learner) -> None:
        old, new = learner.net.nets[learner.task - 1 : learner.task + 1]
        if self.options.start == "previous":
            new.load_state_dict(old.state_dict())
        old.load_state_dict(learner.ema.nets[learner.task - 1].state_dict())  # what the new average takes over
