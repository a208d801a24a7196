"""The ID that conditions the network on an image: its task's, or its class's."""

import torch
from torch import Tensor

from .tasks import Split, Task


class Ids:
    """IDs count from 0 in the order in which tasks or classes are learned. by_class: of the class, not of the task."""

    def __init__(self, tasks: list[Task], by_class: bool, device: str | torch.device = "cpu"):
        self.by_class, self.device = by_class, device
        classes = torch.tensor([label for task in tasks for label in task.classes])
        self.place = torch.full((int(classes.max()) + 1,), -1)  # of a class in the sequence
        self.place[classes] = torch.arange(len(classes))
        own = [self.place[list(task.classes)] if by_class else torch.tensor([task.index]) for task in tasks]
        self.all = torch.cat(own).to(device)  # in their order, where steps and sampling need them
        self.own, self.number = self.all.split([len(ids) for ids in own]), len(self.all)
        self.train = [self.of(task.index, task.train.labels) for task in tasks]

    def of(self, task: int, labels: Tensor) -> Tensor:
        """int64 (N,) for images of a task with these labels (N,), on the device."""
        return (self.place[labels] if self.by_class else torch.full_like(labels, task)).to(self.device)

    def past(self, task: int) -> Tensor:
        """All IDs of the tasks before this one."""
        return self.all[: sum(map(len, self.own[:task]))]

    def spread(self, task: int, n: int) -> Tensor:
        """int64 (n,) for n images to be drawn for a task: its IDs in turn."""
        return self.own[task][torch.arange(n, device=self.device) % len(self.own[task])]

    def parts(self, task: int, split: Split) -> list[tuple[int, Tensor]]:
        """Images of a task by their ID, without those IDs that no image has."""
        ids = self.of(task, split.labels).to(split.images.device)
        found = [(number, split.images[ids == number]) for number in self.own[task].tolist()]
        return [(number, images) for number, images in found if len(images)]
