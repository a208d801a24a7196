"""Synaptic intelligence: how much a parameter matters is read off its way through the tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lazy import torch
from ..parameters import Parameters, number
from .base import Method
from .regularize import distance, vector

if TYPE_CHECKING:
    from torch import Tensor

    from ..learner import Learner


class SI(Method):
    """Zenke et al. (2017, eq. 4 and 5): `weight` times the squared distance to the parameters after the previous task,
    each weighed by how much its steps in past tasks lowered the loss, for the way that it went. The gradient is the
    whole loss's before clipping; the authors' code leaves the penalty out of it."""

    label = "SI"
    weight = 5.0
    tuned = True
    shares_first_task = False

    @dataclass(frozen=True)
    class Options(Parameters):
        xi: float = number(0.01, 1e-12, help="added to the squared way of a parameter through a task (damping)")

    def adjust_gradients(self, learner: Learner) -> None:
        self.before = vector(learner).detach()
        self.gradient = torch.cat([p.grad.flatten() for p in learner.net.parameters()])
        if "anchor" not in self.state:
            nothing = torch.zeros_like(self.before)
            self.state |= {"anchor": self.before, "importance": nothing, "work": nothing.clone()}

    def after_step(self, learner: Learner) -> None:
        if "anchor" in self.state:
            self.state["work"] -= self.gradient * (vector(learner).detach() - self.before)

    def start_task(self, learner: Learner) -> None:
        if "anchor" not in self.state:  # no step was made
            return
        here, s = vector(learner).detach(), self.state
        found = s["work"].clamp(min=0) / ((here - s["anchor"]).square() + self.options.xi)
        self.state |= {"anchor": here, "importance": s["importance"] + found, "work": torch.zeros_like(here)}

    def penalty(self, learner: Learner) -> Tensor | None:
        if "anchor" not in self.state or learner.task == 0:
            return None
        return self.weight * distance(learner, self.state["anchor"], self.state["importance"])
