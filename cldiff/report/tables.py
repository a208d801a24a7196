"""The tables of the paper, and what says below them what their numbers depend on."""

import re
from functools import partial
from itertools import combinations
from pathlib import Path

import pandas as pd

from ..evidence import show
from ..files import write_atomically
from ..metrics import METRICS, REPLICATES, AgainstReal, OfImages
from ..stats import DRAWS, HEADLINES, average, compare, ranking, result_matrix, summarise, summarise_replicates
from ..tasks import DATASETS
from .plots import present

MINUS = re.compile(r"(?<![\w.])-(?=\.?\d)")  # before a number, not within a range or a name
NUMBER = re.compile(r"[\d.,+−±×> x°%*\[\]()]*(e-\d+|noise)?")  # with its error or interval, bold or not


def save_table(table: pd.DataFrame, folder: str | Path, name: str, note: str) -> str:
    """Writes name.md and name.tex and returns the Markdown; `note` says below the table what the numbers depend on.
    Columns of numbers are set to the right, and their minus signs are such."""
    head, *body = [[MINUS.sub("−", cell) for cell in row] for row in (table.columns, *table.astype(str).values)]
    numbers = [
        bool(filled := [cell for cell in column if cell]) and all(map(NUMBER.fullmatch, filled))
        for column in zip(*body)
    ]
    rows = [head, ["---:" if right else "---" for right in numbers], *body]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    markdown = "\n".join(lines) + f"\n\n{note}\n"
    plain = str.maketrans(
        {sign: f"${name}$" for sign, name in zip("±↓↑≤−×→", r"\pm \downarrow \uparrow \leq - \times \to".split())}
        | {sign: rf"\{sign}" for sign in "%_&#${}"}
        | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    )
    signs = pd.DataFrame(body, columns=head).rename(columns=lambda name: name.translate(plain))
    columns = "".join("r" if right else "l" for right in numbers)
    tabular = signs.map(lambda cell: cell.translate(plain)).to_latex(index=False, escape=False, column_format=columns)
    tex = (
        re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", tabular)
        + rf"\par\smallskip\footnotesize {note.translate(plain)}"
        + "\n"
    )
    for kind, text in (("md", markdown), ("tex", tex)):
        write_atomically(Path(folder) / f"{name}.{kind}", partial(Path.write_text, data=text, encoding="utf-8"))
    return markdown


def mean_and_error(values: pd.Series, digits: int) -> str:
    """ "1,012.3 ± 0.4": mean and standard error over seeds; of one seed there is no error."""
    return show(values, f",.{digits}f")


def contrasts_table(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """contrasts.compared() as a table to print: means, difference or ratio with its interval, p and corrected p; and
    what these are."""
    note = "Means of FID are geometric, its difference is their ratio."
    if table.p.notna().any():
        note += " In brackets the 95 % interval, p: paired t-test over seeds."
    shown = pd.DataFrame(
        {
            "contrast": table.question,
            "first": table["first"],
            "second": table["second"],
            "outcome": table.outcome.map(
                lambda name: METRICS[name].title if name in METRICS else name.replace("_", " ")
            ),
            "first's mean": table["mean of the first"].map("{:.2f}".format),
            "second's mean": table["mean of the second"].map("{:.2f}".format),
            "difference": [
                (f"x {d:.2f}" if ratio else f"{d:+.2f}")
                + (f" [{low:{'' if ratio else '+'}.2f}, {high:{'' if ratio else '+'}.2f}]" if low == low else "")
                for d, low, high, ratio in zip(table.difference, table.low, table.high, table.ratio)
            ],
            "p": ["" if p != p else f"{p:.3g}" for p in table.p],
            "p, Holm": ["" if p != p else f"{p:.3g}" for p in table.holm],
        }
    )
    return shown, note


def sizes(n: pd.Series) -> str:
    """ "1,024", or "70 to 72" where they differ."""
    return " to ".join(f"{size:,.0f}" for size in sorted({n.min(), n.max()}))


def seeds_note(scores: pd.DataFrame) -> str:
    """ "MNIST, n = 3 seeds, mean ± standard error", with the rows that have fewer or, if these are less, as many."""
    n = scores.groupby("label", sort=False).seed.nunique()
    few, most = n.index[n < n.max()], n.index[n == n.max()]
    named = f" (fewer: {'; '.join(few)})" if len(few) <= len(most) else f" ({n.max()}: {'; '.join(most)})"
    return f"{DATASETS[scores.dataset.iloc[0]].title}, " + (
        f"n = {sizes(n)} seeds{named if len(few) else ''}, mean ± standard error" if n.max() > 1 else "n = 1 seed"
    )


def samples_note(scores: pd.DataFrame) -> str:
    """ "LeNet features of 1,024 samples per task (DDIM, 20 steps)"."""
    drawn = scores[(scores.metric == "fid") & (scores.extractor == "lenet")].iloc[0]
    kind, steps, eta = re.fullmatch(r"(\D+)(\d+)(.*)", drawn.sampler).groups()
    sampler = f"{kind.replace('ddim', 'DDIM')}, {int(steps):,} steps{eta.replace('-eta', ', eta ')}"
    return f"LeNet features of {drawn.n:,} samples per task ({sampler})"


def measured(summary: pd.DataFrame) -> dict:
    """The headline metrics that all of these results have."""
    counts = summary.groupby("metric").run.nunique()
    return {name: metric for name, metric in HEADLINES.items() if counts.get(name) == summary.run.nunique()}


def results_table(scores: pd.DataFrame, bootstrap: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of a paper's table, mean and standard error, and what they rest on. Bold: the best average of several,
    and whatever the paired comparison cannot tell from it; a method that learns badly has little to forget."""
    summary, replicates = summarise(scores), summarise_replicates(bootstrap)
    labels = present(summary.label)
    table = pd.DataFrame({"": labels})
    for metric, m in measured(summary).items():
        of, arrow = summary[summary.metric == metric].groupby("label"), "↑" if m.higher else "↓"
        best = ranking(summary, metric)[0]
        table[f"avg {m.title} {arrow}"] = [
            f"{mark}{mean_and_error(of.get_group(name).average, m.digits)}{mark}"
            for name in labels
            for d in [compare(summary, replicates, name, best, metric, "average")]
            for mark in ["" if len(labels) == 1 or d.beyond_noise else "**"]
        ]
        if metric == "fid":
            table["FID when learned ↓"] = [mean_and_error(of.get_group(name).learned, m.digits) for name in labels]
        table[f"forgetting {m.title} ↓"] = [mean_and_error(of.get_group(name).forgetting, m.digits) for name in labels]
    first, bound = scores[scores.run == scores.run.iloc[0]], scores[scores.metric == "bpd"]
    floors = first[(first.metric == "fid_floor") & (first.split == "train") & (first.extractor == "lenet")]
    table.loc[len(table)] = ["Real images (floor)", f"{floors.value.mean():.1f}"] + [""] * (len(table.columns) - 2)
    terms, variance, clipped = bound.sampler.iloc[0].removeprefix("terms").split("-")
    over = "seeds and images" if scores.seed.nunique() > 1 else "images (not over seeds)"
    note = (
        f"{seeds_note(scores)}. Bold: the best average, and what a paired bootstrap over {over} cannot tell from it. "
        f"FID: {samples_note(scores)} against the training images of the task; floor: two disjoint parts of these, "
        f"{sizes(floors.n)} images each. BPD: variational bound on {sizes(bound.n)} "
        f"test images per task, {terms} timesteps each, variance {variance}, x0 {clipped}. Accuracy: share of samples "
        "that fall into their task's classes. When learned: mean over tasks right after each. "
        "Forgetting: positive means worse; who learns badly has little to forget."
    )
    return table, note


def task1_table(scores: pd.DataFrame, curves: pd.DataFrame, run: dict) -> tuple[pd.DataFrame, str]:
    """What becomes of task 1: its scores after the first, the second and the last task, and its losses on kept and on
    validation images divided by those right after it. Methods whose first task is the same share a row. run: the
    parameters that these runs share."""
    last, parts = int(scores.after_task.max()), {}
    for metric, split in {"fid": "train", "accuracy": "", "bpd": "test", "recall": "test", "copied": "buffer"}.items():
        m, rows = METRICS[metric], scores[(scores.metric == metric) & (scores.eval_task == 1)]
        rows = rows[(rows.split.fillna("") == split) & (rows.extractor.fillna("lenet") == "lenet")]
        if rows.run.nunique() == scores.run.nunique():  # runs of older protocols have no copies
            parts[f"{m.title} {'↑' if m.higher else '↓'}"] = rows, m.digits
    losses = curves[(curves.eval_task == 1) & (curves.step % run["steps"] == 0)]
    losses = losses.assign(after_task=losses.step // run["steps"])
    for t in (run["early"], run["late"]):
        for name, images in (("kept", "buffer"), ("new", "validation")):
            rows = losses[(losses.timestep == t) & (losses.split == images)]
            begun = rows[rows.after_task == 1].set_index("run").loss
            parts[f"t = {t}, {name}"] = rows.assign(value=rows.loss / rows.run.map(begun)), 2
    table = pd.DataFrame(
        {"": label, "after task": after}
        | {
            title: mean_and_error(rows[(rows.after_task == after) & (rows.label == label)].value, digits)
            for title, (rows, digits) in parts.items()
        }
        for after in sorted({1, min(2, last), last})
        for label in present(scores.label)
    )
    begun = table[table["after task"] == 1].assign(**{"": "all methods"}).drop_duplicates()
    if len(begun) == 1:
        table = pd.concat([begun, table[table["after task"] > 1]])
    note = (
        f"{seeds_note(scores)}. FID against training images; accuracy: samples of the right classes; BPD of test "
        f"images, recall against them; copies: samples that are nearly one of the {run['buffer']:,} images that replay "
        "keeps of the task. Losses at two timesteps, on these images (kept) and on validation images (new), at most "
        f"{run['curve_images']:,} of each, divided by those right after task 1."
    )
    return table, note


def orders_by_metric(scores: pd.DataFrame) -> dict[tuple[str, ...], list[str]]:
    """The orders of the methods by their means after the last task, the best first, with the metrics that give them, of
    those that every run has."""
    found, runs = {}, scores.groupby("metric").run.nunique()
    for name, m in METRICS.items():
        if runs.get(name) != scores.run.nunique():
            continue
        for split in (
            ("train", "test") if name == "fid" else (m.split,) if isinstance(m, (AgainstReal, OfImages)) else ()
        ):
            means = {
                label: sum(average(result_matrix(run, name, split)) for _, run in of.groupby("run")) / of.run.nunique()
                for label, of in scores.groupby("label", sort=False)
            }
            title, _, how = (f"{m.title}, {split}" if name == "fid" else m.title).partition(", ")
            order = tuple(sorted(means, key=means.get, reverse=m.higher))
            found.setdefault(order, []).append(f"{title} ({how})" if how else title)
    return found


def differences_table(scores: pd.DataFrame, bootstrap: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Every pair of methods: the paired difference of FID and BPD, first minus second, with its 95 % interval."""
    summary, replicates = summarise(scores), summarise_replicates(bootstrap)
    rows = []
    for one, other in combinations(present(summary.label), 2):
        row = {"first": one, "second": other}
        for metric in ("fid", "bpd"):
            title, digits = METRICS[metric].title, METRICS[metric].digits + (metric == "bpd")  # narrow: paired
            for kind in ("average", "forgetting"):
                d = compare(summary, replicates, one, other, metric, kind)
                row[f"{'avg' if kind == 'average' else kind} {title}"] = (
                    f"{d.mean:+,.{digits}f} [{d.low:+,.{digits}f}, {d.high:+,.{digits}f}]"
                    + ("" if d.beyond_noise else " noise")
                )
        rows.append(row)
    drawn = f"{DRAWS:,} bootstrap draws over seeds and images"
    few = "With few seeds the interval is hardly wider than their range"
    if scores.seed.nunique() == 1:
        drawn = f"{REPLICATES} bootstrap draws over images"
        few = "One seed: what another training would give is not in the interval"
    note = (
        f"{seeds_note(scores)}. First minus second; in brackets where 95 % of {drawn} lie, the same seeds and test "
        f"images for both; noise: 0 lies between. {few}."
    )
    return pd.DataFrame(rows), note
