"""The verdicts, on made-up results: each condition of each finding decides."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cldiff import load_bootstrap, load_curves, load_scores
from cldiff.evidence import FINETUNING, GENERATIVE, L2, LIGHT, REPLAY, STUDIED, Evidence, answer, less
from cldiff.findings import FINDINGS, Finding, findings_table
from cldiff.rows import STUDY
from cldiff.stats import Difference
from cldiff.study import labels_of

SEVERAL = Path(__file__).parents[1] / "results" / "benchmark-digits"  # with three seeds
SEEDS = 3
ASKED = list(FINDINGS)


class MadeUp(Evidence):
    """Of numbers instead of results, the same for each seed; scores are compared without noise, and `open` within it."""

    def __init__(self, **changes):
        self.seeds, self.steps, self.early, self.late, self.open = SEEDS, 100, 50, 700, set()
        self.missing = []
        # What the study found: (average, forgetting) by label and metric; (before, after) of curves.
        self.table = {(label, metric): (20.0, 10.0) for label in STUDIED for metric in ("fid", "bpd")}
        self.table |= {
            (L2, "fid"): (90.0, 1.0),
            (L2, "bpd"): (30.0, 1.0),
            (LIGHT, "fid"): (10.0, 5.0),
            (LIGHT, "bpd"): (10.0, 5.0),
            (GENERATIVE, "fid"): (30.0, 9.0),
        }
        self.old = {
            (FINETUNING, "fid"): (900.0, 30.0),
            (FINETUNING, "bpd"): (2.1, 2.0),
            (FINETUNING, "taken_for_current"): (0.9, 0.1),
            (FINETUNING, "accuracy"): (0.0, 1.0),
            (REPLAY, "accuracy"): (0.9, 1.0),
        }
        self.curves = {
            (FINETUNING, None, "validation"): (2.0, 2.1),
            (REPLAY, None, "validation"): (2.0, 2.5),
            (FINETUNING, 50, "validation"): (1.0, 1.1),
            (FINETUNING, 700, "validation"): (1.0, 2.0),
            (REPLAY, 50, "validation"): (1.0, 1.5),
            (REPLAY, 50, "buffer"): (1.0, 0.5),
            (REPLAY, 700, "validation"): (1.0, 0.9),
            (REPLAY, 700, "buffer"): (1.0, 0.8),
        }
        for name, value in changes.items():
            getattr(self, name).update(value)

    def old_and_new(self, label, metric, split=None):
        return tuple(np.full(SEEDS, v) for v in self.old[label, metric])

    def task1(self, label, timestep=None, split="validation"):
        return tuple(np.full(SEEDS, v) for v in self.curves[label, timestep, split])

    def value(self, label, metric, kind="average"):
        return np.full(SEEDS, self.table[label, metric][kind == "forgetting"])

    def smaller(self, one, other, metric, kind):
        if (metric, kind) in self.open:
            return None
        return bool(self.value(one, metric, kind)[0] < self.value(other, metric, kind)[0])

    def best(self, metric, kind="average"):
        return min(STUDIED, key=lambda label: self.value(label, metric, kind)[0])


@pytest.mark.parametrize("number", range(7))
def test_where_the_study_is_right_every_finding_holds(number):
    assert ASKED[number](MadeUp()).verdict == "holds"


BREAKS = [  # number of the finding, what breaks one of its conditions, which one
    (1, {"old": {(FINETUNING, "fid"): (100.0, 30.0)}}, 0),
    (1, {"old": {(FINETUNING, "bpd"): (3.0, 2.0)}}, 1),
    (1, {"old": {(FINETUNING, "taken_for_current"): (0.4, 0.1)}}, 2),
    (2, {"table": {(L2, "fid"): (90.0, 6.0)}}, 0),
    (2, {"table": {(L2, "bpd"): (30.0, 6.0)}}, 1),
    (2, {"table": {(L2, "fid"): (15.0, 1.0)}}, 2),
    (3, {"table": {(LIGHT, "fid"): (21.0, 5.0)}}, 0),
    (3, {"table": {(LIGHT, "bpd"): (21.0, 5.0)}}, 1),
    (4, {"old": {(REPLAY, "accuracy"): (0.4, 1.0)}}, 0),
    (4, {"curves": {(REPLAY, None, "validation"): (2.0, 2.0)}}, 1),
    (5, {"table": {(REPLAY, "fid"): (40.0, 9.0)}}, 0),
    (5, {"table": {(REPLAY, "fid"): (5.0, 9.0), (GENERATIVE, "fid"): (7.0, 9.0)}}, 1),
    (6, {"curves": {(FINETUNING, 50, "validation"): (1.0, 1.3)}}, 0),
    (6, {"curves": {(FINETUNING, 700, "validation"): (1.0, 1.22)}}, 2),
    (6, {"curves": {(FINETUNING, 50, "validation"): (1.0, 1.2), (FINETUNING, 700, "validation"): (1.0, 1.3)}}, 1),
    (7, {"curves": {(REPLAY, 50, "buffer"): (1.0, 1.2)}}, 0),
    (7, {"curves": {(REPLAY, 50, "validation"): (1.0, 0.9)}}, 1),
    (7, {"curves": {(REPLAY, 700, "buffer"): (1.0, -0.5)}}, 2),
    (7, {"curves": {(REPLAY, 700, "validation"): (1.0, 1.1)}}, 3),
    (7, {"curves": {(FINETUNING, 700, "validation"): (1.0, 0.85)}}, 4),
]


DECISIVE = {(1, 0), (4, 1), (6, 1), (7, 1)}  # alone


@pytest.mark.parametrize("number, changes, condition", BREAKS, ids=str)
def test_each_condition_decides(number, changes, condition):
    found = ASKED[number - 1](MadeUp(**changes))
    n = len(found.conditions)
    assert [k for k, met in enumerate(found.conditions.values()) if met is False] == [condition]
    word = "does not hold" if (number, condition) in DECISIVE else "in part"
    assert found.verdict == f"{word} ({n - 1} of {n})"


def test_l2_that_forgets_more_on_both_metrics_is_refuted_whatever_its_average():
    worse = {(L2, metric): (90.0, 6.0) for metric in ("fid", "bpd")}
    assert ASKED[1](MadeUp(table=worse)).verdict == "does not hold (1 of 3)"


def test_there_is_a_break_for_each_condition():
    assert {(n, k) for n, _, k in BREAKS} == {
        (n, k) for n, finding in enumerate(ASKED, 1) for k in range(len(finding(MadeUp()).conditions))
    }


@pytest.mark.parametrize(
    "number, open, verdict",
    [
        (2, {("fid", "forgetting")}, "in part (2 of 3)"),
        (3, {("bpd", "average")}, "in part (1 of 2)"),
        (5, {("fid", "average")}, "within noise"),
    ],
)
def test_what_lies_within_noise_is_open(number, open, verdict):
    found = ASKED[number - 1](MadeUp(open=open))
    assert None in found.conditions.values() and False not in found.conditions.values()
    assert found.verdict == verdict


@pytest.mark.parametrize(
    "conditions, verdict",
    [
        ([True, True], "holds"),
        ([True, False], "in part (1 of 2)"),
        ([True, None], "in part (1 of 2)"),
        ([None, False], "within noise"),
        ([False, False], "does not hold"),
    ],
)
def test_verdict(conditions, verdict):
    assert Finding("", dict(zip("ab", conditions))).verdict == verdict


@pytest.mark.parametrize(
    "conditions, verdict",
    [
        ([True, False], "in part (1 of 2)"),
        ([True, None], "in part (1 of 2)"),
        ([None, True], "within noise (1 of 2)"),
        ([None, False], "within noise"),
        ([False, True], "does not hold (1 of 2)"),
        ([False, None], "does not hold"),
    ],
)
def test_verdict_where_the_first_condition_is_decisive(conditions, verdict):
    found = Finding("", dict(zip("ab", conditions)), ("a",))
    assert found.verdict == verdict and "a (decisive)" in found.answers and "b (decisive)" not in found.answers


def test_conditions_stand_with_their_answers():
    assert Finding("", {"a": True, "b": False, "c": True, "d": None}).answers == (
        "**yes**: a; c. **no**: b. **within noise**: d"
    )


def test_a_difference_answers_where_zero_lies_outside():
    assert (
        answer(Difference(-1, -2, -0.1)) is True
        and answer(Difference(1, 0.1, 2)) is False
        and answer(Difference(0, -1, 1)) is None
    )
    assert (
        less(np.array([1.0, 2.0]), 3.0) is True
        and less(np.array([1.0, 5.0]), 3.0) is None
        and less(4.0, np.array([1.0, 2.0])) is False
    )


def test_the_table_says_how_little_few_seeds_say():
    for seeds, words in (
        (1, "compared without any"),
        (2, "one time in two"),
        (3, "one time in four"),
        (4, "4 seeds agrees."),
    ):
        evidence = MadeUp()
        evidence.seeds = seeds
        table, note = findings_table(evidence)
        assert len(table) == 7 and words in note and "100 steps per task" in note


WRONG = {  # by number of the finding: no condition of it is met
    1: {
        "old": {
            (FINETUNING, "fid"): (30.0, 30.0),
            (FINETUNING, "bpd"): (3.0, 2.0),
            (FINETUNING, "taken_for_current"): (0.1, 0.1),
        }
    },
    2: {"table": {(L2, "fid"): (10.0, 20.0), (L2, "bpd"): (30.0, 20.0)}},
    3: {"table": {(LIGHT, "fid"): (40.0, 5.0), (LIGHT, "bpd"): (40.0, 5.0)}},
    4: {"old": {(REPLAY, "accuracy"): (0.1, 1.0)}, "curves": {(REPLAY, None, "validation"): (2.0, 2.0)}},
    5: {"table": {(GENERATIVE, "fid"): (5.0, 9.0)}},
    6: {"curves": {(FINETUNING, 50, "validation"): (1.0, 1.5), (FINETUNING, 700, "validation"): (1.0, 1.1)}},
    7: {
        "curves": {
            (REPLAY, 50, "validation"): (1.0, 0.9),
            (REPLAY, 50, "buffer"): (1.0, 1.2),
            (REPLAY, 700, "validation"): (1.0, 3.0),
            (REPLAY, 700, "buffer"): (1.0, 1.0),
        }
    },
}


@pytest.mark.parametrize("number", WRONG)
def test_where_no_condition_is_met_a_finding_does_not_hold(number):
    found = ASKED[number - 1](MadeUp(**WRONG[number]))
    assert set(found.conditions.values()) == {False} and found.verdict == "does not hold"


class Scattered(MadeUp):
    """Every number differs from seed to seed by so much that nothing is beyond noise."""

    def __init__(self):
        super().__init__()
        self.open = {(metric, kind) for metric in ("fid", "bpd") for kind in ("average", "forgetting")}
        self.calls = 0

    def scattered(self) -> np.ndarray:
        self.calls += 1  # each another order, so that a difference has no sign of its own
        return np.roll([-1e4, 1.0, 1e4], self.calls)

    def old_and_new(self, label, metric, split=None):
        return self.scattered(), self.scattered()

    def task1(self, label, timestep=None, split="validation"):
        return np.ones(SEEDS), 1 + self.scattered()

    def value(self, label, metric, kind="average"):
        return np.array([-1e4, 0.0, 1e4]) if label == L2 else np.full(SEEDS, 1.0)


@pytest.mark.parametrize("number", range(7))
def test_where_seeds_disagree_a_finding_lies_within_noise(number):
    found = ASKED[number](Scattered())
    answers = set(found.conditions.values())
    assert True not in answers and None in answers and found.verdict == "within noise"


def test_what_is_asked_is_read_from_the_tables_where_it_stands():
    """Of three tasks; curves of another split, another timestep and steps within a task would be wrong ones."""
    after = {(1, 1): 10, (2, 1): 30, (2, 2): 12, (3, 1): 70, (3, 2): 50, (3, 3): 20}
    rows, replicates, curves = [], [], []
    for label, more in ((FINETUNING, 0), (L2, -5)):
        for seed in (0, 1):
            own = {"run": f"{label}{seed}", "label": label, "seed": seed, "weight": None}
            for (task, of), value in after.items():
                row = own | {"metric": "fid", "after_task": task, "eval_task": of}
                rows.append(row | {"split": "train", "extractor": "lenet", "value": value + more + seed})
                replicates.append(row | {"replicate0": value + more + seed})
            for step, value in ((50, 9.0), (100, 2.0), (150, 3.0), (200, 8.0), (300, 5.0)):
                curves += [
                    own | {"step": step, "split": split, "timestep": t, "loss": loss, "bpd": bpd}
                    for split, t, loss, bpd in (
                        ("validation", 50, value + seed, None),
                        ("validation", None, None, value),
                        ("buffer", 50, 77.0, None),
                        ("validation", 700, 99.0, None),
                    )
                ]
    e = Evidence(*map(pd.DataFrame, (rows, curves, replicates)), {"steps": 100, "early": 50, "late": 700})
    end, learned = e.old_and_new(FINETUNING, "fid", "train")
    assert end.tolist() == [60, 61] and learned.tolist() == [11, 12]
    assert [values.tolist() for values in e.task1(FINETUNING, 50)] == [[2, 3], [5, 6]]
    assert e.rise(FINETUNING, 50).tolist() == [1.5, 1.0] and e.rise(FINETUNING).tolist() == [3, 3]
    assert e.value(L2, "fid", "forgetting").tolist() == [49, 49] and e.best("fid") == L2


def test_values_of_a_table_are_in_the_order_of_seeds_as_curves_are():
    """And not in that of folders, in which seed 10 comes before seed 2."""
    tables = [load(SEVERAL, "digits", STUDY) for load in (load_scores, load_curves, load_bootstrap)]
    e = Evidence(*tables, {"steps": 200, "early": 50, "late": 300})
    before = e.value(L2, "fid")
    e.summary = e.summary.iloc[::-1]
    assert len(set(before)) == 3 and e.value(L2, "fid").tolist() == before.tolist()


def test_a_seed_that_not_all_rows_have_yet_does_not_count():
    """As when SEEDS=3 was interrupted: its first rows have a seed more."""
    scores, curves, bootstrap = (load(SEVERAL, "digits", STUDY) for load in (load_scores, load_curves, load_bootstrap))

    def answer(there) -> bool | None:
        tables = (table[there(table)] for table in (scores, curves, bootstrap))
        return Evidence(*tables, {"steps": 200, "early": 50, "late": 300}).smaller(L2, LIGHT, "fid", "average")

    assert answer(lambda table: table.seed < 2) is True
    assert answer(lambda table: (table.seed < 2) | table.label.isin([L2, LIGHT])) is True


def test_without_finetuning_nothing_is_asked_and_one_line_says_so():
    scores = pd.DataFrame({"label": [L2, LIGHT], "seed": 0})
    with pytest.raises(ValueError) as error:
        Evidence(scores, scores, scores, {"steps": 100, "early": 50, "late": 700})
    assert str(error.value).startswith(f"no results of {FINETUNING}; {REPLAY}; {GENERATIVE}: the findings compare ")
    assert "\n" not in str(error.value)


def test_rows_that_share_no_seed_are_one_line():
    scores = pd.DataFrame({"label": [FINETUNING, REPLAY], "seed": [0, 1]})
    with pytest.raises(ValueError, match="^no seed that all rows have: "):
        Evidence(scores, scores, scores, {"steps": 100, "early": 50, "late": 700})


@pytest.mark.parametrize(
    "there, numbers",
    [
        ([FINETUNING], [1, 6]),
        ([FINETUNING, REPLAY], [1, 4, 6, 7]),
        ([FINETUNING, REPLAY, LIGHT, GENERATIVE], [1, 4, 5, 6, 7]),
        (STUDIED, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_a_finding_is_asked_where_the_rows_that_it_compares_are_there_and_answered_as_ever(there, numbers):
    run = {"steps": 200, "early": 50, "late": 300}
    tables = [load(SEVERAL, "digits", STUDY) for load in (load_scores, load_curves, load_bootstrap)]
    whole, _ = findings_table(Evidence(*tables, run))
    part, note = findings_table(Evidence(*(table[table.label.isin(there)] for table in tables), run))
    left = ~whole[""].isin(numbers)
    whole.loc[left, ["measured", "conditions", "verdict"]] = ["", "", "not run yet"]
    pd.testing.assert_frame_equal(part, whole)
    missing = [label for label in STUDIED if label not in there]
    assert f"Not run yet: {'; '.join(missing)}. A finding is split" in note if missing else "Not run yet" not in note


def test_the_findings_ask_about_the_rows_of_the_study():
    """One that is added behind them, as docs/extending.md proposes, is none of theirs."""
    assert STUDIED == labels_of(STUDY[:5])


@pytest.mark.parametrize("others, found", [((None, False), False), ((None, True), None), ((True, True), True)])
def test_one_that_is_smaller_is_enough_and_without_one_that_may_be_the_smallest_is_open(others, found):
    class Mixed(MadeUp):
        def smaller(self, one, other, metric, kind):
            return {REPLAY: others[0], LIGHT: others[1]}.get(other, True)

    assert Mixed().smallest(L2, "fid", "forgetting") is found


def test_values_and_curves_are_those_of_the_seeds_that_all_rows_have():
    tables = [load(SEVERAL, "digits", STUDY) for load in (load_scores, load_curves, load_bootstrap)]
    tables = [table[(table.seed < 2) | table.label.isin([L2, LIGHT])] for table in tables]
    e = Evidence(*tables, {"steps": 200, "early": 50, "late": 300})
    assert e.seeds == len(e.value(L2, "fid")) == len(e.rise(L2)) == len(e.old_and_new(L2, "fid", "train")[0]) == 2


@pytest.mark.parametrize(
    "number, words",
    [
        (1, "FID 30 ± 0 → 900 ± 0 (× 30 ± 0), BPD 2.00 ± 0.00 → 2.10 ± 0.00 (+0.10 ± 0.00); 90 ± 0% of"),
        (2, f"+1.0 ± 0.0 FID (least: {L2}), +1.000 ± 0.000 BPD (least: {L2}); average FID 90 ± 0, best 10 ± 0"),
        (3, f"average FID 10 ± 0 (best: {LIGHT}, 10 ± 0); BPD 10.000 ± 0.000 (best: {LIGHT}, 10.000 ± 0.000)"),
        (4, "right classes: 90 ± 0% against 0 ± 0%; validation BPD of task 1 +0.50 ± 0.00 against +0.10 ± 0.00"),
        (5, "average FID 30 ± 0 against 20 ± 0 (weight 1) and 10 ± 0 (weight 0.01); BPD"),
        (6, "t = 50: +10 ± 0%; t = 700: +100 ± 0%"),
        (7, "t = 50: buffer -50 ± 0%, validation +50 ± 0%; t = 700: buffer -20 ± 0%, validation -10 ± 0%"),
        (7, "validation loss there 0.9000 ± 0.0000 against finetuning's 2.0000 ± 0.0000"),
    ],
)
def test_what_was_measured_is_said_of_whom_it_is(number, words):
    assert words in ASKED[number - 1](MadeUp()).measured


def test_samples_that_are_right_less_often_than_finetunings_are_not_plausible():
    found = ASKED[3](MadeUp(old={(FINETUNING, "accuracy"): (0.95, 1.0)}))
    assert found.conditions["over half of the samples right and more than finetuning's"] is False
