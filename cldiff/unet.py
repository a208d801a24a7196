"""The U-Net of Ho et al. (2020), conditioned on the timestep and on the task."""

from __future__ import annotations

import math
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import Problem
from .files import foreign, load_tensors, save_tensors

if TYPE_CHECKING:
    from .run import Run


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of timesteps (Vaswani et al. 2017, in the form of Ho et al.): (B,) -> (B, width)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / (half - 1)))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def norm(channels: int) -> nn.GroupNorm:
    """Of 32 groups as in Ho et al., or of as many as have four channels at least and divide them."""
    return nn.GroupNorm(next(n for n in range(min(32, channels // 4), 0, -1) if channels % n == 0), channels)


def zero(layer: nn.Module) -> nn.Module:
    """The last layer of a residual branch starts at zero, so that each block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.condition = nn.Linear(embedding, outputs)
        self.norm2, self.conv2 = norm(outputs), zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.condition(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over all pixels, one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Linear(channels, 3 * channels)
        self.out = zero(nn.Linear(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        pixels = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C), no copy where x is channels-last
        heads = self.qkv(pixels).unsqueeze(1).chunk(3, dim=-1)  # one; a GPU's fused kernels ask for four dimensions
        h = self.out(F.scaled_dot_product_attention(*heads).squeeze(1))
        return x + h.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Resample(nn.Module):
    """Halves the resolution by a strided convolution, or doubles it by nearest neighbour and a convolution."""

    def __init__(self, channels: int, up: bool):
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        # The same twice: the gradient of F.interpolate is compiled to atomic additions.
        if self.up and torch.compiler.is_compiling():
            x = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4, 5).flatten(2, 3)
        elif self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x)


class UNet(nn.Module):
    """Predicts the noise in x_t.

    channels: width of the first level; multipliers: width of each level in units of it; blocks: residual blocks per
    level; attention: the resolution at which self-attention follows each block, beside the middle, which always has it;
    tasks: length of the one-hot task vector; patch: patch x patch pixels become the channels of one place before the
    first layer, and pixels again after the last (Luhman and Luhman 2022): the levels' resolutions count such places.
    Raises ValueError if the image cannot be cut into patches, or these not be halved once for every level but the last.
    """

    def __init__(
        self,
        size: int,
        tasks: int,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        attention: int = 14,
        dropout: float = 0.1,
        colours: int = 1,
        patch: int = 1,
    ):
        super().__init__()
        self.arguments = dict(
            size=size,
            tasks=tasks,
            channels=channels,
            multipliers=tuple(multipliers),
            blocks=blocks,
            attention=attention,
            dropout=dropout,
            colours=colours,
            patch=patch,
        )
        if size % patch:
            raise ValueError(
                f"images of {size} pixels cannot be cut into patches of {patch}: use a patch that divides {size}"
            )
        size, colours = size // patch, colours * patch**2
        if size % 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"images of {size} {'places' if patch > 1 else 'pixels'} cannot be halved {len(multipliers) - 1} "
                f"times: use fewer multipliers than {multipliers}"
            )
        self.channels, self.tasks, self.patch, width = channels, tasks, patch, 4 * channels
        self.embed = nn.Sequential(nn.Linear(channels + tasks, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.first = nn.Conv2d(colours, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

        def stage(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                [ResidualBlock(inputs, outputs, width, dropout)] + [Attention(outputs)] * (size == attention)
            )

        here, skips = channels, [channels]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(stage(here, channels * multiplier))
                here = channels * multiplier
                skips.append(here)
            if level < len(multipliers) - 1:
                self.down.append(nn.ModuleList([Resample(here, up=False)]))
                skips.append(here)
                size //= 2
        self.middle = nn.ModuleList(
            [ResidualBlock(here, here, width, dropout), Attention(here), ResidualBlock(here, here, width, dropout)]
        )
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                self.up.append(stage(here + skips.pop(), channels * multiplier))
                here = channels * multiplier
                if level > 0 and block == blocks:
                    self.up[-1].append(Resample(here, up=True))
                    size *= 2
        self.last = nn.Sequential(norm(here), nn.SiLU(), zero(nn.Conv2d(here, colours, 3, padding=1)))

    @classmethod
    def of(cls, run: Run, size: int, tasks: int, colours: int) -> UNet:
        """The network of a run."""
        shape = run.channels, run.multipliers, run.blocks, run.attention, run.dropout
        return cls(size, tasks, *shape, colours, run.patch)

    def forward(self, x: Tensor, t: Tensor, task: Tensor) -> Tensor:
        """x: (B, C, H, W) in [-1, 1] plus noise; t: int64 (B,); task: int64 (B,), from 0. Returns (B, C, H, W)."""
        one_hot = F.one_hot(task, self.tasks)
        embedding = self.embed(torch.cat([timestep_embedding(t, self.channels), one_hot.to(x.dtype)], dim=1))
        h = self.first(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        skips = [h]
        for stage in self.down:
            for layer in stage:
                h = layer(h, embedding)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for stage in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in stage:
                h = layer(h, embedding)
        h = self.last(h)
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


def begin(net: UNet, saved: dict, name: str) -> None:
    """Gives a network the weights of the one that a finished run of this name has saved. Raises Problem if that is
    another network."""
    found = signature(UNet).bind(**saved["arguments"])
    found.apply_defaults()  # for what older files lack
    for key, own in net.arguments.items():
        if found.arguments[key] != own and key != "dropout":
            raise Problem(f"start={name}: its network has {key}={found.arguments[key]}, expected this run's {own}")
    try:
        net.load_state_dict(saved["parameters"])
    except RuntimeError:
        raise Problem(f"start={name}: its network is not one U-Net for all tasks, as expected") from None


def save_unet(path: Path, net: nn.Module, arguments: dict) -> None:
    """A network for publication: the arguments of its U-Net, and its parameters in half precision."""
    save_tensors(path, {"arguments": arguments, "parameters": {name: p.half() for name, p in net.state_dict().items()}})


def load_unet(path: Path | str) -> UNet:
    """What save_unet wrote of a U-Net, for evaluation. Raises ValueError if the file is damaged, Problem if it holds
    something else."""
    saved = load_tensors(Path(path))
    try:
        net = UNet(**saved["arguments"]).to(memory_format=torch.channels_last)
        net.load_state_dict(saved["parameters"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise foreign(Path(path), error) from None
    return net.eval().requires_grad_(False)
