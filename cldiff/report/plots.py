"""One style, one colour for each method, and what the figure notebooks share."""

import os
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from ..files import write_atomically
from ..results import load_results
from ..rows import STUDY
from ..study import labels_of

PAGE = 7.2  # width of a page, inches
ORDER = labels_of(STUDY)
# Of methods beside the study's rows: one colour in every figure. Then those of whatever else is in a figure.
OWN = {
    "Distilled replay": "#332288",
    "Generative distillation": "#882255",
    "Timestep-aware replay": "#56b4e9",
    "Self-tuned replay": "#857b22",
}
LEFT = ("#333333", "#661100", "#949494", "#44aa99")


def use_style() -> None:
    matplotlib.rcdefaults()  # nobody's own settings
    sns.set_theme(context="paper", style="ticks", font_scale=0.9)
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1704067200")  # the date inside a pdf: the same figure, the same file
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "cldiff",
            "savefig.bbox": "tight",
            "savefig.dpi": 200,
            "figure.dpi": 120,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "pdf.fonttype": 42,
            "legend.frameon": False,
        }
    )


def present(labels) -> list[str]:
    """The labels that occur, in the order of the tables; those that no table lists come last."""
    found = list(dict.fromkeys(labels))
    return [name for name in ORDER if name in found] + [name for name in found if name not in ORDER]


def colours(labels) -> dict[str, tuple[float, float, float]]:
    """A colour for each label: the study's rows have theirs everywhere, and so has the first of each method of OWN; the
    others have those that are left."""
    found = dict(zip(ORDER, sns.color_palette("colorblind")))
    own, others = dict(OWN), [name for name in present(labels) if name not in ORDER]
    for name in others:
        if colour := own.pop(name.partition(",")[0], None):
            found[name] = to_rgb(colour)
    rest = [name for name in others if name not in found]
    left = [to_rgb(colour) for colour in (*LEFT, *own.values())]
    return found | dict(zip(rest, [*left, *sns.color_palette("husl", max(0, len(rest) - len(left)))]))


def log_axes(*axes) -> None:
    """Logarithmic y axes with plain numbers, on which a factor has the same length in all."""
    for axis in axes:
        axis.set_yscale("log")
    limits = np.array([axis.get_ylim() for axis in axes])
    factor = (limits[:, 1] / limits[:, 0]).max()
    for axis, middle in zip(axes, np.sqrt(limits.prod(1))):
        axis.set_ylim(middle / factor**0.5, middle * factor**0.5)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8) if factor < 10 else (1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())


def name_points(axis, points, names: list[str]) -> None:
    """A name beside each of the points (number, 2) of an axis: above to the right, or away from its neighbours."""
    axis.figure.draw_without_rendering()  # else their places are not known yet
    places = axis.transData.transform(points)
    there = np.isfinite(places).all(1)
    for point, place, name in ((points[k], places[k], names[k]) for k in np.flatnonzero(there)):
        apart = place - places[there]
        away = (apart / np.maximum(np.hypot(*apart.T), 1)[:, None] ** 3).sum(0) + 4e-4
        axis.annotate(
            name,
            point,
            xytext=8 * away / np.hypot(*away),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize="x-small",
            color="0.3",
        )


def save_figure(figure, folder: str | Path, name: str) -> None:
    for kind in ("pdf", "png"):
        write_atomically(Path(folder) / f"{name}.{kind}", partial(figure.savefig, format=kind))


def load_samples(run_folder: str | Path) -> np.ndarray:
    """samples.png of a run, cut up again: uint8 (after task, task ID, sample, height, width), and 3 more for RGB."""
    tasks = int(pd.read_csv(Path(run_folder) / "scores.csv").after_task.max())
    sheet = np.asarray(Image.open(Path(run_folder) / "samples.png"))
    side = sheet.shape[0] // tasks
    sheet = sheet.reshape(tasks, side, tasks, -1, side, *sheet.shape[2:])
    return sheet.transpose(0, 2, 3, 1, 4, *range(5, sheet.ndim))


def show_samples(axis, samples: np.ndarray, row_labels: list[str]) -> None:
    """A picture of samples uint8 (rows, columns, height, width), grey ones black on white, or (..., 3) in their
    colours; a label before each row."""
    samples = 255 - samples if samples.ndim == 4 else samples
    framed = np.pad(samples, ((0, 0), (0, 0), (1, 1), (1, 1), *[(0, 0)] * (samples.ndim - 4)), constant_values=255)
    rows, columns, height, width = framed.shape[:4]
    sheet = framed.transpose(0, 2, 1, 3, *range(4, framed.ndim)).reshape(
        rows * height, columns * width, *framed.shape[4:]
    )
    axis.imshow(sheet, cmap="gray", vmin=0, vmax=255)
    axis.set_yticks((np.arange(rows) + 0.5) * height - 0.5, row_labels)
    axis.set_xticks([])
    axis.tick_params(length=0)
    sns.despine(ax=axis, left=True, bottom=True)


def mark_tasks(axis, steps: int, tasks: int, titles: bool = True) -> None:
    """Vertical lines where one task ends and the next begins, task numbers above; bare ones where tasks are many."""
    for task in range(tasks):
        axis.axvline(task * steps, color="0.85", linewidth=0.8, zorder=0)
        if titles:
            axis.text(
                (task + 0.5) * steps,
                1.01,
                f"task {task + 1}" if tasks <= 5 else f"{task + 1}",
                transform=axis.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize="x-small",
                color="0.4",
            )
    axis.set_xlim(0, tasks * steps)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def run_parameters(results: str | Path, dataset: str) -> dict:
    """The parameters that all runs of a data set share (method, weight and seed are the first run's)."""
    return next(iter(load_results(results, dataset, STUDY).values()))["run"]
