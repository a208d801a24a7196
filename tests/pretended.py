"""A GPU that is not there: tensors that say they are on "cuda", computed on the CPU, so that a whole run can be watched
on a machine without a GPU. Every number, gradient and file is that of the CPU, bit for bit; what is watched is where
tensors are, and when the program would have to wait for the GPU."""

from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
BY_MASK = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)  # these count a mask's ones first


class Mixed(Exception):
    """Tensors of two devices in one operation, or a generator of another one."""


class Waits(Exception):
    """The program waits for the GPU where it should not: it reads a number, or copies between host and GPU."""


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.claimed = torch.device(device).type
        return made


class Places:
    """Where each tensor claims to be, by its storage: a view is where its base is."""

    def __init__(self):
        self.there = {}  # the reference keeps a storage's address from being given away again

    def storage(self, x: Tensor) -> torch.UntypedStorage:
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            x = torch._C._functorch.get_unwrapped(x)
        return x.untyped_storage()

    def of(self, x: Tensor) -> torch.device:
        return GPU if self.storage(x)._cdata in self.there else CPU

    def put(self, x: Tensor) -> None:
        storage = self.storage(x)
        self.there[storage._cdata] = StorageWeakRef(storage)


class Watched:
    """quiet: whether waiting is an error now; asked: the device that is asked for by name; forks: how often the state of
    the GPU's global generator was kept and given back."""

    def __init__(self):
        self.places, self.quiet, self.asked, self.forks = Places(), False, None, 0

    def forked(self, state: Tensor, device: torch.device) -> None:
        self.forks += 1

    def waits(self, why: str) -> None:
        if self.quiet:
            raise Waits(why)


def looks_at_numbers(func, args: tuple, kwargs: dict) -> bool:
    """Whether what comes out, or its shape, cannot be known without them."""
    if func.overloadpacket in BY_MASK:
        return any(x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None)
    shape_is_given = kwargs.get("output_size") is not None
    return torch.Tag.data_dependent_output in func.tags or (
        torch.Tag.dynamic_output_shape in func.tags and not shape_is_given
    )


class Operations(TorchDispatchMode):
    """Below autograd: what torch computes, forwards and backwards."""

    def __init__(self, watched: Watched):
        super().__init__()
        self.watched = watched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, places, kind = dict(kwargs or {}), self.watched.places, func.overloadpacket
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        at = [places.of(x) for x in tensors]
        target = GPU if GPU in at else CPU
        if kwargs.get("device") is not None:
            target = self.watched.asked or target
        if kind in (aten._to_copy, aten.copy_):
            source, target = (at[0], target) if kind is aten._to_copy else (at[1], at[0])
            if source != target:
                self.watched.waits(f"a copy from {source.type} to {target.type}")
        elif GPU in at:
            if any(place == CPU and x.ndim > 0 for x, place in zip(tensors, at)):
                raise Mixed(f"{func}: {', '.join(f'{tuple(x.shape)} on {p.type}' for x, p in zip(tensors, at))}")
            if looks_at_numbers(func, args, kwargs):
                self.watched.waits(f"{func} looks at numbers")
        found = func(*args, **kwargs)
        if target == GPU:
            tree_map_only(Tensor, places.put, found)
        return found


class Words(TorchFunctionMode):
    """Above autograd: what a program says. On a CPU torch leaves nothing to do of some of it."""

    def __init__(self, watched: Watched):
        super().__init__()
        self.watched = watched

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, place = kwargs or {}, lambda: self.watched.places.of(args[0])
        if func == Tensor.device.__get__:
            return place()
        if func == Tensor.is_cuda.__get__:
            return place() == GPU
        if func in (Tensor.cpu, Tensor.cuda):
            return self.moved(args[0], CPU if func is Tensor.cpu else GPU)
        if func is Tensor.to:
            device, dtype, _, layout = torch._C._nn._parse_to(*args[1:], **kwargs)
            device = place() if device is None else GPU if device.type == "cuda" else CPU
            return self.moved(
                func(args[0], dtype or args[0].dtype, memory_format=layout or torch.preserve_format), device
            )
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__) and place() == GPU:
            if func is not Tensor.tolist:
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            self.watched.waits("tolist")
        if func is torch.nn.functional.one_hot and place() == GPU:  # on a CPU the numbers are looked at
            return (args[0][..., None] == self.asking(GPU, torch.arange, args[1], device=CPU)).long()
        if func is Tensor.__setitem__ and not isinstance(args[2], Tensor):  # a GPU fills with a number
            if place() == GPU and args[0][args[1]].ndim == 0:
                self.watched.waits("a number copied to one element")
            args = (*args[:2], self.asking(place(), torch.full, (), args[2], dtype=args[0].dtype, device=CPU))
        device = kwargs.get("device")
        if device is not None:
            device = GPU if torch.device(device).type == "cuda" else CPU
        if kwargs.get("generator") is not None:
            wanted = device or next((self.watched.places.of(x) for x in args if isinstance(x, Tensor)), CPU)
            if kwargs["generator"].claimed != wanted.type:
                raise Mixed(f"a generator on {kwargs['generator'].claimed} for numbers on {wanted.type}")
        if device is None:
            return func(*args, **kwargs)
        if func is torch.tensor:
            return self.moved(func(*args, **{**kwargs, "device": CPU}), device)
        return self.asking(device, func, *args, **{**kwargs, "device": CPU})

    def asking(self, place: torch.device, func, /, *args, **kwargs):
        self.watched.asked = place
        try:
            return func(*args, **kwargs)
        finally:
            self.watched.asked = None

    def moved(self, x: Tensor, device: torch.device) -> Tensor:
        return x if self.watched.places.of(x) == device else self.asking(device, aten._to_copy, x, device=CPU)


@contextmanager
def gpu():
    """Within it "cuda" is a device; yields a Watched."""
    watched, load, autocast = Watched(), torch.load, torch.autocast
    grouped = torch._C._group_tensors_by_device_and_dtype

    def group(lists, with_indices=False):  # in C++, which knows better
        return {
            (watched.places.of(next(x for x in tree_leaves(found[0]) if x is not None)), dtype): found
            for (_, dtype), found in grouped(lists, with_indices).items()
        }

    def load_to(file, map_location=None, **how):
        return tree_map_only(Tensor, lambda x: x.to(map_location), load(file, map_location="cpu", **how))

    with (
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(torch, "load", load_to),
        mock.patch.object(torch, "autocast", lambda kind, dtype: autocast({"cuda": "cpu"}[kind], dtype)),
        mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", group),
        mock.patch.object(torch.cuda, "get_rng_state", lambda device: torch.empty(0)),
        mock.patch.object(torch.cuda, "set_rng_state", watched.forked),
        mock.patch.object(torch.cuda, "get_device_name", lambda device: "a pretended GPU"),
        mock.patch.object(torch.cuda, "device", nullcontext),
        mock.patch.object(torch.cuda, "manual_seed", torch.default_generator.manual_seed),
        Words(watched),
        Operations(watched),
    ):
        yield watched
