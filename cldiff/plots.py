"""One style, one colour for each method, and what the figure notebooks share."""

import os
import re
from functools import partial
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image

from .files import write_atomically
from .grid import ROWS
from .metrics import DRAWS, compare, summarise, summarise_replicates
from .runs import label, load_results

PAGE = 7.2  # width of a page, inches
ORDER = [label(method, weight) for method, weight in ROWS]
COLOURS = dict(zip(ORDER, sns.color_palette("colorblind", len(ORDER))))


def use_style() -> None:
    sns.set_theme(context="paper", style="ticks", font_scale=0.9)
    os.environ.setdefault("SOURCE_DATE_EPOCH", "1704067200")  # the date inside a pdf: the same figure, the same file
    matplotlib.rcParams.update({
        "svg.hashsalt": "cldiff", "savefig.bbox": "tight", "savefig.dpi": 200, "figure.dpi": 120,
        "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42, "legend.frameon": False,
    })


def present(labels) -> list[str]:
    """The labels that occur, in the order of the tables; those that no table lists come last."""
    found = list(dict.fromkeys(labels))
    return [name for name in ORDER if name in found] + [name for name in found if name not in ORDER]


def save_figure(figure, folder: str | Path, name: str) -> None:
    for kind in ("pdf", "png"):
        write_atomically(Path(folder) / f"{name}.{kind}", partial(figure.savefig, format=kind))


def save_table(table: pd.DataFrame, folder: str | Path, name: str, note: str) -> str:
    """Writes name.md and name.tex and returns the Markdown; `note` says below the table what the numbers depend on."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    markdown = "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{note}\n"
    plain = str.maketrans({"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "%": r"\%", "_": r"\_", "≤": r"$\leq$"})
    bold = lambda text: re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)  # noqa: E731
    lines = [bold(" & ".join(row).translate(plain)) + r" \\" for row in (rows[0], *rows[2:])]
    columns = "l" + "r" * (len(table.columns) - 1)
    tex = "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
                     r"\end{tabular}", rf"\par\smallskip\footnotesize {note.translate(plain)}"]) + "\n"
    for kind, text in (("md", markdown), ("tex", tex)):
        write_atomically(Path(folder) / f"{name}.{kind}", lambda path: path.write_text(text))
    return markdown


def load_samples(run_folder: str | Path, tasks: int) -> np.ndarray:
    """samples.png of a run, cut up again: (after task, task ID, sample, height, width), uint8."""
    sheet = np.asarray(Image.open(Path(run_folder) / "samples.png"))
    side = sheet.shape[0] // tasks
    return sheet.reshape(tasks, side, tasks, -1, side).transpose(0, 2, 3, 1, 4)


def show_samples(axis, samples: np.ndarray, row_labels: list[str]) -> None:
    """A picture of samples (rows, columns, height, width), black on white, a label before each row."""
    framed = np.pad(255 - samples, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=255)
    rows, columns, height, width = framed.shape
    axis.imshow(framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width), cmap="gray", vmin=0, vmax=255)
    axis.set_yticks((np.arange(rows) + 0.5) * height - 0.5, row_labels)
    axis.set_xticks([])
    axis.tick_params(length=0)
    sns.despine(ax=axis, left=True, bottom=True)


def mark_tasks(axis, steps: int, tasks: int, titles: bool = True) -> None:
    """Vertical lines where one task ends and the next begins, task numbers above."""
    for task in range(tasks):
        axis.axvline(task * steps, color="0.85", linewidth=0.8, zorder=0)
        if titles:
            axis.text((task + 0.5) * steps, 1.01, f"task {task + 1}", transform=axis.get_xaxis_transform(),
                      ha="center", va="bottom", fontsize="x-small", color="0.4")
    axis.set_xlim(0, tasks * steps)


def run_parameters(results: str | Path, dataset: str) -> dict:
    """The parameters that all runs of a data set share (method, weight and seed are the first run's)."""
    return next(iter(load_results(results, dataset).values()))["run"]


def mean_and_error(values: pd.Series, digits: int) -> str:
    """"12.3 ± 0.4": mean and standard error over seeds; of one seed there is no error."""
    return f"{values.mean():.{digits}f}" + (f" ± {values.sem():.{digits}f}" if len(values) > 1 else "")


def sizes(n: pd.Series) -> str:
    """"250", or "70 to 72" where the tasks differ."""
    return str(n.min()) if n.min() == n.max() else f"{n.min()} to {n.max()}"


def seeds_note(scores: pd.DataFrame) -> str:
    """"digits, mean ± standard error of n = 3 seeds"."""
    n = scores.groupby("label").seed.nunique()
    return f"{scores.dataset.iloc[0]}, " + (f"n = {sizes(n)} seeds, mean ± standard error" if n.max() > 1 else "n = 1 seed")


HEADLINES = (("fid", "FID", 1), ("bpd", "BPD", 3), ("accuracy", "accuracy", 3))  # metric, title, digits


def results_table(scores: pd.DataFrame, bootstrap: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of a paper's table, mean and standard error, and what they rest on. Bold: the best, and whatever the
    paired comparison cannot tell from it."""
    summary, replicates = summarise(scores), summarise_replicates(bootstrap)
    labels = present(summary.label)
    table = pd.DataFrame({"": labels})
    for metric, title, digits in HEADLINES:
        for kind, arrow in (("average", "↑" if metric == "accuracy" else "↓"), ("forgetting", "↓")):
            rows = summary[summary.metric == metric].groupby("label")[kind]
            best = rows.mean().idxmax() if arrow == "↑" else rows.mean().idxmin()
            table[f"{'avg' if kind == 'average' else 'forgetting'} {title} {arrow}"] = [
                f"{mark}{mean_and_error(rows.get_group(name), digits)}{mark}" for name in labels
                for mark in ["" if compare(summary, replicates, name, best, metric, kind).beyond_noise else "**"]]
    drawn, bound = scores[scores.metric == "fid"].iloc[0], scores[scores.metric == "bpd"]
    floor = scores[(scores.metric == "fid_floor") & (scores.split == "train") & (scores.extractor == drawn.extractor)]
    floors = floor[floor.run == floor.run.iloc[0]]
    table.loc[len(table)] = ["Real images (floor)", f"{floors.value.mean():.1f}"] + [""] * (len(table.columns) - 2)
    terms, variance, clipped = bound.sampler.iloc[0].removeprefix("terms").split("-")
    over = "seeds and images" if scores.seed.nunique() > 1 else "images (not over seeds)"
    note = (f"{seeds_note(scores)}. Bold: the best, and what a paired bootstrap over {over} cannot tell from it. "
            f"FID: {drawn.extractor} features of {drawn.n} samples per task ({drawn.sampler}) against the training images "
            f"of the task; floor: two disjoint parts of these, {sizes(floors.n)} images each. BPD: variational bound on "
            f"{sizes(bound.n)} test images per task, {terms} timesteps each, variance {variance}, x0 {clipped}. Accuracy: "
            f"share of samples that fall into their task's classes. Forgetting: positive means worse.")
    return table, note


def differences_table(scores: pd.DataFrame, bootstrap: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Every pair of methods: the paired difference of FID and BPD, first minus second, with its 95 % interval."""
    summary, replicates = summarise(scores), summarise_replicates(bootstrap)
    rows = []
    for one, other in combinations(present(summary.label), 2):
        row = {"first": one, "second": other}
        for metric, title, digits in HEADLINES[:2]:
            for kind in ("average", "forgetting"):
                d = compare(summary, replicates, one, other, metric, kind)
                row[f"{'avg' if kind == 'average' else kind} {title}"] = (
                    f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]" + ("" if d.beyond_noise else " noise"))
        rows.append(row)
    note = (f"{seeds_note(scores)}. First minus second; in brackets where 95 % of {DRAWS:,} bootstrap draws over seeds and "
            "images lie, the same seeds and test images for both; noise: 0 lies between. With few seeds the interval is hardly "
            "wider than their range; with one it covers the images alone.")
    return pd.DataFrame(rows), note
