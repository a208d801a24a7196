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


class Networks(nn.Module):
    """A network for each task ID."""

    def __init__(self, nets: list[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    @torch.compiler.disable(recursive=False)
    def forward(self, x: Tensor, t: Tensor, task: Tensor) -> Tensor:
        return by_task(self.nets.__getitem__, x, t, task)


@torch.compiler.disable(recursive=False)  # the networks are compiled, their choice is not
def by_task(choose: Callable[[int], Callable[..., Tensor]], x: Tensor, t: Tensor, task: Tensor) -> Tensor:
    """choose(task ID)(x, t, task) for the examples of each task. Usually there is one, and nothing is copied."""
    ids = sorted(set(task.tolist()))
    if len(ids) == 1:
        return choose(ids[0])(x, t, task)
    places = [(task == own).nonzero().squeeze(1) for own in ids]
    found = torch.cat([choose(own)(x[i], t[i], task[i]) for own, i in zip(ids, places)])
    return found[torch.cat(places).argsort()]
