"""Parameters that know their type, their range and what they are: those of a Run, and the options of a method."""

import dataclasses
import math
from collections.abc import Container
from dataclasses import dataclass, field
from typing import get_type_hints


def among(default: str, known: Container[str], *, help: str, later: bool = False):
    """known: a tuple, or a registry that may grow."""
    return field(default=default, metadata={"among": known, "help": help, "later": later})


def number(default: float | None, low: float, high: float = math.inf, *, help: str, later: bool = False):
    return field(default=default, metadata={"low": low, "high": high, "help": help, "later": later})


def flag(default: bool, *, help: str, later: bool = False):
    return field(default=default, metadata={"help": help, "later": later})


@dataclass(frozen=True)
class Parameters:
    """Fields made by among(), number() and flag(). Raises TypeError for a value of the wrong type, ValueError for one
    that is unknown or out of range. An int is taken where a float is wanted."""

    def __post_init__(self):
        kinds = get_type_hints(type(self))
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, checked(f, kinds[f.name], getattr(self, f.name)))

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in dataclasses.fields(cls)]

    def changes(self) -> dict:
        """The values that are off their defaults, by name."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}


def checked(f: dataclasses.Field, kind: type, value: object) -> object:
    """The value of a field of this type, or the error that says what was expected."""
    if kind is dict or kind == float | None and value is None:
        return value
    kind = float if kind == float | None else kind
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1e300 else math.inf
    if kind == tuple[int, ...]:
        if not isinstance(value, (tuple, list)) or not value or not all(type(v) is int and v > 0 for v in value):
            how = f" (papermill takes one by -y '{f.name}: [1, 2]')" if isinstance(value, str) else ""
            raise TypeError(f"{f.name}={value!r}: expected a list of integers of at least 1{how}")
        return tuple(value)
    if type(value) is not kind:
        article = "an" if kind is int else "a"
        raise TypeError(f"{f.name}={value!r}: expected {article} {kind.__name__}, not {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{f.name}={value}: expected a finite number")
    if "among" in f.metadata and value not in f.metadata["among"]:
        raise ValueError(f"unknown {f.name} {value!r}; known: {', '.join(f.metadata['among'])}")
    if "low" in f.metadata and not f.metadata["low"] <= value <= f.metadata["high"]:
        low, high = f.metadata["low"], f.metadata["high"]
        wanted = f"{low} .. {high}" if high < math.inf else f"at least {low}"
        raise ValueError(f"{f.name}={value}: expected {wanted}")
    return value
