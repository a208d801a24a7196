"""What can go wrong and be mended by the user, said in one line; and where progress is said."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from .lazy import torch

# In torch's words; cuDNN finds no engine where there is no room for its workspace.
NO_MEMORY = re.compile(
    "out of memory|allocate memory|STATUS_ALLOC_FAILED|unable to find an engine|find a valid cuDNN algorithm"
)


class Problem(RuntimeError):
    """Its message names what is wrong, what was expected, and what to do, in one line."""


@contextmanager
def located_errors() -> Iterator[None]:
    """Raises Problem, which says where it was, for a mistake in the code of a method or metric. A command knows no more
    of an error than its words: it would take it for a wrong parameter."""
    try:
        yield
    except Exception as error:
        if (
            isinstance(error, (Problem, OSError))
            or type(error).__module__.startswith("torch")
            or NO_MEMORY.search(str(error))
        ):
            raise  # it has its words, or gets them where the parameters are known
        frame = _asked(traceback.extract_tb(error.__traceback__))
        words = " ".join(str(error).split())
        raise Problem(f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {words}") from error


def _asked(frames: list[traceback.FrameSummary]) -> traceback.FrameSummary:
    """The last line of a method, or of code outside of this package; else the last of this package: what they called
    with wrong things is not to blame, nor is an installed library."""
    packages, own = os.path.dirname(os.path.dirname(torch.__file__)) + os.sep, os.path.dirname(__file__) + os.sep
    frames = [f for f in frames if f.filename.startswith(own) or not f.filename.startswith(packages)] or frames
    called = [f for f in frames if not f.filename.startswith(own) or f.filename.startswith(f"{own}methods{os.sep}")]
    return (called or frames)[-1]


def one_line_a_minute() -> None:
    """Of progress bars, where stderr is a log file; otherwise each of their states is one."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "60")


class Spoken:
    """stderr, to which nobody need listen: a closed pipe, a terminal that is gone or a full disk below a log stop no
    run."""

    def __init__(self, stream: TextIO | None):  # None where it was closed
        self.stream = stream or open(os.devnull, "w")

    def write(self, text: str) -> None:
        with suppress(OSError):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)
