"""cldiff: continual learning of diffusion models, as an executable paper.

A Run trains a U-Net by diffusion on a sequence of tasks with a method, is measured, and its results are reported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diffusion import Diffusion
    from .measure import Measurer
    from .methods import METHODS
    from .metrics import METRICS, frechet_distance
    from .results import load_bootstrap, load_curves, load_scores
    from .run import Run
    from .stats import average, forgetting, result_matrix, summarise
    from .tasks import DATASETS, load_tasks
    from .unet import UNet
    from .work import make_run

__version__ = "0.1.0"

# Imported when first used, so that a tool that only starts a notebook does not load torch.
_HOME = {
    "DATASETS": "tasks",
    "Diffusion": "diffusion",
    "METHODS": "methods",
    "METRICS": "metrics",
    "Measurer": "measure",
    "Run": "run",
    "UNet": "unet",
    "average": "stats",
    "forgetting": "stats",
    "frechet_distance": "metrics",
    "load_bootstrap": "results",
    "load_curves": "results",
    "load_scores": "results",
    "load_tasks": "tasks",
    "make_run": "work",
    "result_matrix": "stats",
    "summarise": "stats",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'cldiff' has no attribute {name!r}")
    return getattr(import_module(f"cldiff.{_HOME[name]}"), name)
