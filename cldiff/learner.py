"""The state of training: network, moving average, optimiser, method; its random numbers, its step, its checkpoints."""

import copy
import hashlib
import os
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from .diffusion import Diffusion, Model
from .errors import Problem, located_errors
from .files import Damaged, foreign, load_tensors, save_tensors, tensors
from .ids import Ids
from .methods import METHODS, Batch
from .methods.base import check_batch, check_state
from .networks import ByTask
from .run import Run
from .tasks import Task, data_sha256, to_model
from .unet import UNet, begin

COMPILED = 512  # images in a call of the compiled average, which measures and samples


class TrainingError(Problem):
    """Training that cannot go on; the message says where it was and what to change."""


def compiled(net: nn.Module) -> Model:
    """net by torch.compile; of a choice among networks these are compiled, and the choice is not."""
    if isinstance(net, ByTask):  # not by a decorator, which would load the compiler for everybody: 1.5 s
        net.forward = torch.compiler.disable(net.forward, recursive=False)
    return torch.compile(net, mode="reduce-overhead", dynamic=False)


class Learner:
    """All that training changes: network, average, optimiser, method.

    `task` is the index of the current task, `step` the steps done in it, `checkpoint` where to save at any moment.
    `begun`: the SHA-256 of the network that it started from, if any. `record` is the caller's: what it puts there by
    name is part of checkpoints. `seconds` counts time by phase, of training the CPU's too.
    """

    def __init__(self, run: Run, tasks: list[Task], device: str | torch.device = "cpu", start: bytes | None = None):
        """start: see results.find_start(). Raises Problem if its network is another one."""
        self.run, self.tasks, self.device = run, tasks, torch.device(device)
        self.diffusion = Diffusion(run.timesteps, device=self.device)
        self.task, self.step = 0, 0
        self.checkpoint: Path | None = None
        self.record: dict[str, list] = {}
        self.begun = {"start": hashlib.sha256(start).hexdigest()} if start else {}
        self.seconds = {"train": 0.0, "train_cpu": 0.0, "measure": 0.0}
        name, options = ("finetune", {}) if run.weight == 0 else (run.method, run.options)  # no work for a loss of 0
        self.method = METHODS[name](run.weight, METHODS[name].Options(**options))
        self.ids = Ids(tasks, run.condition == "class", self.device)
        colours, _, size = tasks[0].train.images.shape[1:]
        with self.seeded("weights"):
            net = UNet.of(run, size, self.ids.number, colours)
            if start:
                begin(net, tensors(start, Path(run.start)), run.start)
            self.arguments, self.parameters = net.arguments, sum(p.numel() for p in net.parameters())
            with located_errors():
                net = self.method.build(net)
            self.net = net.to(self.device, memory_format=torch.channels_last)  # 10 to 20 % faster
        self.ema = copy.deepcopy(self.net).eval().requires_grad_(False)
        # Compiled once for all tasks: the shapes stay, and so do the addresses that CUDA graphs hold.
        self._net, self._ema = map(compiled if run.compiled else lambda net: net, (self.net, self.ema))
        self._weights, self._averaged = list(self.net.parameters()), list(self.ema.parameters())
        self.images = [task.train.images.to(self.device) for task in tasks]  # uint8 (N, C, H, W), to learn from
        self._restart()

    def _restart(self) -> None:
        """A new optimiser and a new average for a new task."""
        with torch.no_grad():
            torch._foreach_copy_(self._averaged, self._weights)
        self.optimizer = torch.optim.Adam(self._weights, lr=self.run.learning_rate, fused=True)

    # Randomness is a function of (seed, task, step, purpose): nothing else that draws numbers can disturb training.

    def derive(self, purpose: str, task: int | None = None, step: int | None = None) -> int:
        key = (self.run.seed, self.task if task is None else task, self.step if step is None else step, purpose)
        return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1

    def generator(
        self, purpose: str, task: int | None = None, step: int | None = None, device: str | torch.device | None = None
    ) -> torch.Generator:
        return torch.Generator(device or self.device).manual_seed(self.derive(purpose, task, step))

    @contextmanager
    def seeded(self, purpose: str):
        """Within it torch's global generators, the CPU's and the device's, are seeded, without the caller noticing."""
        with torch.random.fork_rng(devices := [self.device] if self.device.type == "cuda" else []):
            torch.default_generator.manual_seed(self.derive(purpose))
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self.derive(purpose))
            yield

    def draw(
        self, images: Tensor, task: Tensor | int, purpose: str, weight: float = 1.0, size: int | None = None
    ) -> Batch:
        """A batch of this step: images drawn with replacement from uint8 (N, C, H, W), timesteps, noise.

        task: an ID for all, or int64 (N,). size: of the batch, run.batch unless given. The same purpose in the same
        step draws the same.
        """
        size, generator = size or self.run.batch, self.generator(purpose)
        index = torch.randint(len(images), (size,), generator=generator, device=self.device)
        t = torch.randint(self.run.timesteps, (size,), generator=generator, device=self.device)
        noise = torch.randn(size, *images.shape[1:], generator=generator, device=self.device)
        ids = torch.full_like(index, task) if isinstance(task, int) else task[index]
        share = torch.full((size,), weight / size, device=self.device)
        return Batch(to_model(images[index]), ids, t, noise, share, noise)

    def model(self, task: int | Tensor) -> Model:
        """The averaged network for an ID, or for one of each image, as diffusion wants it: model(x, t) predicts the
        noise."""
        chosen = isinstance(self.ema, ByTask)  # among networks: by a number, for which nobody waits

        def predict(x: Tensor, t: Tensor) -> Tensor:
            ids = task.expand_as(t) if isinstance(task, Tensor) else torch.full_like(t, task)
            if not self.run.compiled:
                return self.ema(x, t, task if chosen else ids)
            found = []
            for parts in zip(*(values.split(COMPILED) for values in (x, t, ids))):  # others would be compiled anew
                n = len(parts[0])
                images, s, own = (torch.cat([part, part.new_zeros(COMPILED - n, *part.shape[1:])]) for part in parts)
                guess = self._ema(images, s, task if chosen else own)[:n]
                found.append(guess.clone())  # CUDA graphs write over what they return
            return torch.cat(found)

        return predict

    def sample(self, task: int, n: int, steps: int, eta: float, purpose: str) -> Tensor:
        """n images for a task from the averaged network, float (n, C, H, W) in [-1, 1]."""
        generator, batch = self.generator(f"{purpose} {task}"), COMPILED if self.run.compiled else 500
        shape = self.tasks[task].train.images.shape[1:]
        parts = [
            torch.randn(min(batch, n - start), *shape, generator=generator, device=self.device)
            for start in range(0, n, batch)
        ]
        ids = self.ids.spread(task, n).split(batch) if self.ids.by_class else [task] * len(parts)
        return torch.cat(
            [self.diffusion.sample(self.model(i), x, steps, eta, generator=generator) for i, x in zip(ids, parts)]
        )

    def half(self):
        """A context of the precision that the run trains in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.run.precision == "bfloat16" else nullcontext()

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch under the current weights, a scalar; dropout is the same for each call within a step."""
        with self.seeded("dropout"), self.half():  # dropout draws from the global generator of the device
            guess = self._net(self.diffusion.noised(batch.x0, batch.t, batch.noise), batch.t, batch.task)
        return (batch.share * (guess.float() - batch.target).square().flatten(1).mean(1)).sum()

    def update(self) -> Tensor:
        """One step of training; returns its loss."""
        batch = self.method.batch(self, self.draw(self.images[self.task], self.ids.train[self.task], "current"))
        if self.step == 0:
            check_batch(batch, self.images[0].shape[1:], self.run.timesteps, self.ids.number)
        self.optimizer.zero_grad()  # before the forward pass: their memory is free for it
        loss = self.loss(batch)
        penalty = self.method.penalty(self)
        loss = loss if penalty is None else loss + penalty
        loss.backward()
        self.method.adjust_gradients(self)
        self._norm = torch.nn.utils.clip_grad_norm_(self._weights, self.run.clip)
        self.optimizer.step()
        self.method.after_step(self)
        self.step += 1
        if self.step == 1:
            check_state(self.method.state)
        keep = min(self.run.ema, self.step / (self.step + 9))  # the ramp: the average of a young task forgets its start
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._weights, 1 - keep)
            if self.step == self.run.steps and self.task:
                self.method.end_task(self)
        return loss.detach()

    def next_task(self) -> None:
        self.task, self.step = self.task + 1, 0
        self.method.start_task(self)
        self._restart()

    def owner(self, task: int) -> str:
        """Whose a state in this task is: in the first one it is that of all runs that share it."""
        name = self.run.name if task else self.run.first_task_name
        start = f" from weights {self.begun['start'][:8]}" if self.begun else ""
        return f"{name} on data {data_sha256(self.run.dataset)[:8]}{start}"

    def state_dict(self) -> dict:
        optimizer = self.optimizer.state_dict()
        if self.step == self.run.steps:
            optimizer["state"] = {}  # half of the file, and the next task begins with a new one
        return {
            "owner": self.owner(self.task),
            "task": self.task,
            "step": self.step,
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer,
            "method": self.method.state,
            "record": self.record,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.state = {name: value.to(self.device) for name, value in state["method"].items()}
        for name in ("task", "step", "record", "seconds"):
            setattr(self, name, state[name])

    def check(self, loss: Tensor) -> None:
        """Raises TrainingError if the loss, a gradient or a parameter is no number any more. Waits for the GPU."""
        if not torch.stack([loss, self._norm, *(p.detach().sum() for p in self._weights)]).isfinite().all():
            weight = f", weight={self.run.weight:g}" if self.run.weight else ""
            raise TrainingError(
                f"loss, gradients or parameters are no longer finite at step {self.step} of task {self.task + 1}: "
                f"lower learning_rate={self.run.learning_rate:g}{weight} or clip={self.run.clip:g}; the last "
                "checkpoint is kept"
            )

    def save(self, path: Path) -> None:
        """A checkpoint behind its SHA-256; the one before stays beside it. For after a step has been measured."""
        if path.exists():
            os.replace(path, before(path))
        save_tensors(path, self.state_dict())

    def load(self, path: Path) -> bool:
        """Continues from a checkpoint, or from the one before where it is damaged; False if there is none to use.
        Raises TrainingError for another run's."""
        for candidate in (path, before(path)):
            if not candidate.exists():
                continue
            try:
                state = load_tensors(candidate, self.device)
            except Damaged as error:
                warnings.warn(f"{error} and not used; an earlier state is, where there is one", stacklevel=2)
                candidate.unlink()  # or save() would put it in the place of the earlier one
                continue
            try:
                own, found = self.owner(state["task"]), state["owner"]
                if found == own:
                    self.load_state_dict(state)
            except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
                raise foreign(candidate, error) from None
            if found != own:
                raise TrainingError(f"{candidate} belongs to {found}, not to {own}: move it away, and run again")
            return True
        return False


def before(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_suffix(".before.pt")
