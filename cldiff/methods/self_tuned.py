"""Experience replay that finds out at which timesteps it overfits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..lazy import no_grad, torch
from ..parameters import Parameters, number
from .base import Batch
from .replay import Replay, turns

if TYPE_CHECKING:
    from ..learner import Learner


class SelfTunedReplay(Replay):
    """Experience replay that keeps every tenth image of an ID unseen, from its second on: where the loss of the
    others falls below theirs, the weight falls with it, by their ratio, in each bin of timesteps."""

    label = "Self-tuned replay"

    @dataclass(frozen=True)
    class Options(Parameters):
        bins: int = number(20, 1, help="of timesteps, each with a weight of its own")
        every: int = number(50, 1, help="steps between two measurements")

    @staticmethod
    def check(options: Options, timesteps: int) -> None:
        if options.bins > timesteps:
            raise ValueError(f"bins={options.bins}: expected at most one for each of timesteps={timesteps}")

    def held(self, learner: Learner) -> dict[str, int]:
        seen, unseen = self.state["images"], self.state["unseen"]
        return super().held(learner) | {"images": len(seen) + (0 if torch.equal(seen, unseen) else len(unseen))}

    def start_task(self, learner: Learner) -> None:
        super().start_task(learner)
        images, task = self.state["images"], self.state["task"]
        held = turns(task) % 10 == 1
        unseen = held if held.any() else ~held  # single images are both: plain replay
        self.state |= {"images": images[~held], "task": task[~held]}
        self.state |= {"unseen": images[unseen], "unseen task": task[unseen]}
        self.state["losses"] = torch.zeros(2, self.options.bins, device=learner.device)  # of the buffer, of the unseen

    @no_grad
    def measure(self, learner: Learner) -> None:
        """Running means of both losses by bin. Images differ; timesteps and noise are the same for both."""
        bins, T = self.options.bins, learner.run.timesteps
        bin = torch.arange(4 * bins, device=learner.device) % bins
        inside = torch.rand(len(bin), generator=learner.generator("place in the bin"), device=learner.device)
        first = -(-torch.arange(bins + 1, device=learner.device) * T // bins)  # of each bin, where it has a remainder
        t = ((bin + inside) * T / bins).long().clamp(first[bin], first[bin + 1] - 1)
        for row, (images, task) in enumerate((("images", "task"), ("unseen", "unseen task"))):
            batch = learner.draw(self.state[images], self.state[task], "self-tuning", size=len(t))
            guess = learner.ema(learner.diffusion.noised(batch.x0, t, batch.noise), t, batch.task)
            found = (guess - batch.noise).square().flatten(1).mean(1).view(4, bins).mean(0)
            losses = self.state["losses"][row]
            losses.copy_(torch.where(losses > 0, 0.9 * losses + 0.1 * found, found))

    def replayed(self, learner: Learner) -> Batch:
        if learner.step % self.options.every == 0:
            self.measure(learner)
        batch = super().replayed(learner)
        seen, unseen = self.state["losses"]
        bin = batch.t * self.options.bins // learner.run.timesteps
        return replace(batch, share=batch.share * (seen / unseen).clamp(max=1)[bin])
