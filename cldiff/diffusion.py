"""The diffusion of Ho et al. (2020): noise schedule, loss, sampling, and the variational bound, term by term."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from .lazy import no_grad, torch

if TYPE_CHECKING:
    from torch import Tensor

VARIANCES = ("fixedlarge", "fixedsmall")  # of the reverse process: beta_t, or the posterior's
Model = Callable[["Tensor", "Tensor"], "Tensor"]  # (x_t (B, C, H, W), t int64 (B,)) -> predicted noise (B, C, H, W)


class Diffusion:
    """Ho et al.'s linear schedule, beta from 1e-4 to 0.02 at 1,000 timesteps, and all that follows from it.

    variance: of the reverse process, beta_t ("fixedlarge", Ho et al.'s choice for images) or the posterior's
    ("fixedsmall"). Timesteps t are int64, 0 .. T - 1; images x0 are scaled to [-1, 1]. Tables are float64.
    """

    def __init__(self, timesteps: int = 1000, variance: str = "fixedlarge", device: str | torch.device = "cpu"):
        if timesteps < 2:
            raise ValueError(f"timesteps={timesteps}: expected at least 2")
        if variance not in VARIANCES:
            raise ValueError(f"unknown variance {variance!r}; known: {', '.join(VARIANCES)}")
        self.timesteps, self.variance, self.device = timesteps, variance, torch.device(device)
        # The ends of the schedule scale with 1 / T, as in improved-diffusion: fewer timesteps still end in pure noise.
        beta = torch.linspace(0.1 / timesteps, 20 / timesteps, timesteps, dtype=torch.float64).clamp(max=0.999)
        self.beta = beta.to(self.device)  # (T,)
        self.alpha_bar = torch.cumprod(1 - self.beta, 0)  # (T,)
        self.alpha_bar_before = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])  # alpha_bar of t - 1
        self.posterior_variance = self.beta * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)  # eq. 7; 0 at t = 0
        # The last step has no posterior variance of its own; both choices take that of t = 1 there, as Ho et al. do.
        self.reverse_variances = {
            name: torch.cat([self.posterior_variance[1:2], table[1:]])
            for name, table in (("fixedlarge", self.beta), ("fixedsmall", self.posterior_variance))
        }

    @property
    def reverse_variance(self) -> Tensor:
        """(T,)"""
        return self.reverse_variances[self.variance]

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A draw from q(x_t | x_0), eq. 4: x0 and noise (B, C, H, W), t (B,)."""
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        return a.sqrt().to(x0.dtype) * x0 + (1 - a).sqrt().to(x0.dtype) * noise

    def losses(self, model: Model, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """L_simple, eq. 14, of each image: the squared error of the predicted noise, mean over pixels: (B,)."""
        return (model(self.noised(x0, t, noise), t) - noise).square().flatten(1).mean(1)

    def denoised(self, x_t: Tensor, t: Tensor, noise: Tensor, clip: bool) -> Tensor:
        """The x_0 that a predicted noise stands for (eq. 4 solved for x_0), clipped to [-1, 1] where asked."""
        a = self.alpha_bar[t].view(-1, 1, 1, 1)
        x0 = ((x_t - (1 - a).sqrt() * noise) / a.sqrt()).to(x_t.dtype)
        return x0.clamp(-1, 1) if clip else x0

    @no_grad
    def sample(
        self,
        model: Model,
        x_T: Tensor,
        steps: int | None = None,
        eta: float = 1.0,
        clip: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] from noise x_T of that shape.

        eta=1 with all steps (steps=None or T) is ancestral sampling (Ho et al., algorithm 2) with the reverse
        variance; anything else is DDIM (Song et al. 2021, eq. 12 and 16) on every (T // steps)-th timestep. Where the
        predicted x_0 was clipped, the direction follows from the clipped one. Noise comes from `generator` alone.
        """
        steps = self.timesteps if steps is None else steps
        if not 1 <= steps <= self.timesteps:
            raise ValueError(f"steps={steps}: expected 1 .. {self.timesteps}, the number of timesteps")
        ancestral = eta == 1 and steps == self.timesteps
        stride = self.timesteps // steps
        x = x_T
        for step in reversed(range(steps)):
            t = torch.full((len(x),), step * stride, device=x.device)
            a = self.alpha_bar[step * stride]
            b = self.alpha_bar[(step - 1) * stride] if step else torch.ones_like(a)
            x0 = self.denoised(x, t, model(x, t), clip)
            noise = (x - a.sqrt() * x0) / (1 - a).sqrt()
            posterior = (1 - b) / (1 - a) * (1 - a / b)  # the posterior variance between these two timesteps
            direction = (1 - b - eta**2 * posterior).clamp(min=0).sqrt() * noise
            x = (b.sqrt() * x0 + direction).to(x.dtype)
            if step and eta > 0:
                sigma = self.reverse_variance[step].sqrt() if ancestral else eta * posterior.sqrt()
                draw = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
                x = x + sigma.to(x.dtype) * draw
        return x

    @no_grad
    def bits_per_dim(
        self,
        model: Model,
        x0: Tensor,
        clip: bool = True,
        generator: torch.Generator | None = None,
        terms: int | None = None,
        batch_size: int = 512,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The variational bound, eq. 5, of 8-bit images x0 (B, C, H, W) in [-1, 1], in bits per dimension.

        Returns total (B,), prior (B,) and vlb (B, T) in ascending t, float64; total = prior + vlb.sum(1). With
        `terms` < T each image is evaluated at one random timestep of each of that many strata, weighted by the size
        of its stratum, and vlb is 0 elsewhere: every column keeps its expectation. The noise is one draw for each
        term, from `generator` alone. `batch_size` timesteps are stacked in one call of the model.
        """
        return self.bounds(model, x0, [(self.variance, clip)], generator, terms, batch_size)[0]

    @no_grad
    def bounds(
        self,
        model: Model,
        x0: Tensor,
        choices: list[tuple[str, bool]],
        generator: torch.Generator | None = None,
        terms: int | None = None,
        batch_size: int = 512,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """bits_per_dim for each (variance, clip) of `choices`, all from the same predictions of the model."""
        low, size = self._strata(self.timesteps if terms is None else terms)  # (K,), (K,)
        uniform = torch.rand(len(x0), len(low), generator=generator, device=x0.device, dtype=torch.float64)
        t = (low + (uniform * size).long().clamp(max=size - 1)).flatten()  # (B * K,)
        image = torch.arange(len(x0), device=x0.device).repeat_interleave(len(low))
        vlbs = [torch.zeros(len(x0), self.timesteps, dtype=torch.float64, device=x0.device) for _ in choices]
        parts = zip(image.split(batch_size), t.split(batch_size), size.repeat(len(x0)).split(batch_size))
        for number, (i, s, weight) in enumerate(parts):
            noise = torch.randn(x0[i].shape, generator=generator, device=x0.device, dtype=x0.dtype)
            x_t = self.noised(x0[i], s, noise)
            guess = model(x_t, s).to(x0.dtype)
            lowest = slice(-number * batch_size % len(low), None, len(low))  # of each image, the one that may be t = 0
            for vlb, (variance, clip) in zip(vlbs, choices):
                vlb[i, s] = weight * self._term(x0[i], x_t, s, guess, self.reverse_variances[variance], clip, lowest)
        a = self.alpha_bar[-1]
        prior = 0.5 * (a * x0.double().square() - a - (1 - a).log()).flatten(1).mean(1) / math.log(2)
        return [(prior + vlb.sum(1), prior, vlb) for vlb in vlbs]

    def _strata(self, terms: int) -> tuple[Tensor, Tensor]:
        """First timestep and size of each stratum: single timesteps first, where most of the bound lies, then wider
        and wider ones, in geometric progression."""
        if not 1 <= terms <= self.timesteps:
            raise ValueError(f"terms={terms}: expected 1 .. {self.timesteps}, the number of timesteps")
        k = torch.arange(terms, device=self.device)
        ends = torch.maximum((self.timesteps ** (k / max(terms - 1, 1))).round().long(), k + 1)
        ends[-1:] = self.timesteps  # a fill; one element would be copied, and the GPU waited for
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        return starts, ends - starts

    def _term(
        self, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, reverse: Tensor, clip: bool, lowest: slice
    ) -> Tensor:
        """L_t of eq. 5 in bits per dimension, (B,): the likelihood of the pixels at t = 0, which `lowest` alone may
        have, a KL divergence elsewhere."""
        x0, x_t = x0.double(), x_t.double()
        guess = self.denoised(x_t, t, noise.double(), clip)
        wide = lambda table: table[t].view(-1, 1, 1, 1)  # noqa: E731
        a, b, beta = wide(self.alpha_bar), wide(self.alpha_bar_before), wide(self.beta)
        reverse = wide(reverse)
        to_x0, to_x_t = b.sqrt() * beta / (1 - a), (1 - beta).sqrt() * (1 - b) / (1 - a)  # eq. 7
        mean = to_x0 * guess + to_x_t * x_t
        ratio = wide(self.posterior_variance).clamp(min=1e-300) / reverse
        bits = 0.5 * (ratio - 1 - ratio.log() + (to_x0 * (x0 - guess)).square() / reverse)
        likelihood = log_likelihood(x0[lowest], mean[lowest], reverse[lowest].sqrt())
        bits[lowest] = torch.where(t[lowest].view(-1, 1, 1, 1) == 0, -likelihood, bits[lowest])
        return bits.flatten(1).mean(1) / math.log(2)


def log_likelihood(x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-probability of each pixel's bin of 1 / 127.5 under a Gaussian, the outer bins reaching to infinity (eq. 13).

    float64 throughout; bins of less than 1e-12 count as 1e-12, as in Ho et al.'s code.
    """
    upper = torch.special.ndtr((x0 + 1 / 255 - mean) / std).masked_fill(x0 > 0.999, 1.0)
    lower = torch.special.ndtr((x0 - 1 / 255 - mean) / std).masked_fill(x0 < -0.999, 0.0)
    return (upper - lower).clamp(min=1e-12).log()
