"""Methods that rehearse past tasks: from stored images, or from images that the previous model draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..lazy import torch
from ..parameters import Parameters, flag
from ..tasks import Split, to_uint8
from .base import Batch, Method

if TYPE_CHECKING:
    from ..learner import Learner


def turns(values: torch.Tensor) -> torch.Tensor:
    """int64 (N,): of each of the values (N,), how many before it are the same."""
    same = values.unsqueeze(1) == values.unique()  # (N, different ones)
    return (same.cumsum(0) * same).sum(1) - 1


def buffer(learner: Learner, task: int) -> Split:
    """The training images of a past task that replay keeps: run.buffer of them, chosen by the seed alone."""
    train = learner.tasks[task].train
    order = torch.randperm(len(train), generator=learner.generator("buffer", task=task, step=0, device="cpu"))
    if learner.run.balanced:
        order = order[turns(train.labels[order]).argsort(stable=True)]
    return train[order[: learner.run.buffer]]


class Replay(Method):
    """Experience replay (Chaudhry et al. 2019): a second batch, drawn from the buffers of all past tasks."""

    label = "Experience replay"
    weight = 1.0
    passes = 6

    def held(self, learner: Learner) -> dict[str, int]:
        return super().held(learner) | {"images": len(self.state["images"])}

    def remember(self, learner: Learner, task: int) -> torch.Tensor:
        """uint8 (N, C, H, W): what stands for a past task."""
        return buffer(learner, task).images.to(learner.device)

    def ids(self, learner: Learner, task: int) -> torch.Tensor:
        """int64 (N,): the IDs of what stands for a past task."""
        return learner.ids.of(task, buffer(learner, task).labels)

    def start_task(self, learner: Learner) -> None:
        images, ids = ([of(learner, task) for task in range(learner.task)] for of in (self.remember, self.ids))
        self.state |= {"images": torch.cat(images), "task": torch.cat(ids)}

    def batch(self, learner: Learner, current: Batch) -> Batch:
        return current + self.replayed(learner) if "images" in self.state else current

    def replayed(self, learner: Learner) -> Batch:
        """A second batch, of as many images."""
        return learner.draw(self.state["images"], self.state["task"], "replay", self.weight)


class GenerativeReplay(Replay):
    """Generative replay (Shin et al. 2017): the buffers are filled by the model from before the task."""

    label = "Generative replay"

    @dataclass(frozen=True)
    class Options(Parameters):
        shared: bool = flag(False, help="in task k the current loss counts 1/k, replay (1 - 1/k) * weight")

    def share(self, learner: Learner) -> float:
        """Of the current task in the loss."""
        return 1 / (learner.task + 1)

    def batch(self, learner: Learner, current: Batch) -> Batch:
        if self.options.shared and "images" in self.state:
            current = replace(current, share=current.share * self.share(learner))
        return super().batch(learner, current)

    def replayed(self, learner: Learner) -> Batch:
        part = 1 - self.share(learner) if self.options.shared else 1.0
        return learner.draw(self.state["images"], self.state["task"], "replay", self.weight * part)

    def held(self, learner: Learner) -> dict[str, int]:
        return super().held(learner) | {"images": 0}

    def remember(self, learner: Learner, task: int) -> torch.Tensor:
        return to_uint8(learner.sample(task, learner.run.pool, learner.run.pool_steps, eta=0.0, purpose="pool"))

    def ids(self, learner: Learner, task: int) -> torch.Tensor:
        return learner.ids.spread(task, learner.run.pool)
