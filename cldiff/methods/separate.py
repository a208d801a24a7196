"""One network for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..parameters import Parameters, among
from ..unet import UNet
from .base import Method

if TYPE_CHECKING:
    from ..learner import Learner


class Separate(Method):
    """One network for each task, each as large as the one that other methods have for all: nothing is forgotten. Only
    the current task's moves: the others have no gradients, and Adam skips them."""

    label = "One model for each task"
    shares_first_task = False  # its weights have other names

    @dataclass(frozen=True)
    class Options(Parameters):
        start: str = among(
            "scratch", ("scratch", "previous"), help="of a task's network: a new one, or the task before's"
        )

    def build(self, net: UNet) -> nn.Module:
        return Networks([net, *(UNet(**net.arguments) for _ in range(1, net.tasks))])

    def start_task(self, learner: Learner) -> None:
        old, new = learner.net.nets[learner.task - 1 : learner.task + 1]
        if self.options.start == "previous":
            new.load_state_dict(old.state_dict())
        old.load_state_dict(learner.ema.nets[learner.task - 1].state_dict())  # what the new average takes over


class ByTask(nn.Module):
    """Of several networks, each example goes through its task's."""

    def choose(self, task: int) -> Callable[..., Tensor]:
        """What stands for the network for one task ID."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, task: Tensor) -> Tensor:
        ids = sorted(set(task.tolist()))
        if len(ids) == 1:  # as usual: nothing is copied
            return self.choose(ids[0])(x, t, task)
        places = [(task == own).nonzero().squeeze(1) for own in ids]
        found = torch.cat([self.choose(own)(x[i], t[i], task[i]) for own, i in zip(ids, places)])
        return found[torch.cat(places).argsort()]


class Networks(ByTask):
    """A network for each task ID."""

    def __init__(self, nets: list[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def choose(self, task: int) -> nn.Module:
        return self.nets[task]
