"""Methods that learn from a frozen copy of the previous model: the target is its prediction, not the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from ..lazy import no_grad, torch
from ..parameters import Parameters, among, number
from .base import Batch
from .replay import Replay

if TYPE_CHECKING:
    from torch import Tensor

    from ..learner import Learner


def frozen(learner: Learner, which: str = "average") -> dict[str, Tensor]:
    """A copy of the network before the task, for `state`: the "average", or the "raw" one that the average is of."""
    net = learner.ema if which == "average" else learner.net
    return {f"teacher.{name}": p.detach().clone() for name, p in net.named_parameters()}


@no_grad
def prediction(learner: Learner, state: dict[str, Tensor], batch: Batch) -> Tensor:
    """What the frozen network in `state` predicts for a batch, without dropout: (B, C, H, W)."""
    weights = {name.removeprefix("teacher."): p for name, p in state.items() if name.startswith("teacher.")}
    x = learner.diffusion.noised(batch.x0, batch.t, batch.noise)
    with learner.half():
        return torch.func.functional_call(learner.ema, weights, (x, batch.t, batch.task)).float()


class DistilledReplay(Replay):
    """Replay of stored images at new timesteps and noise, with the previous model's prediction as target: it holds none
    of the noise, so that few images are not learned by heart. After dark experience replay (DER and DER++, Buzzega et
    al. 2020), which keeps the outputs themselves."""

    label = "Distilled replay"
    passes = 7

    @dataclass(frozen=True)
    class Options(Parameters):
        noise: float = number(0.0, 0, help="weight of the noise as a second target, where the teacher's is 1 (DER++)")
        teacher: str = among("average", ("average", "raw"), help="the network before the task: its average, or itself")
        until: int = number(0, 0, help="the timestep from which on the target is the noise alone; 0: at none")

    @staticmethod
    def check(options: Options, timesteps: int) -> None:
        if options.until > timesteps:
            raise ValueError(f"until={options.until}: expected at most timesteps={timesteps}")

    def start_task(self, learner: Learner) -> None:
        super().start_task(learner)
        self.state |= frozen(learner, self.options.teacher)

    def replayed(self, learner: Learner) -> Batch:
        batch, noise = super().replayed(learner), self.options.noise
        # Two squared errors have the gradient of one, of their weights' sum against their targets' weighted mean.
        mixed = (prediction(learner, self.state, batch) + noise * batch.noise) / (1 + noise)
        taught = batch.t < (self.options.until or inf)
        return replace(
            batch,
            target=torch.where(taught.view(-1, 1, 1, 1), mixed, batch.noise),
            share=torch.where(taught, (1 + noise) * batch.share, batch.share),
        )
