"""Methods that hold a parameter the more, the more single images' gradients say that it matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lazy import torch
from ..parameters import Parameters, number
from .base import Method
from .regularize import distance, vector

if TYPE_CHECKING:
    from torch import Tensor

    from ..learner import Learner

HELD = 2**25  # numbers in the gradients of some images: 128 MB, of which there are three at a time, at most


def gradients(learner: Learner, images: int, of: Callable[[Tensor, Tensor], Tensor]) -> Iterator[Tensor]:
    """The gradient of `of(predicted noise, noise)`, a scalar, at each of `images` noisy training images of the task
    before: rows (n, parameters), some at a time. Without dropout; the same rows in each call within a task."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    past, net = learner.task - 1, copy.deepcopy(learner.net).eval()
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def value(weights: dict[str, Tensor], x: Tensor, t: Tensor, noise: Tensor, task: Tensor) -> Tensor:
        return of(torch.func.functional_call(net, weights, (x[None], t[None], task))[0], noise)

    each = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0, 0, None))
    size = max(1, min(32, HELD // sum(p.numel() for p in weights.values())))  # more at a time are not faster
    for start in range(0, images, size):
        batch = learner.draw(
            learner.images[past], learner.ids.train[past], f"fisher {start}", size=min(size, images - start)
        )
        x = learner.diffusion.noised(batch.x0, batch.t, batch.noise)
        for task in batch.task.unique():  # which one_hot() of the network does not map over
            of_task = batch.task == task
            with sdpa_kernel(SDPBackend.MATH):  # what vmap finds on a CPU otherwise is slow, and warns
                found = each(weights, x[of_task], batch.t[of_task], batch.noise[of_task], task[None])
            yield torch.cat([found[name].flatten(1) for name in weights], dim=1)


def loss(guess: Tensor, noise: Tensor) -> Tensor:
    return (guess - noise).square().mean()


class EWC(Method):
    """Diagonal EWC (Kirkpatrick et al. 2017, eq. 3) with one anchor, as Huszár (2018) has it: half `weight` times the
    squared distance to the parameters after the previous task, each weighed by its Fisher information, summed over past
    tasks; with `decay` below 1 online EWC (Schwarz et al. 2018)."""

    label = "EWC"
    weight = 15_000.0  # of arXiv 2509.23593
    tuned = True

    @dataclass(frozen=True)
    class Options(Parameters):
        images: int = number(1_000, 1, help="noisy images of a task that its importances are the mean of")
        decay: float = number(1.0, 0, 1, help="by which the importances of earlier tasks are multiplied at each task")

    def importance(self, learner: Learner) -> Tensor:
        """Of each parameter in the task before: the mean squared gradient of the loss of one image."""
        return sum(g.square().sum(0) for g in gradients(learner, self.options.images, loss)) / self.options.images

    def start_task(self, learner: Learner) -> None:
        found = self.importance(learner)
        if "anchor" in self.state:
            found += self.options.decay * self.state["importance"]
        self.state |= {"anchor": vector(learner).detach(), "importance": found}

    def penalty(self, learner: Learner) -> Tensor | None:
        if "anchor" not in self.state:
            return None
        return self.weight / 2 * distance(learner, self.state["anchor"], self.state["importance"])


class MAS(EWC):
    """Memory aware synapses (Aljundi et al. 2018, eq. 3): as EWC, half the weight and one anchor included, but a
    parameter is as important as the squared norm of the predicted noise is sensitive to it."""

    label = "MAS"
    weight = 5.0

    def importance(self, learner: Learner) -> Tensor:
        rows = gradients(learner, self.options.images, lambda guess, noise: guess.square().sum())
        return sum(g.abs().sum(0) for g in rows) / self.options.images


class Rank1EWC(Method):
    """EWC by rank-1 Fisher matrices c mu mu' (arXiv 2509.23593), mu the mean of single images' gradients g and
    c = E[(mu'g)^2] / |mu|^4: of each past task one direction is kept, and its loss may not change along it."""

    label = "Rank-1 EWC"
    weight = 15_000.0
    tuned = True

    @dataclass(frozen=True)
    class Options(Parameters):
        images: int = number(1_000, 1, help="noisy images of a task that its direction is the mean of")

    def start_task(self, learner: Learner) -> None:
        images, here = self.options.images, vector(learner).detach()
        mean = sum(g.sum(0) for g in gradients(learner, images, loss)) / images
        unit = mean / mean.norm().clamp(min=1e-30)
        square = sum((g @ unit).square().sum() for g in gradients(learner, images, loss)) / images
        rows, moved = [(square.sqrt() * unit)[None]], [square.new_zeros(1)]  # a row r: the Fisher matrix is r'r
        if "anchor" in self.state:
            # How far a row's own anchor lies behind the newest: one anchor is enough, and rounding stays small.
            moved.insert(0, self.state["moved"] + self.state["rows"] @ (here - self.state["anchor"]))
            rows.insert(0, self.state["rows"])
        self.state |= {"anchor": here, "rows": torch.cat(rows), "moved": torch.cat(moved)}

    def penalty(self, learner: Learner) -> Tensor | None:
        if "anchor" not in self.state:
            return None
        s = self.state
        return self.weight / 2 * (s["moved"] + s["rows"] @ (vector(learner) - s["anchor"])).square().sum()
