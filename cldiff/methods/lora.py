"""LoRA: low-rank changes of the first task's network, one for each later task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..parameters import Parameters, number
from .base import Batch, Method

if TYPE_CHECKING:
    from torch import nn

    from ..learner import Learner
    from ..unet import UNet


class LoRA(Method):
    """Low-rank adaptation (Hu et al. 2022, eq. 3) for each task: all of the network learns in the first task, then each
    matrix and kernel W is W + B_k A_k / rank in task k, where B_k and A_k alone learn."""

    label = "LoRA for each task"
    shares_first_task = False  # its weights have other names
    by_task = True

    @dataclass(frozen=True)
    class Options(Parameters):
        rank: int = number(8, 1, help="of the change of each matrix and kernel")

    def build(self, net: UNet) -> nn.Module:
        from ..networks import Adapted

        return Adapted(net, net.tasks, self.options.rank)

    def start_task(self, learner: Learner) -> None:
        learner.net.load_state_dict(learner.ema.state_dict())  # what was learned is kept as the average has it

    def batch(self, learner: Learner, current: Batch) -> Batch:
        learner.net.net.requires_grad_(learner.task == 0)  # each step: a run that continues has not seen the task start
        return replace(current, task=learner.task)
