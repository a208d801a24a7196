"""What docs/results.md says in numbers is what the results in git have: another seed, or another hand, changes one
without the other."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import DATA, need
from matplotlib import rc_context

from cldiff import Diffusion, Run, load_bootstrap, load_curves, load_scores, load_tasks
from cldiff.contrasts import Contrast, compared, outcomes
from cldiff.evidence import FINETUNING, GENERATIVE, L2, LIGHT, REPLAY, STUDIED
from cldiff.learner import Learner
from cldiff.methods.replay import buffer
from cldiff.report.benchmark import prices
from cldiff.report.readme import table_of
from cldiff.report.tables import mean_and_error
from cldiff.rows import REPLAY_KEPT
from cldiff.stats import compare, result_matrix, summarise, summarise_replicates
from cldiff.study import labels_of
from cldiff.tasks import ORDERS, sequence

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
SHARES = {"accuracy": None, "taken_for_current": None, "copied": "buffer"}  # metrics in percent here, and their splits


@dataclass(frozen=True)
class Results:
    """Of a data set; FID is against test images. notebook: of an experiment, in which its contrasts were fixed
    before the runs. seed: of this one alone."""

    path: Path
    dataset: str
    notebook: str = ""
    seed: int | None = None

    @cached_property
    def scores(self) -> pd.DataFrame:
        return self._own(load_scores(self.path, self.dataset))

    @cached_property
    def curves(self) -> pd.DataFrame:
        return self._own(load_curves(self.path, self.dataset))

    def _own(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows if self.seed is None else rows[rows.seed == self.seed]

    def matrices(self, label: str, metric: str = "fid") -> np.ndarray:
        """One for each seed."""
        split = SHARES.get(metric, "test")
        runs = self.scores[self.scores.label == label].groupby("seed")
        return np.array([result_matrix(of, metric, split) for _, of in runs]) * (100 if metric in SHARES else 1)

    def matrix(self, label: str, metric: str = "fid") -> np.ndarray:
        """Mean over seeds."""
        return self.matrices(label, metric).mean(0)

    def averages(self, label: str, metric: str = "fid") -> np.ndarray:
        return self.matrices(label, metric)[:, -1].mean(1)

    def said(self, label: str) -> str:
        """Average FID, with its standard error where there are seeds."""
        return mean_and_error(pd.Series(self.averages(label)), 0)

    def average(self, label: str, metric: str = "fid") -> float:
        return self.averages(label, metric).mean()

    def old(self, label: str, metric: str = "fid") -> float:
        return self.matrix(label, metric)[-1, :-1].mean()

    def learned(self, label: str, metric: str = "fid") -> np.ndarray:
        return np.diag(self.matrix(label, metric))

    def before(self, label: str, metric: str) -> float:
        """Of old tasks, right after each was learned."""
        return self.learned(label, metric)[:-1].mean()

    def times(self, label: str, step: int | None = None, split: str = "validation") -> pd.DataFrame:
        """Losses as multiples of those after task 1, steps after it or in the end: timesteps by seeds."""
        rows = self.curves[(self.curves.label == label) & (self.curves.split == split) & self.curves.loss.notna()]
        losses = rows.pivot(index="step", columns=["timestep", "seed"], values="loss")
        first = self.curves.step[self.curves.task == 1].max()
        return ((losses.iloc[-1] if step is None else losses.loc[first + step]) / losses.loc[first]).unstack()

    def rise(self, label: str) -> pd.Series:
        """In percent, by timestep, mean over seeds."""
        return 100 * (self.times(label).mean(axis=1) - 1)

    def bits(self, label: str, start: int) -> tuple[float, float, float]:
        """Of task 1: what its BPD has changed by since it was learned, how much of that lies at timesteps from `start`
        on, and their share of the bits. Losses between those of the curves are interpolated, and not clipped."""
        rows = self.curves[(self.curves.label == label) & (self.curves.split == "validation")]
        bpd = rows.dropna(subset="bpd").set_index("step").bpd
        losses = rows.dropna(subset="loss").pivot(index="step", columns="timestep", values="loss")
        first = self.curves.step[self.curves.task == 1].max()
        d, t = Diffusion(), np.arange(start, 1000)
        weight = (d.beta / (2 * (1 - d.beta) * (1 - d.alpha_bar) * np.log(2))).numpy()[start:]
        at_first, in_the_end = (
            (weight * np.interp(t, losses.columns, losses.loc[step])).sum() for step in (first, losses.index[-1])
        )
        return bpd.iloc[-1] - bpd[first], in_the_end - at_first, at_first / bpd[first]

    @cached_property
    def names(self) -> dict:
        """What the notebook's cells define before its results."""
        names, given = {}, {"results": self.path, "dataset": self.dataset}
        with rc_context():
            for cell in nbformat.read(ROOT / "notebooks" / f"{self.notebook}.ipynb", as_version=4).cells:
                if cell.source.startswith("## Results"):
                    return names
                if cell.cell_type == "code":
                    exec(cell.source, names)
                    names |= given

    @cached_property
    def arms(self) -> pd.DataFrame:
        found, arm = self.names["found"], self.names.get("arm")
        if arm:  # a label and a setting, which is the first column
            found = found.assign(label=[*map(arm, found.label, found.iloc[:, 0])]).set_index(["label", "seed"])
        return found.assign(copied=100 * found.copied)

    @cached_property
    def planned(self) -> pd.DataFrame:
        return compared(self.arms, self.names["contrasts"]).set_index(["first", "second", "outcome"])

    def best(self, by: str) -> tuple[str, str]:
        """The shape and the constant weight that were chosen on validation images."""
        return self.names["chosen"]["shape", by], self.names["chosen"]["constant", by]

    def mean(self, arm: str, outcome: str = "fid") -> float:
        return self.arms.loc[arm, outcome].mean()

    def contrast(self, first: str, second: str, outcome: str = "fid") -> pd.Series:
        """With hindsight where it was not planned."""
        of = first, second, outcome
        found = self.planned.loc[[of]] if of in self.planned.index else compared(self.arms, [Contrast("", *of)])
        return found.iloc[0]

    def overfit(self, label: str) -> pd.Series:
        """Task 1's loss on kept images divided by that on validation images in the end, by timestep."""
        rows = self.curves[(self.curves.step == self.curves.step.max()) & (self.curves.label == label)]
        losses = rows.pivot_table(index="timestep", columns=["split", "seed"], values="loss")
        return (losses.buffer / losses.validation).mean(axis=1)


TWO = Results(RESULTS / "replay-confirm", "digits", notebook="replay")
_, _, TENTH, THIRD, _, _, _, _, SIGMOID, MIRROR, ON_NEW, DISTILLED = labels_of(REPLAY_KEPT)
DISTILLATION = "Generative distillation, weight 1"
OTHERS = [label for label in STUDIED if label != L2]


def listed(values, form: str = ".0f", last: str = " and ") -> str:
    *first, end = (f"{value:{form}}" for value in values)
    return ", ".join(first) + last + end


def name_of(label: str) -> str:
    """Of the methods that have one weight, without it."""
    return label if label in (REPLAY, LIGHT) else label.partition(",")[0]


def span(values, form: str = ".0f") -> str:
    values = list(values)
    return f"{min(values):{form}} to {max(values):{form}}"


def interval(row: pd.Series) -> str:
    return f"{row.difference:.2f} [{row.low:.2f}, {row.high:.2f}]"


def after_20_000_steps() -> Iterator[str]:
    r = Results(RESULTS / "paper-cpu", "mnist")
    yield f"FID {listed((r.learned(label)[0] for label in (FINETUNING, REPLAY, GENERATIVE)), '.1f')}, the same BPD"
    short = Results(RESULTS / "pretrained", "mnist", notebook="pretrained").arms
    short = short.loc[[f"{label}, from scratch" for label in (FINETUNING, REPLAY, DISTILLATION)]]
    seeds = short.groupby("label", sort=False).fid
    spread = 100 * seeds.std() / seeds.mean()
    yield "three seeds is {:.0f} % (finetuning), {:.0f} % (replay with weight 1) and {:.0f} % (generative".format(
        *spread
    )
    learned, lost, right = r.before(FINETUNING, "fid"), r.old(FINETUNING), r.old(FINETUNING, "accuracy")
    yield f"each was learned, old tasks have FID {learned:.0f}; in the end they have {lost:,.0f}, and {right:.0f} % of"
    bits, at_first = r.average(FINETUNING, "bpd"), r.learned(FINETUNING, "bpd").mean()
    yield f"BPD in the end is {bits:.3f}: *less* than that of five tasks just learned, {at_first:.3f}."
    rows = r.curves[r.curves.bpd.notna()].pivot(index="step", columns="label", values="bpd")
    way = [rows[FINETUNING][step] for step in (20_000, 21_000, 40_000, 100_000)]
    yield "(on validation images {:.2f} to {:.2f} in the first 1,000 steps of task 2".format(*way)
    yield f"where replay with weight 1 has {rows[REPLAY][21_000]:.2f}), and later training"
    yield "makes up for it: {2:.2f} after task 2, {3:.2f} in the end.".format(*way)
    yield f"bits were {listed(rows[FINETUNING][[10_000, 15_000, 20_000]], '.2f')} after 10,000, 15,000 and 20,000 steps"
    (gain, late, share), (more, of_light, _) = r.bits(FINETUNING, 50), r.bits(LIGHT, 50)
    yield f"Of the {-gain:.3f} bits that task 1 gains, the timesteps from 50 on, where its digits are lost, cost {late:.3f} (losses"
    yield f"the rest, which is put down to those before 50, brings {late - gain:.3f}."
    yield f"Weight 0.01 gains the same {of_light - more:.3f} before 50 and loses {of_light:.3f} from there on: {gain - more:.2f} bits"
    right = [r.matrix(label, "accuracy")[-1, 0] for label in (LIGHT, FINETUNING)]
    yield "({:.0f} and {:.1f} % of the samples right)".format(*right)
    yield f"The timesteps from 50 on are {100 * share:.0f} % of task 1's bits"
    fashion = Results(RESULTS / "paper-cpu", "fashion_mnist")
    for label in STUDIED:
        parts = [x.bits(label, 50) for x in (r, fashion) if label in set(x.scores.label)]
        yield f"| {name_of(label)} | {' | '.join(f'{change:+.3f} ({late:+.3f})' for change, late, _ in parts)} |"
    alone = listed(r.learned(FINETUNING)[1:])
    yield f"new tasks badly (FID {listed(r.learned(L2)[1:])} right after tasks 2 to 5, under finetuning {alone})"
    old = [r.old(L2, metric) for metric in ("fid", "accuracy", "taken_for_current")]
    yield "loses old ones all the same: {:.0f}, {:.0f} % right, {:.0f} % taken for the last task".format(*old)
    yield f"Its average FID, {r.average(L2):.0f}, is below finetuning's {r.average(FINETUNING):,.0f}, its bits"
    yield f"its bits, {r.average(L2, 'bpd'):.3f}, are above {bits:.3f}."
    floor = r.scores.query("metric == 'fid_floor' and split == 'test' and extractor == 'lenet'")
    real = floor.groupby("eval_task").value.mean().to_numpy()
    mark = {label: r.learned(label) / real for label in STUDIED}
    assert all((times[[0, 2]] > 3).all() for times in mark.values())
    for label, times in mark.items():
        yield f"| {name_of(label)} | {' | '.join(f'{x:.3g}' if x > 10 else f'{x:.2f}' for x in times)} |"
    old = [r.old(REPLAY, metric) for metric in ("fid", "accuracy", "bpd")]
    yield "tasks {:.0f}, {:.0f} % right, and {:.2f} bits ({:.2f} when learned)".format(*old, r.before(REPLAY, "bpd"))
    copied = r.matrix(REPLAY, "copied")
    yield "{:.0f}, {:.1f}, {:.1f} and {:.0f} % of the samples for tasks 1 to 4 are nearly one of".format(*copied[-1])
    yield f"task 1 had {copied[1, 0]:.0f} % after 3,200 times, task 2 has {copied[-1, 1]:.1f} % after 3,500"
    precision, recall = (r.matrix(REPLAY, metric)[[0, -1], 0] for metric in ("precision", "recall"))
    yield "precision rises ({:.2f} to {:.2f}) while its recall falls ({:.2f} to {:.2f})".format(*precision, *recall)
    yield f"New tasks pay: FID right after tasks 2 to 5 is {listed(r.learned(REPLAY)[1:])}, under finetuning {alone}"
    light = r.average(LIGHT, "bpd")
    yield f"has the best bits, {light:.3f}, but only {bits - light:.3f} below finetuning"
    old = [r.old(LIGHT, metric) for metric in ("fid", "accuracy", "precision")]
    old.append(r.before(LIGHT, "precision"))
    yield "Old tasks have FID {:.0f}, {:.0f} % right, and precision {:.2f} ({:.2f} when learned)".format(*old)
    yield f"stays at {r.old(LIGHT, 'recall'):.2f} ({r.before(LIGHT, 'recall'):.2f} when learned; finetuning has"
    yield f"finetuning has {r.matrix(FINETUNING, 'recall')[3, 0]:.2f} for task 1 after task 4"
    old = [r.old(GENERATIVE, metric) for metric in ("fid", "accuracy", "bpd")]
    yield "old tasks have FID {:.0f}, {:.0f} % right, and {:.2f} bits".format(*old)
    yield f"new tasks cost little (FID {listed(r.learned(GENERATIVE)[1:])} right after tasks 2 to 5)"
    task_1, its_bits = (r.matrix(GENERATIVE, metric)[:, 0] for metric in ("fid", "bpd"))
    yield f"task 1's FID goes {listed(task_1, last=', ')}, its bits {listed(its_bits, '.2f', ', ')}."
    fid, bpd = ([r.average(label, metric) for label in (GENERATIVE, REPLAY, LIGHT)] for metric in ("fid", "bpd"))
    yield "(average {:.0f} against {:.0f}) and better than with 0.01, the study's choice ({:.0f})".format(*fid)
    yield "by BPD it is the other way round ({:.2f} against {:.2f} and {:.2f})".format(*bpd)
    alone, l2, light, generative = map(r.rise, (FINETUNING, L2, LIGHT, GENERATIVE))
    yield f"The run's {alone[700]:.0f} % meets it"
    up = 100 * (r.old(REPLAY, "bpd") / r.before(REPLAY, "bpd") - 1)
    yield f"the BPD of old tasks under replay with weight 1, which finding 4 calls worse, is up by {up:.1f} %."
    yield f"at t = 700 it rises by {alone[700]:.0f} %, at t = 50 it falls by {-alone[50]:.0f} %"
    kept, new = (r.times(REPLAY, split=split).mean(axis=1) for split in ("buffer", "validation"))
    yield f"falls to {kept[50]:.2f} of what it was and that on validation images rises to {new[50]:.1f} times"
    yield f"at t = 700 both fall by {span(100 * (1 - times[700]) for times in (kept, new))} %"
    yield f"is up by {light[500]:.0f} % at t = 500 and nowhere by more than {light.max():.0f} %"
    yield f"loses most at t = {generative.idxmax():.0f} ({generative.max():.0f} %)"
    yield f"from t = 50 ({l2[50]:.0f} %) to 950 ({l2[950]:.0f} %), most at t = {l2.idxmax():.0f} ({l2.max():.0f} %)"
    yield f"falls under every other method, by {span(-rise for label in OTHERS for rise in r.rise(label).loc[800:])} %"
    up = [r.times(FINETUNING, step).loc[t].mean() for step in (1_000, 20_000) for t in (500, 700)]
    yield "is {:.2f} (t = 500) and {:.2f} times (t = 700) what it was, after all 20,000".format(*up[:2])
    yield "after all 20,000 it is {:.2f} and {:.2f} times that".format(*up[2:])
    times = [r.times(REPLAY, step).loc[50].mean() for step in (1_000, 5_000, 10_000, 20_000)]
    yield f"at t = 50 is {listed(times, '.1f')} times what it was"
    curve = r.curves[r.curves.label == REPLAY].groupby("step").bpd.mean()[[20_000, 22_000, 40_000]]
    yield "from {:.2f} to {:.2f} after 1,000 to 3,000 steps of task 2, are back after 5,000 and {:.2f}".format(*curve)


def of_fashion_after_20_000_steps() -> Iterator[str]:
    r = Results(RESULTS / "paper-cpu", "fashion_mnist")
    floor = r.scores.query("metric == 'fid_floor' and split == 'test' and extractor == 'lenet'")
    real = floor.groupby("eval_task").value.mean().to_numpy()
    yield f"FID is against test images (real ones: {real.mean():.1f})."
    old = [r.before(FINETUNING, "fid"), *(r.old(FINETUNING, x) for x in ("fid", "accuracy", "taken_for_current"))]
    yield "FID {:.0f}; in the end they have {:.0f}, {:.0f} % of their samples are right, {:.0f} % are taken for".format(
        *old
    )
    yield f"rises from {r.learned(FINETUNING, 'bpd').mean():.2f} to {r.average(FINETUNING, 'bpd'):.2f}."
    yield f"and {r.average(FINETUNING, 'bpd') - r.learned(FINETUNING, 'bpd').mean():.2f} higher on [Fashion-MNIST]"
    loss, late, share = r.bits(FINETUNING, 50)
    yield f"Of the {loss:.3f} bits that task 1 loses, {late:.3f} lie from t = 50 on, which are {100 * share:.0f} % of its bits"
    yield f"% of its bits, and {loss - late:.3f} before:"
    rise = r.rise(FINETUNING)
    yield f"{rise[50]:.0f} % at t = 50 and by {rise[700]:.0f} % at t = 700, most at t = {rise.idxmax():.0f} ({rise.max():.0f} %)"
    ends = [r.times(FINETUNING, step).loc[700].mean() for step in (20_000, 40_000, 60_000, 80_000)]
    yield f"at t = 700 the loss is {listed(ends, '.2f')} times what it was after tasks 2 to 5"
    yield f"From t = 900 on it falls, by {span(-rise.loc[900:])} %."
    up = [r.times(FINETUNING, step).loc[t].mean() for step in (1_000, 20_000) for t in (500, 700)]
    yield "is {:.2f} (t = 500) and {:.2f} times (t = 700) what it was, after all 20,000 it is {:.2f} and".format(
        *up[:3]
    )
    yield f"{up[2]:.2f} and {up[3]:.2f} times that."
    old = [r.old(GENERATIVE, x) for x in ("fid", "accuracy")]
    yield "old tasks have FID {:.0f} and {:.0f} % right".format(*old)
    yield "({:.0f} and {:.0f} % when learned)".format(*(r.before(GENERATIVE, x) for x in ("fid", "accuracy")))
    fid, bpd = ([r.average(label, x) for label in (GENERATIVE, FINETUNING)] for x in ("fid", "bpd"))
    yield "average FID of {:.0f} where finetuning has {:.0f}, and {:.2f} bits where finetuning has {:.2f}.".format(
        *fid, *bpd
    )
    mnist = Results(RESULTS / "paper-cpu", "mnist")
    yield "(on MNIST the same: {:.2f} against {:.2f})".format(
        *(mnist.average(label, "bpd") for label in (GENERATIVE, FINETUNING))
    )
    first = [r.matrix(GENERATIVE, x)[:, 0] for x in ("fid", "bpd")]
    yield f"task 1's FID goes {listed(first[0], last=', ')}, its bits {listed(first[1], '.2f', ', ')}."
    yield "does not see ({:.2f} when learned, {:.2f} in the end)".format(
        *(of(GENERATIVE, "precision") for of in (r.before, r.old))
    )
    yield "(recall falls from {:.2f} to {:.2f})".format(*(of(GENERATIVE, "recall") for of in (r.before, r.old)))
    third, right = r.matrix(GENERATIVE)[:, 2], r.matrix(GENERATIVE, "accuracy")[-1, 2]
    yield f"task 3, lose most (FID {third[2]:.0f} to {third[-1]:.0f}, {right:.0f} % right)"
    new, alone = (listed(r.learned(label)[1:]) for label in (GENERATIVE, FINETUNING))
    yield f"(FID {new} right after tasks 2 to 5, under finetuning {alone})"
    up = r.rise(GENERATIVE)
    assert up.loc[50:].idxmax() == 50 and (up.loc[50:650].diff().dropna() < 1).all() and up.loc[650] > 0 > up.loc[700]
    yield f"most at t = 50 ({up[50]:.0f} %), less and less up to t = 650 ({up[650]:.0f} %), and falls from t = 700 on"
    yield f"falls from t = 700 on ({span(-up.loc[700:])} %)"
    most = r.rise(FINETUNING).nlargest(4)
    assert sorted(most.index) == [550, 600, 650, 700]
    yield f"under finetuning it rises most at t = 550 to 700 ({span(most)} %)"
    mark = [r.learned(label) / real for label in (FINETUNING, GENERATIVE, LIGHT, REPLAY)]
    assert (np.array(mark) > 3).all()
    finetuned, generated, light, heavy = (listed(times, ".1f") for times in mark)
    yield f"weight 0.01 {light} times and with weight 1 {heavy} times, L2's from task 2 on"
    yield f"finetuning's FID is {finetuned} times that of real images, generative replay's {generated} times, those"
    yield f"L2's from task 2 on {span((r.learned(L2) / real)[1:])}: the mark of three"
    first = r.scores[r.scores.after_task == 1].groupby("label").value.apply(list)
    for label in (GENERATIVE, L2, LIGHT, REPLAY):
        assert first[label] == first[FINETUNING]  # "number for number"
    yield f"new tasks badly (FID {listed(r.learned(L2)[1:])} right after tasks 2 to 5)"
    old = [r.old(L2, metric) for metric in ("fid", "accuracy", "taken_for_current")]
    yield "loses old ones all the same: {:.0f}, {:.0f} % right, {:.0f} % taken for the last task.".format(*old)
    by_fid, by_bpd = (sorted(STUDIED, key=lambda label: r.average(label, metric)) for metric in ("fid", "bpd"))
    assert by_fid == [REPLAY, GENERATIVE, LIGHT, L2, FINETUNING] and by_bpd == [
        LIGHT,
        FINETUNING,
        GENERATIVE,
        L2,
        REPLAY,
    ]
    fid, bpd = r.average(L2), r.average(L2, "bpd")
    yield f"Its average FID, {fid:.0f}, is better than finetuning's alone, its bits, {bpd:.2f}, better than those of"
    heads, *rows = table_of(ROOT / "figures" / "paper-cpu" / "table_protocols_bpd-fashion_mnist.md")
    unclipped = {row[0]: float(row[heads.index("fixedlarge, unclipped ↓")]) for row in rows}
    assert unclipped[L2] > unclipped[REPLAY]
    yield f"worse than these too: {unclipped[L2]:.2f} and {unclipped[REPLAY]:.2f})"
    lost = {m: {x: r.old(x, m) - r.before(x, m) for x in STUDIED} for m in ("bpd", "fid")}
    labels = LIGHT, L2, FINETUNING, GENERATIVE, REPLAY
    yield (
        "({:.2f} bits on old tasks, L2 {:.2f}, finetuning {:.2f}, generative replay {:.2f}, weight 1 {:.2f})".format(
            *(lost["bpd"][x] for x in labels)
        )
    )
    labels = REPLAY, GENERATIVE, LIGHT, L2, FINETUNING
    yield "by FID weight 1 ({:.0f}; generative replay {:.0f}, weight 0.01 {:.0f}, L2 {:.0f}, finetuning {:.0f}).".format(
        *(lost["fid"][x] for x in labels)
    )
    yield f"(FID {listed(r.learned(LIGHT)[1:])} right after tasks 2 to 5, as under finetuning)"
    old = [of(LIGHT, x) for of in (r.old, r.before) for x in ("fid", "accuracy")]
    yield "old tasks have FID {:.0f} and {:.0f} % right ({:.0f} and {:.0f} % when learned)".format(*old)
    less = r.average(FINETUNING, "bpd") - r.average(LIGHT, "bpd")
    yield f"an average FID of {r.average(LIGHT):.0f}, and {r.average(LIGHT, 'bpd'):.2f} bits, {less:.2f} below finetuning"
    old = [r.old(REPLAY, x) for x in ("fid", "accuracy", "bpd")]
    yield "old tasks have FID {:.0f}, {:.0f} % right, and {:.2f} bits ({:.2f} when learned)".format(
        *old, r.before(REPLAY, "bpd")
    )
    yield f"average FID {r.average(REPLAY):.0f}, average BPD {r.average(REPLAY, 'bpd'):.2f}"
    yield f"(FID {listed(r.learned(REPLAY)[1:])} right after tasks 2 to 5)"
    copied = r.matrix(REPLAY, "copied")
    yield f"{listed(copied[-1, :-1], '.1f')} % of the samples for tasks 1 to 4 are copies"
    kept, new = (r.times(REPLAY, split=split).mean(axis=1) for split in ("buffer", "validation"))
    yield f"at t = 50 the loss on kept images falls to {kept[50]:.2f} of what it was, that on validation images rises to"
    yield f"rises to {new[50]:.1f} times; at t = 700 they are {kept[700]:.2f} and {new[700]:.2f} times that"
    bits = [r.bits(label, 50)[0] for label in (REPLAY, FINETUNING)]
    yield "task 1's bits rise by {:.2f} on validation images, finetuning's by {:.2f}".format(*bits)
    precision, recall = (r.matrix(REPLAY, metric)[[0, -1], 0] for metric in ("precision", "recall"))
    yield "precision {:.2f} to {:.2f}, recall {:.2f} to {:.2f}".format(*precision, *recall)
    light, heavy = r.rise(LIGHT), r.rise(REPLAY)
    yield f"rises most at t = {heavy.idxmax():.0f} ({heavy.max():.0f} %), under weight 0.01 most"
    yield f"under weight 0.01 most at t = {light.idxmax():.0f} ({light.max():.0f} %)"
    l2 = r.rise(L2)
    assert all(r.rise(label)[l2.idxmax()] < 0 for label in OTHERS)  # "where under the others it falls"
    yield f"everywhere, least at t = {l2.idxmin():.0f} ({l2.min():.0f} %), most at t = {l2.idxmax():.0f} ({l2.max():.0f} %)"


def of_methods() -> Iterator[str]:
    r = Results(RESULTS / "benchmark-digits", "digits")
    equal = r.average(f"{DISTILLATION}, not shared"), r.average(GENERATIVE)
    shared = r.average(DISTILLATION), r.average(f"{GENERATIVE}, shared")
    yield "FID is {:.0f} against {:.0f} (x {:.2f}) where new".format(*equal, equal[0] / equal[1])
    yield "{:.0f} against {:.0f} (x {:.2f}) where they count 1/k".format(*shared, shared[0] / shared[1])
    held = prices(r.path, r.dataset, [DISTILLED, REPLAY, DISTILLATION, "Joint training"]).bytes / 1000
    yield "{:.0f} KB where replay holds {:.0f} (generative distillation {:.0f} KB, and no image)".format(*held)
    yield f"all past data are {held.iloc[-1]:.0f} KB"
    aware = next(label for label in r.scores.label if label.startswith("Timestep-aware"))
    yield f"half learns the newest task (FID {r.learned(aware)[-1]:.0f})"
    newest = span(r.learned(label)[-1] for label in ("L2", "EWC", "EWC, decay 0.9", "Rank-1 EWC", "MAS", "SI"))
    yield f"the newest task's FID is {newest}, finetuning's {r.learned(FINETUNING)[-1]:.0f}"
    averaged = r.average("Model averaging"), r.learned("Model averaging")[-1]
    yield "average FID {:.0f}, the newest task's {:.0f}. A-GEM".format(*averaged)
    yield f"had x 0.84 and has x {prices(r.path, r.dataset, ['Model averaging']).time.item():.2f} (in turns"
    yield f"are its only ones on all data (FID {r.average('Joint training'):.0f})"
    first = result_matrix(r.scores[(r.scores.label == REPLAY) & (r.scores.seed == 0)], "fid", "test")[-1].mean()
    yield f"here {r.average(DISTILLATION):.1f} and {r.average(REPLAY):.1f}, and {first:.1f}."
    first = result_matrix(r.scores[(r.scores.label == REPLAY) & (r.scores.seed == 0)], "fid", "validation")[-1].mean()
    there = Results(RESULTS / "orders", "digits", notebook="orders").arms.fid_validation[f"{REPLAY}, label"][0]
    yield f"moves by up to {first - there:.0f} in validation FID (replay of weight 1, seed 0: {there:.1f} there, {first:.1f} here)"
    tables = summarise(r.scores), summarise_replicates(load_bootstrap(r.path, r.dataset))
    worse = compare(*tables, PAIR, DISTILLATION, "fid", "average")
    yield f"(against training images {worse.mean:+.1f} [{worse.low:+.1f}, {worse.high:+.1f}], not corrected)"
    by_seed = (
        r.scores.query("metric == 'fid' and split == 'test' and after_task == 5")
        .groupby(["label", "seed"])
        .value.mean()
    )
    light, heavy = (by_seed[f"Experience replay, weight {weight}"] for weight in (1, 10))
    assert (light < heavy).tolist() == [False, True, True]  # "on two of three seeds"
    took = prices(r.path, r.dataset, [PAIR, DISTILLATION]).time
    yield "takes {:.2f} times finetuning's time, distillation alone {:.2f}.".format(*took)


REFERENCES = "One model for each task", "One model for each task, start previous", "Joint training"
PAIR = "Distillation and rank-1 EWC"
PENALTIES = "L2", "EWC", "EWC, decay 0.9", "Rank-1 EWC", "MAS", "SI"


def assert_three_seeds_by_the_rule(r: Results) -> list[str]:
    """Those of the five rows with the lowest validation FID of seed 0, one for each method and no reference, which are
    returned, and finetuning's."""
    first = outcomes(r.scores, r.curves).xs(0, level="seed").fid_validation.drop([*REFERENCES]).sort_values()
    methods = r.scores.groupby("label").method.first()
    led = [*first[~methods[first.index].duplicated().to_numpy()].index[:5]]
    seeds = r.scores.groupby("label").seed.nunique()
    assert {*seeds[seeds == 3].index} == {*led, FINETUNING} and set(seeds) == {1, 3}
    return led


def of_methods_on_mnist() -> Iterator[str]:
    r = Results(RESULTS / "benchmark-mnist", "mnist")
    fid = {label: r.average(label) for label in r.scores.label.unique()}
    order = sorted(fid.keys() - {*REFERENCES}, key=fid.get)
    aware, replay, tuned = order[:3]
    assert [replay, *order[3:5]] == [REPLAY, DISTILLED, f"{DISTILLATION}, not shared"]
    assert name_of(aware) == "Timestep-aware replay" and name_of(tuned) == "Self-tuned replay"
    assert_three_seeds_by_the_rule(r)
    yield (
        f"timestep-aware replay has {r.said(aware)}, replay of weight 1 {r.said(REPLAY)}, self-tuned replay "
        f"{r.said(tuned)}, distilled replay {r.said(DISTILLED)}; the first that keeps none, generative distillation "
        f"with shares of 1, {r.said(order[4])}."
    )
    yield f"{r.said(order[4])} against {r.said(GENERATIVE)} where new and drawn images count 1 each"
    yield f"{r.said(DISTILLATION)} against {r.said(f'{GENERATIVE}, shared')} where they count 1/k and 1 - 1/k"
    assert min(fid[label] for label in PENALTIES) > 2 * fid[REPLAY]
    penalties = span(fid[label] for label in PENALTIES)
    own = f"{r.averages(FINETUNING)[0]:.0f}"
    yield f"They have {penalties}, A-GEM {r.said('A-GEM')} (its seed, where finetuning has {own}), finetuning {r.said(FINETUNING)}."
    assert all(min(r.averages(label)) > max(r.averages(aware)) for label in fid.keys() - {aware})  # "on each seed"
    alone, previous, joint = (fid[label] for label in REFERENCES)
    yield f"(one for each task has {alone:.0f}, begun at the last one's {previous:.0f}; joint training {joint:.0f})"
    arms = outcomes(r.scores, r.curves)
    of = [(one, REPLAY, outcome) for one in (aware, tuned) for outcome in ("fid", "bpd")]
    ahead, bits, same, its_bits = (row for _, row in compared(arms, [Contrast("", *x) for x in of]).iterrows())
    yield f"its FID is x {interval(ahead)} (three seeds, not corrected: chance is not excluded,"
    assert ahead.low < 1 < ahead.high and its_bits.low < 0 < its_bits.high
    yield f"and it pays {interval(bits)} bits"
    yield f"Self-tuned replay is not told from replay here, in FID (x {interval(same)}) and bits."
    right = [r.average(label, "accuracy") for label in (aware, REPLAY)]
    yield "{:.0f} % of its samples are right ({:.0f} % of replay's)".format(*right)
    newest = [r.learned(label)[-1] for label in (aware, REPLAY, FINETUNING)]
    yield "the newest task (FID {:.0f}, replay's {:.0f}, finetuning's {:.0f}),".format(*newest)
    _, *trials = table_of(ROOT / "figures" / "mnist-sweep" / "sweep-mnist.md")
    chosen = {method: float(value) for method, _, yes, value, *_ in trials if yes}
    yield f"(validation FID {chosen['Timestep-aware replay']:.0f}, replay {chosen['Experience replay']:.0f})"
    without = next(float(value) for _, weight, _, value, *_ in trials if weight == "0")
    lowest = [name for name in ("L2", "MAS", "SI", "EWC", "Rank-1 EWC") if chosen[name] < without]
    assert lowest == ["EWC"]
    yield f"than none but EWC's, by {without - chosen['EWC']:.1f}."
    smallest = span(chosen[name] for name in ("L2", "MAS", "SI", "EWC"))
    yield f"(L2, MAS, SI, EWC: {smallest} with them, {without:.0f} without)"
    on_digits, on_mnist = (
        x.contrast(SIGMOID, REPLAY) for x in (TWO, Results(RESULTS / "replay-mnist", "mnist", "replay"))
    )
    assert round(on_digits.difference, 2) == 1
    yield f"and x {interval(on_mnist)} on MNIST (p = {on_mnist.holm:.2f} by Holm)"
    for name in ("digits", "mnist"):
        beside = (ROOT / "figures" / f"benchmark-{name}" / f"published-{name}.md").read_text(encoding="utf-8")
        first, *_, last = re.findall(r"(\d\.\d\d), p = (\d\.\d\d) \(published", beside)
        if name == "digits":
            yield "On the digits it is {} (p = {}, not told".format(*first)
        else:
            yield "(rank correlation {}, p = {}; with its CIFAR-10 {}, p = {})".format(*first, *last)
    close = [fid[label] for label in ("EWC", "Rank-1 EWC", FINETUNING)]
    yield f"lie within {100 * (max(close) / min(close) - 1):.0f} % of each other here"
    assert fid["Model averaging"] < min(fid[label] for label in PENALTIES)
    yield f"Model averaging has {fid['Model averaging']:.0f}, a little less than they."


def of_methods_on_fashion() -> Iterator[str]:
    r = Results(RESULTS / "benchmark-fashion_mnist", "fashion_mnist")
    one, mnist = (Results(RESULTS / f"benchmark-{name}", name, seed=0) for name in ("fashion_mnist", "mnist"))
    fid = {label: r.average(label) for label in r.scores.label.unique()}
    order = sorted(fid.keys() - {*REFERENCES}, key=fid.get)
    aware, tuned = (
        next(x for x in order[:3] if name_of(x) == f"{kind} replay") for kind in ("Timestep-aware", "Self-tuned")
    )
    assert aware == order[0] and [REPLAY, DISTILLED, PAIR, DISTILLATION] == [order[1], *order[3:6]]
    led = assert_three_seeds_by_the_rule(r)
    above = [one.average(label) / fid[label] for label in led]
    assert all(one.average(label) == r.averages(label).max() for label in led)
    assert one.average(FINETUNING) == r.averages(FINETUNING).min()
    yield f"for all five, by {span(100 * (x - 1) for x in above)} % of their means, and the lowest for finetuning"
    _, *trials = table_of(ROOT / "figures" / "fashion_mnist-sweep" / "sweep-fashion_mnist.md")
    chosen = {method: float(value) for method, _, yes, value, *_ in trials if yes}
    without = next(float(value) for _, weight, _, value, *_ in trials if weight == "0")
    yield f"timestep-aware replay has {r.said(aware)}, replay of weight 1 {r.said(REPLAY)}, self-tuned replay {r.said(tuned)}, distilled replay {r.said(DISTILLED)}."
    with_ewc, without_it = (f"{one.average(label):.0f}" for label in (PAIR, DISTILLATION))
    yield f"generative distillation with rank-1 EWC, {r.said(PAIR)}, and without it; seed 0 has {with_ewc} and {without_it}, which"
    yield f"no better in the sweep: {chosen[PAIR]:.1f} and {chosen['Generative distillation']:.1f})"
    yield f"{r.said(f'{DISTILLATION}, not shared')} against {r.said(GENERATIVE)} where new and drawn images count 1 each"
    yield f"and {r.said(DISTILLATION)} against {r.said(f'{GENERATIVE}, shared')} where they count 1/k"
    assert min(fid[label] for label in PENALTIES) > 2 * fid[REPLAY]
    own = one.average(FINETUNING)
    assert abs(fid["A-GEM"] / own - 1) < 0.2
    penalties = span(fid[label] for label in PENALTIES)
    yield f"they have {penalties}, A-GEM {r.said('A-GEM')} (its seed, where finetuning has {own:.0f}), finetuning {r.said(FINETUNING)}."
    assert [name for name in ("L2", "Rank-1 EWC", "EWC", "MAS", "SI") if chosen[name] > without] == ["L2", "Rank-1 EWC"]
    gain = without - min(chosen[name] for name in ("EWC", "MAS", "SI"))
    assert gain == without - chosen["EWC"]
    yield f"EWC gains most, {gain:.0f} of {without:.0f}."

    def first(metric: str, of=lambda matrix: matrix[-1].mean()) -> pd.DataFrame:
        """By label, of seed 0 of both data sets."""
        return pd.DataFrame({x.dataset: {label: of(x.matrix(label, metric)) for label in fid} for x in (one, mnist)})

    def agree(both: pd.DataFrame) -> str:
        return f"{both.corr('spearman').iloc[0, 1]:.2f}"

    both = first("fid").sort_values("mnist")
    assert {*both.index} == {*mnist.scores.label} and (both.rank() <= 5).all(axis=1).sum() == 5  # "the same"
    yield f"{agree(both)} over the {len(both)} rows (seed 0 of both), {agree(both[:12])} and {agree(both[12:])} within"
    newest = first("fid", lambda matrix: matrix[-1, -1])
    yield f"By bits it is {agree(first('bpd'))}, by the FID of the newest task {agree(newest)}."
    agem, finetuned = (one.scores.value[one.scores.label == label] for label in ("A-GEM", FINETUNING))
    assert np.array_equal(agem, finetuned)  # "bit for bit"
    curves = one.curves[(one.curves.label == FINETUNING) & (one.curves.split == "buffer")]
    loss = curves.groupby("step").loss.mean()
    learned, end = curves.step[curves.task == 1].max(), curves.step.max()
    yield f"on task 1's kept images is {loss[learned]:.3f} when learned and {loss[end]:.3f} in the end (mean of {curves.timestep.nunique()} timesteps)"
    times = one.times(FINETUNING).mean(axis=1)
    yield f"on validation images to {span(times.loc[250:600], '.1f')} times from t = 250 to 600"
    assert times.loc[800:].max() < 0.6
    yield f"by {100 * (loss[learned + 250] / loss[learned] - 1):.0f} % in the first 250 steps of task 2"
    assert all(min(r.averages(label)) > max(r.averages(aware)) for label in fid.keys() - {aware})  # "on each seed"
    arms = outcomes(r.scores, r.curves)
    of = [(label, REPLAY, outcome) for label in (aware, tuned) for outcome in ("fid", "bpd")]
    ahead, more, same, its_bits = (row for _, row in compared(arms, [Contrast("", *x) for x in of]).iterrows())
    yield f"its FID is x {interval(ahead)} of replay's (three seeds, p = {ahead.p:.2f}, {ahead.holm:.2f} by Holm for the four"
    both = Results(RESULTS / "benchmark-mnist", "mnist"), r
    assert all((x.averages(aware) < x.averages(REPLAY)).all() for x in both)  # "all six seeds agree"
    mnist_ahead = compared(outcomes(both[0].scores, both[0].curves), [Contrast("", aware, REPLAY, "fid")]).iloc[0]
    yield f"On MNIST it is x {interval(mnist_ahead)} (p = {mnist_ahead.p:.2f})"
    digits = Results(RESULTS / "benchmark-digits", "digits")
    ten = digits.averages(aware.replace("weight 1,", "weight 10,"))
    assert (digits.averages(REPLAY) < ten).sum() == 2 and (digits.averages(REPLAY.replace("1", "10")) > ten).all()
    yield f"({interval(more)} more)"
    yield f"x {interval(mnist_ahead)} and x {interval(ahead)} of the FID of replay of weight 1"  # in short
    dearer = both[0].average(aware, "bpd") - both[0].average(REPLAY, "bpd")
    yield f"it has the lower FID and costs {dearer:.2f} and {more.difference:.2f} bits"
    yield f"in FID (x {interval(same)}) and bits."
    assert ahead.high < 1 and its_bits.low < 0 < its_bits.high
    alone, previous, joint = (fid[label] for label in REFERENCES)
    yield f"(one for each task has {alone:.0f}, begun at the last one's {previous:.0f}; joint training {joint:.0f})"
    right = {label: r.average(label, "accuracy") for label in fid}
    yield "{:.0f} %, replay {:.0f}, one network for each task {:.0f}, begun at the last one's {:.0f}".format(
        *(right[label] for label in (aware, REPLAY, *REFERENCES[:2]))
    )
    last = {label: r.learned(label)[-1] for label in fid}
    yield f"the newest task (FID {last[aware]:.0f}, replay's {last[REPLAY]:.0f}, finetuning's {last[FINETUNING]:.0f})"
    bits = {label: r.average(label, "bpd") for label in fid}
    assert min(bits, key=bits.get) == REPLAY
    yield f"{bits[aware]:.2f} bits where replay, which has the fewest, has {bits[REPLAY]:.2f}"
    strong = "L2", "EWC", "EWC, decay 0.9", "MAS", "SI"
    middle = [span(np.concatenate([one.learned(x)[1:4] for x in of])) for of in (strong, (FINETUNING,))]
    yield f"FID {middle[0]} right after tasks 2 to 4 (finetuning {middle[1]})"
    yield f"and {span(last[x] for x in strong)} on the newest ({one.learned(FINETUNING)[-1]:.0f})"
    lost = {x: {label: one.old(label, x) - one.before(label, x) for label in fid} for x in ("fid", "bpd")}
    yield f"they forget {span(lost['fid'][x] for x in strong)} (finetuning {lost['fid'][FINETUNING]:.0f})"
    of_first = [one.matrix(x, "accuracy")[[0, -1], 0] for x in strong]
    yield f"goes from {of_first[0][0]:.0f} % right to {span(x[1] for x in of_first)} %"
    yield f"In bits they forget {span((lost['bpd'][x] for x in strong), '.2f')} (finetuning {lost['bpd'][FINETUNING]:.2f})"
    yield f"end at {span((bits[x] for x in strong), '.2f')} ({one.average(FINETUNING, 'bpd'):.2f})"
    yield f"replay's in FID ({lost['fid'][REPLAY]:.0f}, L2 {lost['fid']['L2']:.0f})"
    assert lost["bpd"]["L2"] > lost["bpd"][FINETUNING]
    _, *five = table_of(ROOT / "figures" / "paper-cpu-sweep" / "sweep-fashion_mnist.md")
    by_weight = {weight: float(value) for _, weight, _, value, *_ in five}
    yield "weight 0.001 has {:.0f}, none {:.0f} and weight 10, which it has here, {:.0f}.".format(
        *(by_weight[weight] for weight in ("0.001", "0", "10"))
    )
    averaged = "Model averaging"
    yield f"has {r.said(averaged)}, by one seed not told from the lowest penalty's {min(fid[x] for x in PENALTIES):.0f}, but {right[averaged]:.0f} % of its samples are right, as of finetuning's {right[FINETUNING]:.0f}, and the newest task is at {last[averaged]:.0f}."
    said = (ROOT / "figures" / "benchmark-fashion_mnist" / "published-fashion_mnist.md").read_text(encoding="utf-8")
    ranks = re.findall(r"(\d\.\d\d), p = (\d\.\d\d) \(published, (\w+)", said)
    on_mnist, on_fashion = ((rank, p) for rank, p, of in ranks if of != "cifar10")
    yield "{} (p = {}, not told".format(*on_fashion) + " from chance; with the published MNIST {}, p = {})".format(
        *on_mnist
    )
    beside = sorted(one.average(label) for label in (PAIR, DISTILLATION, "Joint training"))
    assert beside[2] == joint
    yield f"third here, {100 * (joint / beside[0] - 1):.0f} % behind the first"


def of_memory_and_length() -> Iterator[str]:
    r, few, some, long = (
        Results(RESULTS / "axes-digits", "digits", notebook="axes"),
        "5 images",
        "20 images",
        "1,000 steps",
    )
    light, tuned, pair, lora = (
        "Experience replay, weight 0.1",
        "Self-tuned replay, weight 1",
        PAIR,
        "LoRA for each task",
    )

    def bits(label: str, setting: str) -> str:
        return f"{r.mean(f'{label}, {setting}', 'bpd'):.2f}"

    def fid(label: str, setting: str) -> str:
        return f"{r.mean(f'{label}, {setting}'):.1f}"

    def against(one: str, other: str, setting: str, outcome: str = "fid") -> pd.Series:
        return r.contrast(f"{one}, {setting}", f"{other}, {setting}", outcome)

    def from_some(label: str, setting: str) -> pd.Series:
        return r.contrast(f"{label}, {setting}", f"{label}, {some}", "bpd")

    assert against(DISTILLED, REPLAY, few, "bpd").holm < 0.001
    yield f"{bits(DISTILLED, few)} against {bits(REPLAY, few)} bits (p < 0.001), not of weight 0.1, which has {bits(light, few)}."
    apart = [against(DISTILLED, other, few) for other in (REPLAY, light)]
    yield "x {} and x {} (p = {:.2f} and {:.2f})".format(*map(interval, apart), *(of.holm for of in apart))
    heart = from_some(REPLAY, few)
    copied = [r.arms.copied[f"{label}, {few}"] for label in (REPLAY, DISTILLED)]
    assert not copied[1].any()
    yield f"{span(copied[0])} % of its samples for old tasks are copies, none under distilled replay; its bits"
    yield f"its bits rise from {bits(REPLAY, some)} to {bits(REPLAY, few)} (p = {heart.holm:.3f}), those of 0.1 stay ({bits(light, some)} and {bits(light, few)})"
    own = [against(tuned, other, few, "bpd") for other in (REPLAY, light)]
    yield f"Not shown: {bits(tuned, few)} bits, {own[0].difference:+.2f} [{own[0].low:+.2f}, {own[0].high:+.2f}] against weight 1, and {own[1].difference:.2f} more than weight 0.1."
    heavy, low = (from_some(label, long) for label in (REPLAY, light))
    yield f"({bits(REPLAY, some)} to {bits(REPLAY, long)}, p = {heavy.holm:.2f}), under 0.1 it falls ({bits(light, some)} to {bits(light, long)}, p = {low.holm:.2f})"
    yield f"in FID ({fid(DISTILLED, long)} against {fid(REPLAY, long)} and {fid(light, long)}) and BPD ({bits(DISTILLED, long)} against {bits(REPLAY, long)} and {bits(light, long)})"
    p = [against(DISTILLED, other, long, outcome).holm for other in (REPLAY, light) for outcome in ("fid", "bpd")]
    yield f"(p from {min(p):.2f} to {max(p):.2f}). Self-tuned replay has {bits(tuned, long)} bits, between the two."
    last = against(DISTILLATION, DISTILLED, long)
    yield f"FID {fid(DISTILLATION, long)} and {fid(DISTILLED, long)}, x {interval(last)} (p = {last.holm:.2f}), and {bits(DISTILLATION, long)} bits each."
    assert bits(DISTILLATION, long) == bits(DISTILLED, long)
    four = DISTILLATION, pair, lora, DISTILLED
    then, now = ([r.mean(f"{label}, {setting}") for label in four] for setting in (some, long))
    yield f"four methods have FID {min(now):.1f} to {max(now):.1f} (real images: 3.4), where after 200 they had {min(then):.1f} to {max(then):.1f}"
    more = r.mean(f"{lora}, {long}", "bpd") - r.mean(f"{DISTILLATION}, {long}", "bpd")
    yield f"LoRA gains most ({fid(lora, some)} to {fid(lora, long)}), at {more:.2f} bits more than distillation."
    assert max(now) < min(r.mean(f"{label}, {long}") for label in (REPLAY, light, tuned))


def in_orders() -> Iterator[str]:
    def between(r: Results, label: str) -> float:
        means = [r.mean(f"{label}, {order}") for order in ORDERS]
        return max(means) / min(means)

    r = Results(RESULTS / "orders", "digits", notebook="orders")
    reversal = r.contrast(f"{FINETUNING}, reversed", f"{FINETUNING}, label")
    yield f"{interval(reversal)} times the FID (Holm p = {reversal.holm:.2f})"
    ends = {(order, seed): sequence("digits", order=order, seed=seed)[-1] for order in ORDERS for seed in range(3)}
    alike = [seed for seed in range(3) if ends["shuffled", seed] == ends["reversed", seed]]
    assert alike == [2] and ends["reversed", 2] == (0, 1)
    fid = {order: r.arms.fid[f"{FINETUNING}, {order}"] for order in ORDERS}
    yield f"and has {fid['shuffled'][2]:.0f} where that has {fid['reversed'][2]:.0f} (label order: {span(fid['label'])})"
    leads = [r.contrast(f"{DISTILLATION}, {order}", f"{REPLAY}, {order}").holm for order in ORDERS]
    yield f"beyond noise in none (Holm p of {min(leads):.1f} and more)"
    replay, alone = (between(r, label) for label in (REPLAY, FINETUNING))
    other = interval(r.contrast(f"{DISTILLATION}, reversed", f"{DISTILLATION}, label"))
    yield f"passes (the largest is {between(r, DISTILLATION):.2f} times the smallest; reversed against label x {other},"
    yield f"replay does not ({replay:.2f} times; finetuning {alone:.2f} times)"
    row = r.contrast(f"{REPLAY}, reversed", f"{REPLAY}, label", "forgetting")
    yield f"(replay, reversed against label: {row.difference:+.0f} [{row.low:+.0f}, {row.high:+.0f}])"
    seeds = [r.arms.fid[f"{REPLAY}, {order}"] for order in ("label", "reversed")]
    yield "a factor of {:.1f} (label) and {:.1f} (reversed)".format(*(fid.max() / fid.min() for fid in seeds))
    r, labels = Results(RESULTS / "orders-mnist", "mnist", notebook="orders"), (REPLAY, DISTILLATION, FINETUNING)
    replay, distilled, alone = (listed((r.mean(f"{label}, {x}") for x in ORDERS), ",.0f") for label in labels)
    yield f"{replay} (label, reversed, shuffled), generative distillation {distilled}, finetuning {alone}."
    yield f"half learned (FID {span(r.mean(f'{DISTILLATION}, {x}', 'fid_learned') for x in ORDERS)} right after a task"
    yield from (f"replay varies there by x {between(r, x):.2f}, as much as finetuning" for x in (REPLAY, FINETUNING))
    yield f"distillation by x {between(r, DISTILLATION):.2f}"
    short = Results(RESULTS / "pretrained", "mnist", notebook="pretrained").arms.fid
    seeds = [short[f"{label}, from scratch"] for label in (REPLAY, FINETUNING)]
    yield "differ by x {:.2f}, finetuning's by x {:.2f}".format(*(fid.max() / fid.min() for fid in seeds))


def from_a_pretrained_network() -> Iterator[str]:
    r = Results(RESULTS / "pretrained", "mnist", notebook="pretrained")
    starts, labels = ("pretrained", "from scratch"), (FINETUNING, REPLAY, DISTILLATION)
    learned = pd.DataFrame(
        {"label": f"{label}, {start}", "seed": seed, "first": fid[0], "last": fid[-1], "fid_later": fid[1:].mean()}
        for start in starts
        for (label, seed), of in r.names["scores"][start].groupby(["label", "seed"])
        for fid in [np.diag(result_matrix(of, "fid", "test"))]
    ).set_index(["label", "seed"])

    def against(label: str, outcome: str = "fid") -> pd.Series:
        return r.contrast(*(f"{label}, {start}" for start in starts), outcome)

    def change(row: pd.Series) -> str:
        return f"{row.difference:+.0f} [{row.low:+.0f}, {row.high:+.0f}]"

    def margin(label: str) -> float:
        """A fifth of the average FID from scratch."""
        return r.mean(f"{label}, from scratch") / 5

    def of_replay(task: str, between: str) -> str:
        return between.join(f"{learned.loc[f'{REPLAY}, {start}', task].mean():.0f}" for start in starts)

    alone, replay, distilled = (against(label, "fid_learned") for label in labels)
    yield f"FID right after a task is x {interval(alone)} (Holm p = {alone.holm:.2f}), under replay x {interval(replay)}"
    yield f"under generative distillation x {interval(distilled)} (Holm p"
    yield f"(Holm p = {replay.holm:.2f} for both)"
    assert round(replay.holm, 2) == round(distilled.holm, 2) and alone.holm < 0.05 < replay.holm
    gains = [learned.xs(f"{x}, {starts[1]}") - learned.xs(f"{x}, {starts[0]}") for x in labels]
    shares = "{:.0f} % of finetuning's gain (of FID, summed over tasks), {:.0f} % of replay's, {:.0f} % of distillation's.".format(
        *(100 * gain["first"].mean() / (gain["first"].mean() + 4 * gain.fid_later.mean()) for gain in gains)
    )
    yield f"the same network in all three, has {of_replay('first', ' in place of ')}: {shares}"
    later = compared(learned, [Contrast("", *(f"{label}, {s}" for s in starts), "fid_later") for label in labels])
    yield "tasks 2 to 5 have x {}, x {} and x {},".format(*(interval(row) for _, row in later.iterrows()))
    yield f"and replay's task 5 gains nothing ({of_replay('last', ' and ')}), which"
    end, more = against(FINETUNING), against(FINETUNING, "forgetting")
    assert more.low > 0 and more.high > margin(FINETUNING)
    yield f"by the rule: {change(more)} (as much: within {margin(FINETUNING):.0f}; Holm p = {more.holm:.2f}). It ends"
    yield f"It ends where it did, FID x {interval(end)}:"
    end, more = against(DISTILLATION), against(DISTILLATION, "forgetting")
    assert -margin(DISTILLATION) < more.low < 0 < more.high < margin(DISTILLATION)
    yield f"at x {interval(end)} the FID (Holm p = {end.holm:.2f}) and forgets as much ({change(more)}, within"
    was, now = (r.mean(f"{DISTILLATION}, {start}", "forgetting") for start in reversed(starts))
    yield f"within {margin(DISTILLATION):.0f}; from {was:.1f} to {now:.1f}, so that"
    end, more = against(REPLAY), against(REPLAY, "forgetting")
    assert more.low > 0 and more.high > margin(REPLAY)
    yield f"Replay's end is not told from before (x {interval(end)}), and it forgets more ({change(more)}, as much: within"
    yield f"as much: within {margin(REPLAY):.0f}; Holm p = {more.holm:.2f})"
    gap = [interval(r.contrast(f"{DISTILLATION}, {s}", f"{REPLAY}, {s}")) for s in reversed(starts)]
    yield "distillation has x {} replay's FID from scratch and x {} from the pretrained network".format(*gap)
    beside = [
        r.mean(f"{DISTILLATION}, {s}", "fid_learned") / r.mean(f"{FINETUNING}, {s}", "fid_learned") for s in starts
    ]
    yield "FID is x {1:.2f} finetuning's from scratch and x {0:.2f} from the pretrained".format(*beside)
    fewer = [-against(label, "bpd").difference for label in labels]
    yield "is lower by {:.2f} (finetuning), {:.2f} (replay) and {:.2f} bits (distillation)".format(*fewer)
    then, now = ([r.mean(f"{label}, {s}", "forgetting_bpd") for label in labels] for s in reversed(starts))
    yield f"(forgetting {listed(then, '.2f')} from scratch, {listed(now[:2], '.2f', ', ')} and {now[2]:+.2f} pretrained)"


def in_a_sequence_of_ten() -> Iterator[str]:
    names = Results(RESULTS / "ten", "mnist_fashion", notebook="ten").names
    found, half, digits, clothes = (
        names["found"].groupby("label").mean(),
        names["half"],
        "among digits",
        "among clothes",
    )
    contrasts = compared(names["arms"], names["contrasts"])
    holm = contrasts.set_index(["question", "first", "second"]).holm.groupby(level=[0, 1, 2]).first()
    each = names["found"]
    assert names["scores"].seed.nunique() == 3
    # "agree": what is lost among clothes and among digits, by more or less than a tenth, and who leads and who is last.
    beyond = each[clothes] - each[digits] > each.fid_half / 10
    assert (beyond.groupby("label").nunique() == 1).all()
    for of in (each.fid_half.unstack(), each.fid.unstack()):
        assert (of.idxmin() == REPLAY).all() and (of.idxmax() == FINETUNING).all()
    places = each.fid.unstack()
    assert (places.loc[DISTILLED] < places.loc[DISTILLATION]).tolist() == [False, False, True]  # "with seed 2"
    assert (each.fid_half.unstack().loc[DISTILLED] < each.fid_half.unstack().loc[DISTILLATION]).all()
    alone, heavy, distilled, generated = (found.loc[x] for x in (FINETUNING, REPLAY, DISTILLED, DISTILLATION))
    p = holm["lost with each task", f"{FINETUNING}, {clothes}", f"{FINETUNING}, {digits}"]
    yield f"The other way round: {alone[clothes]:.0f} against {alone[digits]:.0f} (p = {p:.2f})."
    yield f"when all five are learned their FID is {alone.fid_half:.0f}."
    then = alone.fid_half + alone.rise_at_once
    yield f"The first clothes add {alone.rise_at_once:.0f}, to {then:,.0f}, and the four tasks after them"
    yield f"the four tasks after them {(alone.fid_first - then) / (half - 1):.0f} each"

    def lost(of: pd.Series) -> str:
        return f"{of[clothes]:.0f} against {of[digits]:.0f}"

    def margin(of: pd.Series) -> float:
        return of.fid_half / 10

    more = {x.name: x[clothes] - x[digits] for x in (heavy, distilled, generated)}
    assert (
        more[DISTILLATION] < margin(generated) and more[REPLAY] > margin(heavy) and more[DISTILLED] > margin(distilled)
    )
    row = contrasts.set_index("first").loc[f"{DISTILLATION}, {clothes}"]
    assert row.low < margin(generated) < row.high
    yield f"does not by means ({lost(generated)}, a tenth is {margin(generated):.0f}; a difference of {row.difference:+.0f}"
    yield f"a difference of {row.difference:+.0f} [{row.low:+.0f}, {row.high:+.0f}], so that"
    yield f"distilled replay does ({lost(distilled)}; {margin(distilled):.0f}) and so does replay ({lost(heavy)}; {margin(heavy):.0f})"
    jumps = (x.rise_at_once for x in (distilled, heavy, generated))
    yield "speak against it: {:.0f} under distilled replay, {:.0f} under replay, {:.0f} under generative distillation.".format(
        *jumps
    )
    ends = (x.fid_first / x.fid_half for x in (heavy, generated, distilled))
    yield "x {:.2f} under replay, x {:.2f} under generative distillation and x {:.2f} under distilled replay".format(
        *ends
    )
    yield f"distilled replay ({distilled.fid_half:.0f}) is before generative distillation ({generated.fid_half:.0f}), after ten"
    yield f"after ten behind it ({distilled.fid:.0f} and {generated.fid:.0f})."
    apart = (holm[when, DISTILLATION, DISTILLED] for when in ("after five tasks", "after ten"))
    yield "told apart neither time (p = {:.2f} and {:.2f})".format(*apart)
    ahead = (holm[when, DISTILLED, REPLAY] for when in ("after five tasks", "after ten"))
    yield (
        f"Replay leads both times ({heavy.fid_half:.0f} and {heavy.fid:.0f}; "
        + "before distilled replay p = {:.2f} and {:.2f})".format(*ahead)
    )


def kept_of_class_1(seed: int, dataset: str) -> int:
    learner = object.__new__(Learner)  # whose network, which is slow to make, is not asked
    learner.run, learner.tasks = Run(dataset=dataset, method="replay", seed=seed, buffer=20), load_tasks(dataset)
    return int(buffer(learner, 0).labels.sum())


def of_two_tasks() -> Iterator[str]:
    r = TWO
    sigmoid, constant, mirror, on_new = (r.mean(arm, "bpd") for arm in (SIGMOID, REPLAY, MIRROR, ON_NEW))
    p = "p < 0.001" if r.contrast(SIGMOID, REPLAY, "bpd").holm < 0.001 else "p is not"
    yield f"has {sigmoid:.2f} bits where it has {constant:.2f} ({p}), and FID x {interval(r.contrast(SIGMOID, REPLAY))}"
    against = [interval(r.contrast(SIGMOID, arm)) for arm in (MIRROR, ON_NEW)]
    yield f"Its mirror has {mirror:.2f} (FID x {against[0]}), the same weights on the *new* task's loss {on_new:.2f} (x {against[1]})"
    least = r.arms.bpd.groupby("label").mean().nsmallest(2)
    assert DISTILLED in least.index and r.arms.fid.groupby("label").mean().idxmin() == DISTILLED
    tie = r.contrast(*least.index, "bpd")
    yield f"its BPD is not told from the lowest ({least.iloc[1]:.3f} and {least.iloc[0]:.3f}, raw p = {tie.p:.2f})"
    fid, bpd = r.contrast(SIGMOID, TENTH), r.contrast(SIGMOID, TENTH, "bpd")
    yield f"the sigmoid has {interval(bpd)} bits more than weight 0.1, at FID x {interval(fid)}."
    arms = (ROOT / "figures" / "replay" / "arms-digits.md").read_text(encoding="utf-8")
    aware, plain = (
        re.search(rf"^\| {re.escape(label)} \|(?:[^|]*\|){{3}} ([\d.]+) ", arms, re.M)[1]
        for label in (SIGMOID.replace("weight 1,", "weight 0.1,"), TENTH)
    )
    yield f"seemed to cost bits (first stage, three seeds, not tested: sigmoid {aware}, constant {plain})"
    floor = r.scores.query("metric == 'fid_floor' and split == 'test' and extractor == 'lenet'").value.mean()
    yield f"about 70 test images a task and a floor of {floor:.1f}:"
    fid, bpd, both = r.contrast(*r.best("fid")), r.contrast(*r.best("bpd"), "bpd"), r.contrast(*r.best("both"))
    yield f"(chosen by FID x {interval(fid)}: a gain of {100 * (1 - fid.low):.0f} % is not excluded)"
    yield f"(FID x {interval(both)}, BPD worse by {r.contrast(*r.best('both'), 'bpd').difference:.2f})"
    yield f"one gains {-bpd.difference:.2f} bits (p = {bpd.holm:.3f})"
    yield f"It has the lowest mean FID, {r.mean(DISTILLED):.1f}"
    shape, constant = r.best("both")
    fid, bpd = r.contrast(DISTILLED, constant), r.contrast(DISTILLED, shape, "bpd")
    yield f"(BPD against the best shape, {bpd.difference:.2f}, p = {bpd.holm:.3f})"
    yield f"Against the best constant, {constant.split(', ')[1]}: FID x {interval(fid)}, p = {fid.holm:.2f}; against"
    yield f"against 0.3, which ties with it, x {interval(r.contrast(DISTILLED, THIRD))}"
    old = r.arms.fid_old.unstack()
    ones = np.array([kept_of_class_1(seed, r.dataset) for seed in old])
    even, uneven = (old.loc[:, seeds].mean(axis=1) for seeds in (ones == 10, ones != 10))
    (here, best), (there, worse) = ((x[DISTILLED], span(x[[TENTH, THIRD, REPLAY]], ".1f")) for x in (even, uneven))
    yield f"distilled replay has {here:.1f} and constants from 0.1 to 1 have {best}; where {span(ones)} of the 20 are"
    yield f"of one class, {there:.1f} against {worse}."
    kept = dict(zip(old, ones))
    assert kept[4] == 10 != kept[5]
    against = [span(old.loc[[TENTH, THIRD, REPLAY], seed]) for seed in (4, 5)]
    yield "seed 4 (ten of each) has {} under constants, seed 5 (uneven) {}.".format(*against)
    apart = (r.overfit(DISTILLED) - r.overfit(FINETUNING)).loc[:499].abs()
    yield f"there distilled replay stays within {apart.max():.1f} of finetuning's ratio"


def on_mnist() -> Iterator[str]:
    r = Results(RESULTS / "replay-mnist", "mnist", notebook="replay")
    bpd, fid, mirror = (r.contrast(SIGMOID, *of) for of in ((REPLAY, "bpd"), (REPLAY, "fid"), (MIRROR, "bpd")))
    yield f"({interval(bpd)}, p = {bpd.holm:.2f}; FID x {interval(fid)}, p = {fid.holm:.2f})"
    yield f"its mirror is worse in BPD (p = {mirror.holm:.3f})"
    own, digits = ([x.mean(arm, "copied") for arm in (SIGMOID, REPLAY, MIRROR)] for x in (r, TWO))
    yield "{:.0f} % of the old task's samples are copies under it, {:.0f} % under the constant, {:.0f} %".format(*own)
    yield f"whose FID for the old task is {r.mean(MIRROR, 'fid_old'):.0f}"
    yield "(on the digits {:.1f}, {:.0f} and {:.0f} %)".format(*digits)
    less, there, control = (*(x.contrast(SIGMOID, REPLAY, "copied") for x in (r, TWO)), r.contrast(SIGMOID, ON_NEW))
    assert there.p < 0.001
    yield f"sigmoid against constant, raw p = {less.p:.2f}, on the digits p < 0.001."
    yield f"has the lower FID (sigmoid x {interval(control)}, raw p = {control.p:.2f})"
    means = r.arms.groupby("label")[["copied", "bpd_old", "recall"]].mean()
    bits, recall = means.corr("spearman").copied[["bpd_old", "recall"]]
    yield f"and the mirror, with {own[2]:.0f} % copies, has {means.bpd_old[MIRROR]:.2f} bits."
    yield f"rise together (rank correlation {bits:.2f}), recall hardly falls with them ({recall:.2f})"
    fid, both = (r.contrast(*r.best(by)) for by in ("fid", "both"))
    yield f"(by FID x {interval(fid)}; by both x {interval(both)}, p = {both.holm:.2f})"
    yield f"Three of the four lowest FIDs, {span(r.arms.fid.groupby('label').mean().nsmallest(4)[1:])} against *test*"
    yield f"{own[1]:.0f} % of weight 1's samples for the old task are"
    recall, bpd = ([r.mean(arm, x) for arm in (REPLAY, DISTILLED)] for x in ("recall", "bpd_old"))
    yield "{:.2f} against distilled replay's {:.2f})".format(*recall)
    yield "BPD of the old task higher ({:.2f} against {:.2f})".format(*bpd)
    third, (fid, bpd) = r.contrast(DISTILLED, THIRD), (r.contrast(DISTILLED, TENTH, x) for x in ("fid", "bpd"))
    yield f"Weight 0.3 has FID {r.mean(THIRD):.0f} and copies {r.mean(THIRD, 'copied'):.0f} %; distilled replay copies"
    yield f"and has {r.mean(DISTILLED):.0f} (with hindsight x {interval(third)}, raw p = {third.p:.2f}, at the same BPD"
    yield f"weight 0.1 nothing and {r.mean(TENTH):.0f}."
    yield f"FID is x {interval(fid)} at {bpd.difference:.2f} bits more"
    yield from (f"at {bpd.difference:.2f} bits more, both p = {p:.2f}." for p in (fid.holm, bpd.holm))
    yield f"and still {100 * r.overfit(REPLAY)[550]:.0f} % at t = 550"


def of_few_images() -> Iterator[str]:
    r = Results(RESULTS / "replay-few", "digits", notebook="few")
    two, four, twenty = (f"{DISTILLED}, {images} images" for images in (2, 4, 20))
    constants = [f"{label}, 4 images" for label in (REPLAY, TENTH)]
    yield f"task has {interval(r.contrast(four, twenty, 'fid_old'))} times the FID that it has with 20"
    yield f"(two: x {interval(r.contrast(two, twenty, 'fid_old'))}, not decided)"
    yield f"BPD moves from {r.mean(twenty, 'bpd_old'):.2f} (20) to {r.mean(two, 'bpd_old'):.2f} (two)"
    bits, copies, fid = ([r.mean(arm, x) for arm in constants] for x in ("bpd_old", "copied", "fid_old"))
    yield "{:.1f} bits (weight 1) and {:.1f} (0.1), and {:.0f} and {:.0f} % copies".format(*bits, *copies)
    runs = r.names["scores"][2].groupby("run")
    first = 100 * np.mean([result_matrix(of, "copied", "buffer")[0, 0] for _, of in runs])
    yield f"(distilled replay {r.mean(four, 'copied'):.1f} %, with two images {r.mean(two, 'copied'):.1f} %, over"
    yield f"before any replay it is {first:.1f} %)"
    yield f"its FID, {listed(fid)}, three seeds do not tell from distilled replay's {r.mean(four, 'fid_old'):.1f}."
    against = r.planned[r.planned.question.str.startswith("distilled against")]
    ahead = against.high < np.where(against.ratio, 1, 0)
    yield f"Of {len(against)} uncorrected intervals {ahead.sum()} favour distilled replay"
    yield f"(BPD with four images against weight 1, p = {r.contrast(four, constants[0], 'bpd_old').holm:.2f})"


SECTIONS = (
    after_20_000_steps,
    of_fashion_after_20_000_steps,
    of_methods,
    of_methods_on_mnist,
    of_methods_on_fashion,
    in_orders,
    from_a_pretrained_network,
    of_memory_and_length,
    in_a_sequence_of_ten,
    of_two_tasks,
    on_mnist,
    of_few_images,
)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_quoted_numbers_are_those_of_the_results(section):
    page = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    wrong = [said for said in section() if not re.search(rf"(?<![\d.,]){re.escape(said)}(?!\d)", page)]
    assert not wrong, f"results say: {wrong}"


def histogram_bits(train: np.ndarray, test: np.ndarray) -> float:
    """Of pixels (N, ...), per pixel, under the histogram of each: one count in all is left for all values of all."""
    train, test = (images.reshape(len(images), -1) for images in (train, test))
    counts = np.stack([np.bincount(pixel, minlength=256) for pixel in train.T])
    everywhere = (counts.sum(0) + 1) / (counts.sum() + 256)
    chances = (counts + everywhere) / (len(train) + 1)
    return -np.log2(chances[np.arange(len(counts)), test]).mean()


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_quoted_bits_of_a_histogram(dataset):
    need(dataset)
    tasks = load_tasks(dataset, DATA)
    bits = np.mean([histogram_bits(task.train.images.numpy(), task.test.images.numpy()) for task in tasks])
    pages = {"mnist": {"docs/results.md": "MNIST's test images in {}", "README.md": "of each pixel needs {},"}}
    for path, said in pages.get(dataset, {"docs/results.md": "Fashion-MNIST's in {}"}).items():
        assert said.format(f"{bits:.2f}") in (ROOT / path).read_text(encoding="utf-8")
