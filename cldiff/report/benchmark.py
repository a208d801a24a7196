"""The benchmark's tables: how good each method is, and what it costs."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import permutation_test, spearmanr

from ..contrasts import outcomes
from ..evidence import FINETUNING
from ..methods import METHODS
from ..results import load_results
from ..run import Run
from ..stats import CHANCE, DRAWS, HEADLINES, compare, ranking, summarise, summarise_replicates
from .tables import mean_and_error, samples_note, seeds_note, sizes


def leaderboard(
    scores: pd.DataFrame, curves: pd.DataFrame, bootstrap: pd.DataFrame, apart: Collection[str] = ()
) -> tuple[pd.DataFrame, str]:
    """A row for each method, from the lowest average FID against test images to the highest, mean and standard error
    over seeds. Bold: what a paired bootstrap cannot tell from the best; °: what it cannot tell from finetuning.

    apart: the labels of runs of another machine than finetuning's, where rounding differs, so that their seeds pair
    with nobody's: ‡ instead of both.
    """
    summary, replicates, found = summarise(scores), summarise_replicates(bootstrap), outcomes(scores, curves)
    of_label = found.groupby("label")
    labels = of_label.fid.mean().sort_values().index
    paired = [name for name in labels if name not in apart] or list(labels)  # without finetuning all are alike
    weights = scores.groupby("label").weight.first()
    table = pd.DataFrame(
        {
            "": [name if name in paired else f"{name} ‡" for name in labels],
            "weight": [f"{weights[name]:g}" if pd.notna(weights[name]) else "" for name in labels],
            "avg FID, test ↓": [mean_and_error(of_label.fid.get_group(name), 1) for name in labels],
        }
    )
    for metric in ("fid", "bpd", "accuracy"):
        m, means = HEADLINES[metric], summary[summary.metric == metric].groupby("label")
        best = next(name for name in ranking(summary, metric) if name in paired)
        beyond = {
            (name, other): compare(summary, replicates, name, other, metric, "average").beyond_noise
            for name in paired
            for other in {best, FINETUNING} & set(paired)
        }
        table[f"avg {m.title}{', train' * (metric == 'fid')} {'↑' if m.higher else '↓'}"] = [
            ("{}" if beyond.get((name, best), True) else "**{}**").format(
                mean_and_error(means.get_group(name).average, m.digits)
            )
            + ("" if beyond.get((name, FINETUNING), True) or name == FINETUNING else " °")
            for name in labels
        ]
        # Of test images, as in other tables; what is marked is of those that the bootstrap has, of training.
        lost = of_label.forgetting if metric == "fid" else means.forgetting
        table[f"forgetting {m.title}{', test' * (metric == 'fid')} ↓"] = [
            mean_and_error(lost.get_group(name), m.digits) for name in labels
        ]
    table["recall ↑"] = [mean_and_error(of_label.recall.get_group(name), 2) for name in labels]
    table["FID, newest task, test ↓"] = [mean_and_error(of_label.fid_new.get_group(name), 1) for name in labels]
    bound = scores[scores.metric == "bpd"]
    n = scores.groupby("label").seed.nunique()
    over = f"{sizes(n)} seeds" if n.max() > 1 else "1 seed, so that how seeds differ is not in it"
    if n.min() < n.max():
        over += " (a row of fewer over those that it has, of one by the noise of images alone)"
    over += ", uncorrected for the number of rows."
    if n.max() in CHANCE:
        over += f" Beyond noise means that {CHANCE[n.max()]}."
    floor = scores.query("metric == 'fid_floor' and split == 'test' and extractor == 'lenet'").value.mean()
    others = (
        "‡: of another machine, so that its seeds pair with nobody's, and neither mark is given. "
        if len(paired) < len(labels)
        else ""
    )
    others += "".join(f"{name}: every number is finetuning's, as it never acted. " for name in inert(scores))
    note = (
        f"{seeds_note(scores)}, by average FID against test images, where real images have {floor:.1f}. Weights are "
        "those that the sweep chose on validation images, or a row's own (the study's, and 1 where it names `shared`). "
        f"Bold (FID against training images, BPD, accuracy): the best average, and what {DRAWS:,} draws of a paired "
        "bootstrap over seeds and images cannot tell from it; °: what they cannot tell from finetuning; both over "
        f"{over} {others}FID: {samples_note(scores)}. BPD: on "
        f"{sizes(bound.n)} test images per task. Recall: against test images. Forgetting: positive means worse."
    )
    return table, note


def inert(scores: pd.DataFrame) -> list[str]:
    """The labels whose numbers are finetuning's, each of them, for all seeds that both have."""
    keys = ["seed", "after_task", "eval_task", "metric", "split", "extractor", "n", "sampler"]
    values = scores.fillna({"split": "", "extractor": "", "sampler": ""}).dropna(subset="after_task")
    values = values.pivot(index=keys, columns="label", values="value")
    own = values.pop(FINETUNING) if FINETUNING in values else pd.Series(dtype=float)
    differences = {name: of.sub(own).dropna() for name, of in values.items()}
    return [name for name, difference in differences.items() if len(difference) and not difference.any()]


def beside_published(scores: pd.DataFrame, found: pd.DataFrame, published: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Average FID against test images of the methods whose FID others published, also as a multiple of joint
    training's, in the published order of the first data set; and how far the orders agree.

    found: outcomes() of our scores. published: the rows of tests/targets.csv of `check` "benchmark", named
    dataset/method.
    """
    names = published.name.str.split("/", expand=True)
    table = published.assign(of="published, " + names[0], method=names[1]).pivot(
        index="method", columns="of", values="value"
    )
    table = table.astype(float)  # other rows of the file have words
    table = table[("published, " + names[0]).unique()]
    # Of several rows of a method the one with the shortest label, which names no options.
    labels = scores.groupby("method").label.agg(lambda of: min(of.unique(), key=len))
    table["ours"] = labels.map(found.groupby("label").fid.mean())
    table = table.dropna().sort_values(table.columns[0])
    own = found.groupby("label").fid
    best = own.mean().idxmin() == labels["joint"]

    def agreement(name: str) -> str:
        rank = permutation_test(
            (table[name],), lambda values: spearmanr(values, table.ours).statistic, permutation_type="pairings", rng=0
        )
        return f"{rank.statistic:.2f}, p = {rank.pvalue:.2f} ({name})"

    compared = scores[scores.label.isin(labels[table.index])]
    note = (
        f"{seeds_note(compared)}; average FID against test images, in brackets as a multiple of joint training's. "
        f"Extractors and networks differ: FIDs do not compare{'' if best else ', and joint training is no best here'}."
    )
    if len(table) > 2:  # two agree or do not
        note += f" Rank correlation of these {len(table)} methods with ours: "
        note += f"{', '.join(map(agreement, table.columns.drop('ours')))}."
    note += f" Published: {published.source.iloc[0]}."
    ratios = table / table.loc["joint"]
    cells = {name: [f"{fid:.1f} (x {r:.1f})" for fid, r in zip(table[name], ratios[name])] for name in table}
    cells["ours"] = [
        f"{mean_and_error(own.get_group(labels[method]), 1)} (x {ratios.ours[method]:.1f})" for method in table.index
    ]
    return pd.DataFrame({"": [METHODS[method].label for method in table.index], **cells}), note


def prices(results: str | Path, dataset: str, labels: list[str]) -> pd.DataFrame:
    """What each label costs, the index: "time" of training, finetuning of the same seed and machine being 1, mean over
    seeds, NaN where there is none; "passes" in a step, see Method.passes; "images" and "bytes" held, see Method.held,
    NaN where a run did not record them; "apart": whether a seed was run on another machine than finetuning's. Time is
    the CPU's, in which waiting for other work does not count (runs from before it was counted have none); on a GPU the
    clock's. Raises ValueError for a label that no run there has."""
    runs, same = [], ["seed", "machine"]
    for result in load_results(results, dataset).values():
        run, took = Run(**result["run"]), result["seconds"]
        runs.append(
            {
                "label": run.label,
                "seed": run.seed,
                "machine": str(result["machine"]),
                "took": took["train"] if result["machine"]["gpu"] else took.get("train_cpu", np.nan),
                "passes": METHODS[run.method].passes,
                "images": result.get("held", {}).get("images"),
                "bytes": result.get("held", {}).get("bytes"),
            }
        )
    runs = pd.DataFrame(runs)
    if unknown := set(labels) - set(runs.label):
        raise ValueError(
            f"no run in {results} has the label {min(unknown)!r}; known: {'; '.join(sorted(set(runs.label)))}"
        )
    alone = runs[runs.label == FINETUNING].groupby(same).took.mean()
    runs["time"] = runs.took / runs[same].join(alone.rename("alone"), on=same).alone
    here = pd.MultiIndex.from_frame(runs[same]).isin(alone.index)
    runs["apart"] = runs.seed.isin(alone.index.get_level_values("seed")) & ~here
    means = runs.groupby("label")[["time", "passes", "images", "bytes"]].mean()
    return means.join(runs.groupby("label").apart.any()).loc[labels]


def price_table(found: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """prices() as a table, and what it means."""

    def written(values: pd.Series, form: str) -> list[str]:
        return [form.format(value) if pd.notna(value) else "" for value in values]

    table = pd.DataFrame(
        {
            "": found.index,
            "time": written(found.time, "x {:.2f}"),
            "passes": written(found.passes, "{:.0f}"),
            "real images kept": written(found.images, "{:,.0f}"),
            "held, KB": written(found.bytes / 1000, "{:,.1f}"),
        }
    )
    note = (
        "Time: CPU seconds of training (on a GPU: seconds), finetuning's of the same seed and machine being 1, mean "
        "over the seeds for which both are known; the first task, which most share, is in it, and what is done once "
        "between tasks (pools, Fisher information); empty where finetuning did not run on the same machine, which at "
        "another hour may be a fifth slower or faster. "
        "Passes: forward passes that an image costs in a step, a backward pass counted as two. Held: what is "
        "kept from task to task beside one network, at the end."
    )
    return table, note
