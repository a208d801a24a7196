"""Networks that give each task weights of its own, for the methods that do so."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ByTask(nn.Module):
    """Of several networks, each example goes through its task's. A number for the task of all saves asking a tensor,
    for which a GPU would have to be waited for in each step."""

    def choose(self, task: int) -> Callable[..., Tensor]:
        """What stands for the network for one task ID."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, task: Tensor | int) -> Tensor:
        if isinstance(task, int):  # as usual: nothing is copied
            return self.choose(task)(x, t, torch.full_like(t, task))
        ids = sorted(set(task.tolist()))
        if len(ids) == 1:
            return self.choose(ids[0])(x, t, task)
        places = [(task == own).nonzero().squeeze(1) for own in ids]
        found = torch.cat([self.choose(own)(x[i], t[i], task[i]) for own, i in zip(ids, places)])
        return found[torch.cat(places).argsort()]


class Networks(ByTask):
    """A network for each task ID."""

    def __init__(self, nets: list[nn.Module]):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def choose(self, task: int) -> nn.Module:
        return self.nets[task]


class Adapted(ByTask):
    """A network whose matrices and kernels have a low-rank change for each task but the first: B (task, outputs, rank)
    and A (task, rank, places of the kernel times inputs)."""

    def __init__(self, net: nn.Module, tasks: int, rank: int):
        super().__init__()
        self.net, self.rank = net, rank
        self.names = [name for name, p in net.named_parameters() if p.ndim > 1]
        shapes = [net.get_parameter(name).flatten(1).shape for name in self.names]
        self.A = nn.ParameterList(torch.empty(tasks - 1, rank, n).uniform_(-(n**-0.5), n**-0.5) for _, n in shapes)
        self.B = nn.ParameterList(torch.zeros(tasks - 1, m, rank) for m, _ in shapes)

    def choose(self, task: int) -> Callable[..., Tensor]:
        return self.changed if task > 0 else self.net

    def changed(self, x: Tensor, t: Tensor, task: Tensor) -> Tensor:
        """The network with the change of the one task that is asked for."""
        own, weights = task[:1] - 1, {}  # not a number, for each of which torch.compile would build a network
        for name, *change in zip(self.names, self.B, self.A):
            W = self.net.get_parameter(name).movedim(1, -1)  # as channels-last has it in memory
            B, A = (part.index_select(0, own).squeeze(0) for part in change)
            merged = torch.addmm(W.flatten(1), B, A, alpha=1 / self.rank)
            weights[name] = merged.view(W.shape).movedim(-1, 1)
        return torch.func.functional_call(self.net, weights, (x, t, task))
