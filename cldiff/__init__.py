"""cldiff: continual learning of diffusion models, as an executable paper.

A Run trains a U-Net by diffusion on a sequence of tasks with a method, is measured, and is plotted.
"""

from importlib import import_module

__version__ = "0.1.0"

# Imported when first used, so that a tool that only starts a notebook does not load torch.
_HOME = {
    "load_tasks": "tasks", "UNet": "unet", "Diffusion": "diffusion", "METHODS": "methods",
    "Measurer": "measure", "average": "metrics", "forgetting": "metrics", "Run": "runs", "load_scores": "runs",
    "load_curves": "runs",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'cldiff' has no attribute {name!r}")
    return getattr(import_module(f"cldiff.{_HOME[name]}"), name)
