"""What can go wrong and be mended by the user, said in one line; and where progress is said."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .lazy import torch

NO_MEMORY = re.compile("out of memory|allocate memory")  # in torch's words


class Problem(RuntimeError):
    """Its message names what is wrong, what was expected, and what to do, in one line."""


@contextmanager
def located_errors() -> Iterator[None]:
    """Raises Problem, which says where it was, for a mistake in the code of a method or metric that a command, which
    knows no more of an error than its words, would take for a wrong parameter, or show with all of its traceback."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        if isinstance(error, Problem) or type(error).__module__.startswith("torch") or NO_MEMORY.search(str(error)):
            raise  # it has its words, or gets them where the parameters are known
        frames = traceback.extract_tb(error.__traceback__)
        others = os.path.dirname(torch.__file__) + os.sep
        own = ([frame for frame in frames if not frame.filename.startswith(others)] or frames)[-1]
        words = " ".join(str(error).split())
        raise Problem(f"{own.filename}:{own.lineno}: {type(error).__name__}: {words}") from error


def one_line_a_minute() -> None:
    """Of progress bars, where stderr is a log file; otherwise each of their states is one."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "60")
