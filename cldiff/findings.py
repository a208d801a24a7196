"""The seven findings of the study: what each claims, what was measured, and whether it holds.

A finding is a claim and conditions of the form "this is smaller than that": met (True) or not (False) if the paired
difference is beyond noise, 95 % of a bootstrap over seeds, and over images where a table's score is compared; otherwise
open (None). Thresholds, and which conditions are decisive, are ours.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from .evidence import FINETUNING, GENERATIVE, L2, LIGHT, REPLAY, STUDIED, Evidence, less, show
from .stats import CHANCE

NOT_RUN = "not run yet"  # the verdict where rows lack
RULE = (
    "A finding is split into conditions, which are ours. *Holds*: all are met. *In part*: not all, but a decisive one "
    "(any, where none is marked; in brackets: how many are met). *Within noise*: else, where a decisive one is "
    "undecided. *Does not hold*: otherwise."
)


class Finding(NamedTuple):
    measured: str
    conditions: dict[str, bool | None]
    decisive: tuple[str, ...] = ()  # of the conditions; none named: all

    @property
    def verdict(self) -> str:
        """By `RULE`."""
        answers = list(self.conditions.values())
        if all(answers):
            return "holds"
        met, decisive = answers.count(True), [self.conditions[text] for text in self.decisive or self.conditions]
        word = "in part" if any(decisive) else "within noise" if None in decisive else "does not hold"
        return f"{word} ({met} of {len(answers)})" if met else word

    @property
    def answers(self) -> str:
        """The conditions by their answers."""
        words, of = {True: "yes", False: "no", None: "within noise"}, {}
        for text, met in self.conditions.items():
            of.setdefault(words[met], []).append(f"{text} (decisive)" if text in self.decisive else text)
        return ". ".join(f"**{word}**: {'; '.join(of[word])}" for word in words.values() if word in of)


def finetuning_forgets(e: Evidence) -> Finding:
    """Finetuning: FID of old tasks rises many times over while BPD moves little; their samples look like the last
    task"""
    fid_old, fid_new = e.old_and_new(FINETUNING, "fid", "train")
    bpd_old, bpd_new = e.old_and_new(FINETUNING, "bpd", "test")
    taken, _ = e.old_and_new(FINETUNING, "taken_for_current")
    return Finding(
        f"old tasks: FID {show(fid_new)} → {show(fid_old)} (× {show(fid_old / fid_new)}), BPD {show(bpd_new, '.2f')} → "
        f"{show(bpd_old, '.2f')} ({show(bpd_old - bpd_new, '+.2f')}); {show(taken, '.0%')} of their samples are "
        "taken for the last task",
        {
            "FID of old tasks over 5 times what it was": less(5 * fid_new, fid_old),
            "BPD less than 25 % higher": less(bpd_old, 1.25 * bpd_new),
            "over half of the samples taken for the last task": less(0.5, taken),
        },
        ("FID of old tasks over 5 times what it was",),
    )


def l2_forgets_least(e: Evidence) -> Finding:
    """L2: the least forgetting on both metrics; poor average, above all in FID"""
    best = e.value(e.best("fid"), "fid")
    return Finding(
        f"forgetting {show(e.value(L2, 'fid', 'forgetting'), '+.1f')} FID (least: {e.best('fid', 'forgetting')}), "
        f"{show(e.value(L2, 'bpd', 'forgetting'), '+.3f')} BPD (least: {e.best('bpd', 'forgetting')}); average FID "
        f"{show(e.value(L2, 'fid'))}, best {show(best)}",
        {
            "least forgetting of FID": e.smallest(L2, "fid", "forgetting"),
            "least forgetting of BPD": e.smallest(L2, "bpd", "forgetting"),
            "average FID over twice the best": less(2 * best, e.value(L2, "fid")),
        },
        ("least forgetting of FID", "least forgetting of BPD"),
    )


def light_replay_is_best(e: Evidence) -> Finding:
    """Experience replay with weight 0.01 has the best average FID and the best average BPD"""
    return Finding(
        f"average FID {show(e.value(LIGHT, 'fid'))} (best: {e.best('fid')}, {show(e.value(e.best('fid'), 'fid'))}); BPD"
        f" {show(e.value(LIGHT, 'bpd'), '.3f')} (best: {e.best('bpd')}, {show(e.value(e.best('bpd'), 'bpd'), '.3f')})",
        {
            "best average FID": e.smallest(LIGHT, "fid", "average"),
            "best average BPD": e.smallest(LIGHT, "bpd", "average"),
        },
    )


def replay_looks_worse_in_bpd(e: Evidence) -> Finding:
    """Experience replay with weight 1: plausible samples, but its BPD deteriorates more than finetuning's"""
    right, right_finetuning = e.old_and_new(REPLAY, "accuracy")[0], e.old_and_new(FINETUNING, "accuracy")[0]
    return Finding(
        f"old tasks' samples in the right classes: {show(right, '.0%')} against {show(right_finetuning, '.0%')}; "
        f"validation BPD of task 1 {show(e.rise(REPLAY), '+.2f')} against {show(e.rise(FINETUNING), '+.2f')}",
        {
            "over half of the samples right and more than finetuning's": less(np.maximum(0.5, right_finetuning), right),
            "BPD of task 1 rises more than finetuning's": less(e.rise(FINETUNING), e.rise(REPLAY)),
        },
        ("BPD of task 1 rises more than finetuning's",),
    )


def generative_replay_is_worse(e: Evidence) -> Finding:
    """Generative replay (weight 1) does worse than experience replay"""
    fid, bpd = (
        [show(e.value(label, metric), form) for label in (GENERATIVE, REPLAY, LIGHT)]
        for metric, form in (("fid", ",.0f"), ("bpd", ".2f"))
    )
    return Finding(
        f"average FID {fid[0]} against {fid[1]} (weight 1) and {fid[2]} (weight 0.01); BPD, which is not asked for, "
        f"{bpd[0]} against {bpd[1]} and {bpd[2]}; other weights of generative replay were not run",
        {
            "average FID above replay's with weight 1": e.smaller(REPLAY, GENERATIVE, "fid", "average"),
            "average FID above replay's with weight 0.01": e.smaller(LIGHT, GENERATIVE, "fid", "average"),
        },
    )


def early_loss_stays(e: Evidence) -> Finding:
    """Finetuning: the validation loss of task 1 is hardly worse at t = {early}, much worse at t = {late}"""
    early, late = e.rise(FINETUNING, e.early), e.rise(FINETUNING, e.late)
    return Finding(
        f"t = {e.early}: {show(early, '+.0%')}; t = {e.late}: {show(late, '+.0%')}",
        {
            f"up by less than 25 % at t = {e.early}": less(early, 0.25),
            f"up at t = {e.late} by over twice the early rise": less(np.maximum(0, 2 * early), late),
            f"up by over 25 % at t = {e.late}": less(0.25, late),
        },
        (f"up at t = {e.late} by over twice the early rise",),
    )


def replay_overfits_early(e: Evidence) -> Finding:
    """Experience replay with weight 1 overfits its buffer at t = {early}, not at t = {late}, where it
    beats finetuning"""
    splits = "buffer", "validation"
    (kept, new), (late_kept, late_new) = ([e.rise(REPLAY, t, of) for of in splits] for t in (e.early, e.late))
    replay, finetuning = e.task1(REPLAY, e.late)[1], e.task1(FINETUNING, e.late)[1]
    return Finding(
        f"t = {e.early}: buffer {show(kept, '+.0%')}, validation {show(new, '+.0%')}; t = {e.late}: buffer "
        f"{show(late_kept, '+.0%')}, validation {show(late_new, '+.0%')}; "
        f"validation loss there {show(replay, '.4f')} against finetuning's {show(finetuning, '.4f')}",
        {
            f"the buffer's loss falls at t = {e.early}": less(kept, 0),
            f"the validation loss rises at t = {e.early}": less(0, new),
            f"they part less at t = {e.late}": less(late_new - late_kept, new - kept),
            f"the validation loss falls at t = {e.late}": less(late_new, 0),
            f"below finetuning's at t = {e.late}": less(replay, finetuning),
        },
        (f"the validation loss rises at t = {e.early}",),
    )


FINDINGS = {  # in the order of their numbers, with the rows that they compare; the docstring of each is its claim
    finetuning_forgets: [FINETUNING],
    l2_forgets_least: STUDIED,
    light_replay_is_best: STUDIED,
    replay_looks_worse_in_bpd: [FINETUNING, REPLAY],
    generative_replay_is_worse: [REPLAY, LIGHT, GENERATIVE],
    early_loss_stays: [FINETUNING],
    replay_overfits_early: [FINETUNING, REPLAY],
}


def findings_table(e: Evidence) -> tuple[pd.DataFrame, str]:
    """A row for each finding, of those whose rows are there with a verdict, and what the verdicts rest on."""
    rows = []
    for number, (ask, labels) in enumerate(FINDINGS.items(), start=1):
        there = not set(labels) & set(e.missing)
        found = [(f := ask(e)).measured, f.answers, f.verdict] if there else ["", "", NOT_RUN]
        claim = " ".join(ask.__doc__.split()).format(early=e.early, late=e.late)
        rows.append((number, claim, *found))
    about = "conditions on curves and on means over old tasks"
    chance = f": that {CHANCE[e.seeds]}" if e.seeds in CHANCE else ""
    noise = f"{about.capitalize()} ask that the interval over {e.seeds} seeds agrees{chance}"
    if e.seeds == 1:
        noise = f"With one seed, noise over seeds is not known: {about} are compared without any"
    without = f"Not run yet: {'; '.join(e.missing)}. " if e.missing else ""
    note = (
        f"{e.steps:,} steps per task. {without}{RULE} {noise}. In the study: 2, 3, 5 in section 3.1; 1, 4, 6 in 3.2, "
        "Figure 1; 7 in 3.3, Figure 2."
    )
    return pd.DataFrame(rows, columns=["", "finding", "measured", "conditions", "verdict"]), note
