"""A-GEM: gradients that do not raise the loss on the buffers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..lazy import torch
from .base import Batch
from .replay import Replay

if TYPE_CHECKING:
    from ..learner import Learner


class AGEM(Replay):
    """A-GEM (Chaudhry et al. 2019, eq. 11): a gradient that points against that of the loss on the buffers loses its
    part along it. Both losses have the same timesteps and noise, whose choice would otherwise decide the sign."""

    label = "A-GEM"
    weight = None

    def batch(self, learner: Learner, current: Batch) -> Batch:
        self.current = current
        return current

    def adjust_gradients(self, learner: Learner) -> None:
        if "images" not in self.state:
            return
        weights = list(learner.net.parameters())
        own = [p.grad.clone() for p in weights]  # a compiled network's next pass writes over its gradients
        old = learner.draw(self.state["images"], self.state["task"], "replay")
        old = replace(old, t=self.current.t, noise=self.current.noise, target=self.current.target)
        reference = torch.autograd.grad(learner.loss(old), weights)
        dot = torch.stack([part.sum() for part in torch._foreach_mul(own, reference)]).sum()
        square = torch.stack(torch._foreach_norm(reference)).square().sum()
        along = (dot / square.clamp(min=torch.finfo(square.dtype).tiny)).clamp(max=0)  # 0 where they agree
        torch._foreach_sub_(own, torch._foreach_mul(reference, along))
        for p, gradient in zip(weights, own):
            p.grad = gradient
