"""A Run: every parameter of one training, its checks, its name."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field

from .methods import METHODS
from .parameters import Parameters, among, flag, number
from .tasks import DATASETS, ORDERS

PROTOCOL = 2  # raised when the meaning of a number changes; results of another protocol are not mixed


@dataclass(frozen=True)
class Run(Parameters):
    """Every parameter of one training, checked as Parameters says."""

    dataset: str = among("digits", DATASETS, help="a name in cldiff.DATASETS")
    method: str = among("finetune", METHODS, help="a name in cldiff.METHODS")
    weight: float | None = number(None, 0, help="weight of the method's own loss; None: the method's default")
    options: dict = field(
        default_factory=dict,
        hash=False,
        metadata={"help": "the method's own options, by name; what is not given has its default", "later": True},
    )
    seed: int = number(0, 0, 2**31 - 1, help="of everything that is drawn")
    condition: str = among("task", ("task", "class"), help="whose ID is given to the network", later=True)
    # Training
    start: str = field(
        default="",
        metadata={"help": "the name of a finished run, whose network is the first; empty: a new one", "later": True},
    )
    tasks: int = number(0, 0, help="the first so many tasks of the sequence alone, 2 or more; 0: all", later=True)
    order: str = among("label", ORDERS, help="of the tasks: label, reversed, or shuffled by the seed", later=True)
    classes_per_task: int = number(2, 1, help="a divisor of the number of classes", later=True)
    steps: int = number(20_000, 1, help="gradient steps for each task")
    batch: int = number(128, 1, help="images of the current task in a step; replay adds as many")
    learning_rate: float = number(2e-4, 1e-12, 1, help="of Adam")
    ema: float = number(0.9999, 0, 1, help="largest decay of the averaged weights; s / (s + 9) at step s of a task")
    clip: float = number(1.0, 1e-12, help="largest norm of the gradient")
    buffer: int = number(200, 1, help="images kept for each past task (methods that replay, and the buffer's curves)")
    balanced: bool = flag(False, help="the images kept are of each class in turn, not of any", later=True)
    pool: int = number(5_000, 1, help="images drawn for each past task (methods that replay what the model draws)")
    pool_steps: int = number(50, 1, help="DDIM steps for each of them")
    precision: str = among(
        "float32",
        ("float32", "bfloat16"),
        help="of training; metrics are float32, as torch has it: TF32 in a GPU's convolutions",
    )
    deterministic: bool = flag(False, help="on a GPU: only algorithms that repeat bit for bit")
    compiled: bool = flag(False, help="the network by torch.compile, with CUDA graphs on a GPU", later=True)
    # Model
    timesteps: int = number(1000, 20, help="of the diffusion")
    channels: int = number(128, 8, help="of the U-Net's first level, a multiple of 8")
    multipliers: tuple[int, ...] = field(default=(1, 2, 2), metadata={"help": "width of each level"})
    blocks: int = number(2, 1, help="residual blocks for each level")
    patch: int = number(1, 1, help="patch x patch pixels are one place of the network", later=True)
    attention: int = number(14, 1, help="the resolution, in places, that has self-attention, beside the lowest")
    dropout: float = number(0.1, 0, 0.99, help="in each residual block")
    # Measuring
    samples: int = number(5_000, 16, help="for each FID and task accuracy")
    sample_steps: int = number(50, 1, help="of the sampler")
    eta: float = number(0.0, 0, 1, help="0: DDIM; 1 with all steps: ancestral sampling")
    inception: bool = flag(False, help="Inception features too, where the weights can be had")
    bound_terms: int = number(1000, 1, help="timesteps of the bound for each image; fewer: stratified, unbiased")
    bound_images: int = number(1_000, 1, help="test images of each task that the bound is measured on, at most")
    curve_every: int = number(1_000, 1, help="steps between two points of the curves of task 1")
    curve_images: int = number(200, 1, help="images of each split that the curves are measured on, at most")
    early: int = number(50, 0, help="the earlier of the two timesteps that the figures look at")
    late: int = number(700, 0, help="the later one")

    def __post_init__(self):
        if type(self.options) is not dict:
            raise TypeError(f"options={self.options!r}: expected a dict, for example {{'name': 1.0}}")
        super().__post_init__()
        if not re.fullmatch(r"([a-z]\w*-[\w.+-]+)?", self.start):
            raise ValueError(f"start={self.start!r}: expected the name of a finished run, the last part of its folder")
        if self.channels % 8:
            raise ValueError(f"channels={self.channels}: expected a multiple of 8")
        if self.steps % self.curve_every:
            raise ValueError(
                f"curve_every={self.curve_every}: expected a divisor of steps={self.steps}, "
                "so that each task ends with a point of the curves"
            )
        classes = DATASETS[self.dataset].classes
        most, rest = divmod(classes, self.classes_per_task)
        if rest or most < 2:
            raise ValueError(
                f"classes_per_task={self.classes_per_task}: expected a divisor of {classes}, the classes of "
                f"{self.dataset}, and two tasks or more"
            )
        if self.tasks == 1 or self.tasks > most:
            raise ValueError(f"tasks={self.tasks}: expected 0 (all of {self.dataset}), or 2 .. {most}")
        for name in ("pool_steps", "sample_steps"):
            if self.timesteps % getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a divisor of timesteps={self.timesteps}, "
                    "over all of which the steps are spread"
                )
        if self.bound_terms > self.timesteps:
            raise ValueError(f"bound_terms={self.bound_terms}: expected at most timesteps={self.timesteps}")
        for name in ("early", "late"):
            if getattr(self, name) not in self.curve_timesteps:
                raise ValueError(f"{name}={getattr(self, name)}: expected one of {self.curve_timesteps}")
        if self.early >= self.late:
            raise ValueError(f"early={self.early}: expected less than late={self.late}")
        method = METHODS[self.method]
        if self.condition == "class" and method.by_task:
            raise ValueError(f"condition='class': {self.method} has weights for each task; expected 'task'")
        if method.weight is None and self.weight is not None:
            raise ValueError(
                f"weight={self.weight}: {self.method} has no loss of its own to weigh; leave it out, or give the class "
                "a `weight`"
            )
        if not self.weight:  # of two zeros one has a sign, and a name of its own
            object.__setattr__(self, "weight", method.weight if self.weight is None else 0.0)
        for name in self.options:
            if name not in method.Options.names():
                known = ", ".join(method.Options.names()) or "it has none"
                raise ValueError(f"unknown option {name!r} of {self.method}; known: {known}")
        own = method.Options(**self.options)
        method.check(own, self.timesteps)
        object.__setattr__(self, "options", own.changes())

    @property
    def sequence(self) -> dict:
        """The parameters of the sequence of tasks, as tasks.sequence() and load_tasks() take them."""
        return {"first": self.tasks, **{name: getattr(self, name) for name in ("order", "classes_per_task", "seed")}}

    @property
    def name(self) -> str:
        weight = "" if self.weight is None else f"-w{self.weight:g}"
        return f"{self.dataset}-{self.method}{weight}-s{self.seed}-{self._hash(dataclasses.asdict(self))}"

    @property
    def first_task_name(self) -> str:
        """In the first task there is nothing to remember: runs that differ only in their method share it, but for
        methods that say that they do something there."""
        own = ("method", "weight", "options", "pool", "pool_steps") if METHODS[self.method].shares_first_task else ()
        shared = {name: value for name, value in dataclasses.asdict(self).items() if name not in own}
        return f"{self.dataset}-s{self.seed}-{self._hash(shared)}"

    def _hash(self, values: dict) -> str:
        """Parameters that came later, and a method's options and version, count off their defaults only: a name
        lasts."""
        later = {
            f.name: {} if f.name == "options" else f.default
            for f in dataclasses.fields(self)
            if f.metadata.get("later")
        }
        values = {name: value for name, value in values.items() if name not in later or value != later[name]}
        if "method" in values and METHODS[self.method].version > 1:
            values["version"] = METHODS[self.method].version
        text = json.dumps({"protocol": PROTOCOL, **values}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """As in tables and legends: the method, its weight unless a sweep chooses that, and options off their
        defaults."""
        method = METHODS[self.method]
        weight = [] if self.weight is None or method.tuned else [f"weight {self.weight:g}"]
        options = [
            f"{'not ' * (not value)}{name}" if isinstance(value, bool) else f"{name} {value}"
            for name, value in self.options.items()
        ]
        return ", ".join([method.label, *weight, *options])

    @property
    def curve_timesteps(self) -> list[int]:
        """At least 20 timesteps, evenly spaced, and the last one: 0, 50, 100, ..., 950, 999 of 1,000."""
        return sorted({*range(0, self.timesteps, max(1, self.timesteps // 20)), self.timesteps - 1})

    @property
    def sampler(self) -> str:
        if self.eta == 1 and self.sample_steps == self.timesteps:
            return f"ancestral{self.sample_steps}"
        return f"ddim{self.sample_steps}" + (f"-eta{self.eta:g}" if self.eta else "")
