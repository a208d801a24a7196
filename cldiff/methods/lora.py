"""LoRA: low-rank changes of the first task's network, one for each later task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..parameters import Parameters, number
from .base import Batch, Method
from .separate import ByTask

if TYPE_CHECKING:
    from ..learner import Learner
    from ..unet import UNet


class LoRA(Method):
    """Low-rank adaptation (Hu et al. 2022, eq. 3) for each task: all of the network learns in the first task, then each
    matrix and kernel W is W + B_k A_k / rank in task k, where B_k and A_k alone learn."""

    label = "LoRA for each task"
    shares_first_task = False  # its weights have other names

    @dataclass(frozen=True)
    class Options(Parameters):
        rank: int = number(8, 1, help="of the change of each matrix and kernel")

    def build(self, net: UNet) -> nn.Module:
        return Adapted(net, net.tasks, self.options.rank)

    def start_task(self, learner: Learner) -> None:
        learner.net.load_state_dict(learner.ema.state_dict())  # what was learned is kept as the average has it

    def batch(self, learner: Learner, current: Batch) -> Batch:
        learner.net.net.requires_grad_(learner.task == 0)  # each step: a run that continues has not seen the task start
        return current


class Adapted(ByTask):
    """A network whose matrices and kernels have a low-rank change for each task but the first: B (task, outputs, rank)
    and A (task, rank, places of the kernel times inputs)."""

    def __init__(self, net: nn.Module, tasks: int, rank: int):
        super().__init__()
        self.net, self.rank = net, rank
        self.names = [name for name, p in net.named_parameters() if p.ndim > 1]
        shapes = [net.get_parameter(name).flatten(1).shape for name in self.names]
        self.A = nn.ParameterList(torch.empty(tasks - 1, rank, n).uniform_(-(n**-0.5), n**-0.5) for _, n in shapes)
        self.B = nn.ParameterList(torch.zeros(tasks - 1, m, rank) for m, _ in shapes)

    def choose(self, task: int) -> Callable[..., Tensor]:
        return self.changed if task > 0 else self.net

    def changed(self, x: Tensor, t: Tensor, task: Tensor) -> Tensor:
        """The network with the change of the one task that is asked for."""
        own, weights = task[:1] - 1, {}  # no number: each would be compiled anew
        for name, *change in zip(self.names, self.B, self.A):
            W = self.net.get_parameter(name).movedim(1, -1)  # as channels-last has it in memory
            B, A = (part.index_select(0, own).squeeze(0) for part in change)
            merged = torch.addmm(W.flatten(1), B, A, alpha=1 / self.rank)
            weights[name] = merged.view(W.shape).movedim(-1, 1)
        return torch.func.functional_call(self.net, weights, (x, t, task))
