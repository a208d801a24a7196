"""torch, imported when it is first used: tables and figures, which never use it, are drawn two seconds sooner each."""

from collections.abc import Callable
from functools import wraps


class _Torch:
    def __getattr__(self, name: str):
        import torch

        return getattr(torch, name)


torch = _Torch()


def no_grad(function: Callable) -> Callable:
    """torch.no_grad() as a decorator."""

    @wraps(function)
    def quiet(*words, **named):
        with torch.no_grad():
            return function(*words, **named)

    return quiet
