"""A Run: every parameter of one training, its checks, its name, its folder, and the results that are read back."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from .files import file_sha256
from .tasks import DATASETS

PROTOCOL = 2  # raised when the meaning of a number changes; results of another protocol are not mixed
COLUMNS = ("after_task", "eval_task", "metric", "value", "split", "extractor", "n", "sampler")
CURVES = ("step", "task", "eval_task", "split", "timestep", "loss", "bpd")
TABLES = {"scores.csv": COLUMNS, "curves.csv": CURVES, "bootstrap.csv": None}  # files and their columns
FILES = (*TABLES, "samples.png", "result.json")  # the last is written last
WEIGHTS = "weights.pt"  # of the averaged network after the last task, beside them; published for some runs only


def among(default: str, *values: str):
    return field(default=default, metadata={"among": values})


def number(default: float | None, low: float, high: float = float("inf"), **more: bool):
    return field(default=default, metadata={"low": low, "high": high, **more})


LATER = {"later": True}  # marks a parameter that came after results were published: see Run._hash


@dataclass(frozen=True)
class Run:
    """Raises TypeError for a value of the wrong type, ValueError for one that is unknown or out of range."""

    dataset: str = among("digits", *DATASETS)
    method: str = "finetune"  # a name of cldiff.methods.METHODS
    weight: float | None = number(None, 0)  # of the method's own loss; None: the method's default
    seed: int = number(0, 0, 2**31 - 1)
    # Training
    steps: int = number(20_000, 1)  # gradient steps for each task
    batch: int = number(128, 1)  # images of the current task in a step; replay adds as many
    learning_rate: float = number(2e-4, 1e-12, 1)  # Adam
    ema: float = number(0.9999, 0, 1)  # largest decay of the averaged weights; s / (s + 9) at step s of a task
    clip: float = number(1.0, 1e-12)  # largest norm of the gradient
    buffer: int = number(200, 1)  # images kept for each past task (experience replay, and the buffer's curves)
    pool: int = number(5_000, 1)  # images drawn for each past task (generative replay)
    pool_steps: int = number(50, 1)  # DDIM steps for each of them
    precision: str = among("float32", "float32", "bfloat16")  # of training; metrics are always float32 or better
    deterministic: bool = False  # on a GPU: only algorithms that repeat bit for bit
    compiled: bool = field(default=False, metadata=LATER)  # the network by torch.compile, with CUDA graphs on a GPU
    # Model
    timesteps: int = number(1000, 20)
    channels: int = number(128, 8)  # of the first level, a multiple of 8
    multipliers: tuple[int, ...] = (1, 2, 2)  # width of each level
    blocks: int = number(2, 1)  # residual blocks for each level
    patch: int = number(1, 1, **LATER)  # patch x patch pixels are one place of the network
    attention: int = number(14, 1)  # the resolution, in places, that has self-attention
    dropout: float = number(0.1, 0, 0.99)
    # Measuring
    samples: int = number(5_000, 16)  # for each FID and task accuracy
    sample_steps: int = number(50, 1)  # of the sampler
    eta: float = number(0.0, 0, 1)  # 0: DDIM; 1 with all steps: ancestral sampling
    inception: bool = False  # Inception features too, where the weights can be had
    bound_terms: int = number(1000, 1)  # timesteps of the bound evaluated for each image; fewer: stratified, unbiased
    bound_images: int = number(1_000, 1)  # test images of each task that the bound is measured on, at most
    curve_every: int = number(1_000, 1)  # steps between two points of the curves of task 1
    curve_images: int = number(200, 1)  # images of each split that the curves are measured on, at most
    early: int = number(50, 0)  # the two timesteps that the figures look at
    late: int = number(700, 0)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            self._check(f)
        if self.channels % 8:
            raise ValueError(f"channels={self.channels}: expected a multiple of 8")
        if self.steps % self.curve_every:
            raise ValueError(f"curve_every={self.curve_every}: expected a divisor of steps={self.steps}, "
                             "so that each task ends with a point of the curves")
        for name in ("pool_steps", "sample_steps", "bound_terms"):
            if getattr(self, name) > self.timesteps:
                raise ValueError(f"{name}={getattr(self, name)}: expected at most timesteps={self.timesteps}")
        for name in ("early", "late"):
            if getattr(self, name) not in self.curve_timesteps:
                raise ValueError(f"{name}={getattr(self, name)}: expected one of {self.curve_timesteps}")
        from .methods import METHODS
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known: {', '.join(METHODS)}")
        default = METHODS[self.method].weight
        if default is None and self.weight is not None:
            raise ValueError(f"weight={self.weight}: {self.method} has no loss of its own to weigh; leave it out")
        if self.weight is None:
            object.__setattr__(self, "weight", default)

    def _check(self, f: dataclasses.Field) -> None:
        value = getattr(self, f.name)
        if f.name == "multipliers":
            if not isinstance(value, (tuple, list)) or not value or not all(type(m) is int and m > 0 for m in value):
                raise TypeError(f"multipliers={value!r}: expected a list of integers of at least 1")
            object.__setattr__(self, f.name, tuple(value))
            return
        if value is None and f.name == "weight":
            return
        kind = {"weight": float}.get(f.name, f.type)
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 1e300 else math.inf
            object.__setattr__(self, f.name, value)
        if type(value) is not kind:
            raise TypeError(f"{f.name}={value!r}: expected {'an' if kind is int else 'a'} {kind.__name__}, "
                            f"not {type(value).__name__}")
        if kind is float and not math.isfinite(value):
            raise ValueError(f"{f.name}={value}: expected a finite number")
        if "among" in f.metadata and value not in f.metadata["among"]:
            known = dict.fromkeys(f.metadata["among"])
            raise ValueError(f"unknown {f.name} {value!r}; known: {', '.join(known)}")
        if "low" in f.metadata and not f.metadata["low"] <= value <= f.metadata["high"]:
            low, high = f.metadata["low"], f.metadata["high"]
            wanted = f"{low} .. {high}" if high < float("inf") else f"at least {low}"
            raise ValueError(f"{f.name}={value}: expected {wanted}")

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in dataclasses.fields(cls)]

    @property
    def name(self) -> str:
        weight = "" if self.weight is None else f"-w{self.weight:g}"
        return f"{self.dataset}-{self.method}{weight}-s{self.seed}-{self._hash(dataclasses.asdict(self))}"

    @property
    def first_task_name(self) -> str:
        """The first task has nothing to remember: runs that differ only in their method share it."""
        shared = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("method", "weight", "pool", "pool_steps")}
        return f"{self.dataset}-s{self.seed}-{self._hash(shared)}"

    @classmethod
    def _hash(cls, values: dict) -> str:
        """Parameters that came later count where they are off their default: names from before stay."""
        later = {f.name: f.default for f in dataclasses.fields(cls) if "later" in f.metadata}
        values = {name: value for name, value in values.items() if name not in later or value != later[name]}
        text = json.dumps({"protocol": PROTOCOL, **values}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """As in tables and legends."""
        return label(self.method, self.weight)

    @property
    def curve_timesteps(self) -> list[int]:
        """At least 20 timesteps, evenly spaced, and the last one: 0, 50, 100, ..., 950, 999 of 1,000."""
        return sorted({*range(0, self.timesteps, max(1, self.timesteps // 20)), self.timesteps - 1})

    @property
    def sampler(self) -> str:
        if self.eta == 1 and self.sample_steps == self.timesteps:
            return f"ancestral{self.sample_steps}"
        return f"ddim{self.sample_steps}" + (f"-eta{self.eta:g}" if self.eta else "")


def label(method: str, weight: float | None) -> str:
    from .methods import METHODS
    name = METHODS[method].label
    return name if weight is None or method == "l2" else f"{name}, weight {weight:g}"


class ResultError(RuntimeError):
    """A result folder that cannot be used; the message names it and says why."""


def read_result(folder: Path) -> dict:
    """result.json of a finished run. Raises ResultError if it, or a file that it vouches for, is not whole."""
    try:
        result = json.loads((folder / "result.json").read_text())
        if result["protocol"] != PROTOCOL:
            raise ResultError(f"{folder}: protocol {result['protocol']}, this version writes {PROTOCOL}")
        for name in FILES[:-1]:
            if file_sha256(folder / name) != result["sha256"][name]:
                raise ResultError(f"{folder}: {name} is not the file that was written")
        if Run(**result["run"]).name != folder.name:
            raise ResultError(f"{folder}: its parameters belong to a run of another name")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{folder}: cut short or damaged ({type(error).__name__}: {error})") from None
    return result


def load_results(results: str | Path, dataset: str | None = None) -> dict[Path, dict]:
    """result.json of every finished run in a folder of results, of one data set or of all, by run folder.

    Raises ResultError if there is none, or if two runs of a data set differ in more than method, weight and seed:
    their numbers do not belong into one table.
    """
    found = {path.parent: read_result(path.parent) for path in sorted(Path(results).glob("*/result.json"))}
    found = {path: r for path, r in found.items() if dataset in (None, r["run"]["dataset"])}
    if not found:
        raise ResultError(f"no finished run{f' on {dataset}' if dataset else ''} in {results}: `make paper PROFILE=...` makes them")
    first: dict[str, tuple[Path, dict]] = {}
    for path, result in found.items():
        run = {**{k: v for k, v in dataclasses.asdict(Run(**result["run"])).items() if k not in ("method", "weight", "seed")},
               **{f"SHA-256 of {k}": v for k, v in result["sha256"].items() if k not in FILES}}
        other_path, other = first.setdefault(run["dataset"], (path, run))
        for key in run.keys() & other.keys():  # Inception may have been missing for one of them
            if run[key] != other[key]:
                raise ResultError(f"{path.name} has {key}={run[key]}, {other_path.name} has {key}={other[key]}: "
                                  "results of different protocols; delete or move one of them")
    return found


def _load(results: str | Path, file: str, dataset: str | None) -> pd.DataFrame:
    frames = []
    for path, result in load_results(results, dataset).items():
        run = result["run"]
        frames.append(pd.read_csv(path / file).assign(
            run=path.name, dataset=run["dataset"], method=run["method"], weight=run["weight"], seed=run["seed"],
            label=label(run["method"], run["weight"])))
    return pd.concat(frames, ignore_index=True)


def load_scores(results: str | Path, dataset: str | None = None) -> pd.DataFrame:
    """A tidy table of every score: scores.csv of each run, with run, dataset, method, weight, seed and label."""
    return _load(results, "scores.csv", dataset)


def load_bootstrap(results: str | Path, dataset: str | None = None) -> pd.DataFrame:
    """A tidy table of every bootstrap over images: bootstrap.csv of each run, with run, dataset, method, weight, seed and
    label. Columns replicate0, replicate1, ...: FID, BPD and task accuracy of resampled images."""
    return _load(results, "bootstrap.csv", dataset)


def load_curves(results: str | Path, dataset: str | None = None) -> pd.DataFrame:
    """A tidy table of every curve: curves.csv of each run, with run, dataset, method, weight, seed and label."""
    return _load(results, "curves.csv", dataset)
