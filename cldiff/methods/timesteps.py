"""Experience replay whose weight depends on the timestep: what the study leaves open."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..lazy import torch
from ..parameters import Parameters, among, flag, number
from .base import Batch
from .replay import Replay

if TYPE_CHECKING:
    from torch import Tensor

    from ..learner import Learner


# Shapes over the timesteps: (options, t float64 (T,), SNR (T,)) -> float64 (T,) in [0, 1]. Within the ranges of the
# options none is 0 all over, or it would have no mean to be brought to 1.


def constant(own: TimestepReplay.Options, t: Tensor, snr: Tensor) -> Tensor:
    return torch.ones_like(t)


def step(own: TimestepReplay.Options, t: Tensor, snr: Tensor) -> Tensor:
    return (t < own.at if own.mirrored else t >= own.at).double()


def power(own: TimestepReplay.Options, t: Tensor, snr: Tensor) -> Tensor:
    return (1 - t / len(t) if own.mirrored else t / len(t)) ** own.power


def sigmoid(own: TimestepReplay.Options, t: Tensor, snr: Tensor) -> Tensor:
    """A sigmoid of -ln SNR; SNR 1 and power 1 are P2 weighting (Choi et al. 2022), as it weighs the noise loss."""
    return 1 / (1 + (snr / own.snr) ** (-own.power if own.mirrored else own.power))


def hump(own: TimestepReplay.Options, t: Tensor, snr: Tensor) -> Tensor:
    found = (-(own.power * (snr / own.snr).log()).square() / 2).exp()
    return 1 - found if own.mirrored else found


WEIGHTINGS = {shape.__name__: shape for shape in (constant, step, power, sigmoid, hump)}
READ = {  # the options that change a shape
    "constant": (),
    "step": ("mirrored", "low", "at"),
    "power": ("mirrored", "low", "power"),
    "sigmoid": ("mirrored", "low", "snr", "power"),
    "hump": ("mirrored", "low", "snr", "power"),
}


class TimestepReplay(Replay):
    """Experience replay with the weight `weight` times a shape over the timesteps whose mean is 1, so that shapes
    compare at equal strength."""

    label = "Timestep-aware replay"

    @dataclass(frozen=True)
    class Options(Parameters):
        weighting: str = among("sigmoid", WEIGHTINGS, help="the shape: late timesteps count more, in most")
        mirrored: bool = flag(False, help="early timesteps count more; of the hump: all but its middle")
        low: float = number(0.0, 0, 1, help="where the shape starts, of its height")
        at: int = number(250, 0, help="the timestep of the step")
        snr: float = number(1.0, 1e-4, 1e3, help="signal-to-noise ratio at the middle of the sigmoid and the hump")
        power: float = number(1.0, 1e-3, 10, help="of the timestep, of the SNR; one over the hump's width in ln SNR")
        drawn: bool = flag(False, help="replayed timesteps are drawn by the shape, instead of weighed")
        on: str = among("replay", ("replay", "current"), help="the loss whose timesteps the shape weighs: a control")

    @staticmethod
    def check(options: Options, timesteps: int) -> None:
        shape = options.weighting
        for name in dict.fromkeys(sum(READ.values(), ())):
            if name not in READ[shape] and getattr(options, name) != getattr(TimestepReplay.Options(), name):
                raise ValueError(
                    f"{name}={getattr(options, name)}: the {shape} has none; expected options of its own "
                    f"({', '.join(READ[shape]) or 'none'}), or another weighting"
                )
        first, last = (1, timesteps) if options.mirrored else (0, timesteps - 1)
        if shape == "step" and not first <= options.at <= last:
            raise ValueError(f"at={options.at}: expected {first} .. {last}, as timesteps={timesteps}")
        if options.drawn and options.on == "current":
            raise ValueError(
                "drawn=True: expected on='replay', as the timesteps of the current task are not drawn anew"
            )

    def shape(self, learner: Learner) -> Tensor:
        """float64 (T,), of mean 1."""
        a, own = learner.diffusion.alpha_bar, self.options
        found = WEIGHTINGS[own.weighting](own, torch.arange(len(a), device=a.device).double(), a / (1 - a))
        found = own.low + (1 - own.low) * found
        return found / found.mean()

    def batch(self, learner: Learner, current: Batch) -> Batch:
        if self.options.on == "current" and "images" in self.state:
            current = replace(current, share=current.share * self.shape(learner)[current.t].float())
        return super().batch(learner, current)

    def replayed(self, learner: Learner) -> Batch:
        batch = super().replayed(learner)
        if self.options.on == "current":
            return batch
        shape = self.shape(learner)
        if self.options.drawn:
            t = torch.multinomial(shape, len(batch.t), True, generator=learner.generator("replayed timesteps"))
            return replace(batch, t=t)
        return replace(batch, share=batch.share * shape[batch.t].float())
