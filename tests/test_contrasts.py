"""The analysis of an experiment of many arms, on made-up results."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import documented
from scipy import stats

from cldiff import load_curves
from cldiff.contrasts import Contrast, best, compared, holm, outcomes, outcomes_by
from cldiff.report.tables import contrasts_table

ORDERS, BOARD = (Path(__file__).parents[1] / "results" / name for name in ("orders", "benchmark-digits"))


def arms(**values) -> pd.DataFrame:
    """By label: an outcome for each seed."""
    return pd.concat(
        pd.DataFrame(columns, index=pd.MultiIndex.from_product([[label], range(3)], names=["label", "seed"]))
        for label, columns in values.items()
    )


def test_holm_multiplies_by_what_is_left_and_never_falls():
    """Smallest first: 4 * .01, 3 * .02, 2 * .025 < .06, 1 * .5; and never above 1."""
    assert holm(np.array([0.02, 0.5, 0.01, 0.025])) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm(np.array([0.6, 0.7])).tolist() == [1, 1]


def test_the_best_has_the_lowest_mean_or_the_lowest_sum_of_ranks():
    found = arms(
        one={"fid": [1, 2, 3], "bpd": [9, 9, 9]},
        two={"fid": [2, 3, 4], "bpd": [1, 1, 1]},
        other={"fid": [0, 0, 0], "bpd": [0, 0, 0]},  # not among those to choose from
        three={"fid": [5, 5, 5], "bpd": [2, 2, 2]},
    )
    some = ["one", "two", "three"]
    assert best(found, some, "fid") == ["one"] and best(found, some, "bpd") == ["two"]
    assert best(found, some, "fid", "bpd") == ["two"]


def test_outcomes_by_setting_are_those_of_its_runs():
    scores, found = outcomes_by("order", {"up": {"order": "label"}, "down": {"order": "reversed"}}, ORDERS, "digits")
    for key, order in (("up", "label"), ("down", "reversed")):
        alone = outcomes(scores[key], load_curves(ORDERS, "digits", order=order))
        assert found[found.order == key].set_index(["label", "seed"]).drop(columns="order").equals(alone)
    assert set(scores["up"].run).isdisjoint(scores["down"].run) and len(found) == 18


def test_the_comparison_of_the_docs_is_that_of_two_rows_on_the_seeds_of_both():
    code = documented("compared(found")
    names: dict = {}
    exec(code.replace("results/mine", str(BOARD)).replace("Late replay", "Distilled replay"), names)
    table = compared(
        names["found"], [Contrast("", names["mine"], names["other"], outcome) for outcome in ("fid", "bpd")]
    )
    assert table.seeds.tolist() == [3, 3] and table.p.notna().all()


def test_of_a_tie_all_are_named():
    """Ranks 1 + 2 and 2 + 1, in the order of the labels asked for."""
    found = arms(one={"fid": [1, 2, 3], "bpd": [9, 9, 9]}, two={"fid": [2, 3, 4], "bpd": [1, 1, 1]})
    assert best(found, ["two", "one"], "fid", "bpd") == ["two", "one"]


def test_fid_is_compared_as_a_ratio_and_bpd_as_a_difference_over_common_seeds():
    found = arms(
        one={"fid": [2.0, 8.0, 3.0], "bpd": [4.0, 4.5, 4.2]}, two={"fid": [1.0, 2.0, 2.0], "bpd": [4.1, 4.7, 4.5]}
    ).drop(("two", 2))
    old = found.assign(fid_old=found.fid)
    assert compared(old, [Contrast("", "one", "two", "fid_old")]).ratio.tolist() == [True]
    table = compared(found, [Contrast("a", "one", "two", "fid"), Contrast("b", "one", "two", "bpd")])
    assert table.seeds.tolist() == [2, 2] and table.ratio.tolist() == [True, False]
    assert table["mean of the first"].tolist() == pytest.approx([4.0, 4.25])  # geometric, arithmetic
    assert table["mean of the second"].tolist() == pytest.approx([2**0.5, 4.4])
    assert table.difference.tolist() == pytest.approx([8**0.5, -0.15])
    log = np.log([2, 4])
    half = stats.t.ppf(0.975, 1) * log.std(ddof=1) / 2**0.5
    assert table[["low", "high"]].iloc[0].tolist() == pytest.approx(np.exp([log.mean() - half, log.mean() + half]))
    p = 2 * stats.t.sf(np.array([log.mean() / (log.std(ddof=1) / 2**0.5), 0.15 / 0.05]), 1)
    assert table.p.tolist() == pytest.approx(p) and table.holm.tolist() == pytest.approx(holm(p))


def test_of_one_common_seed_there_is_the_difference_alone():
    found = arms(one={"fid": [2.0, 8.0, 3.0]}, two={"fid": [1.0, 2.0, 2.0]}).drop([("two", 1), ("one", 2)])
    table = compared(found, [Contrast("a", "one", "two", "fid")])
    assert table.seeds.item() == 1 and table.difference.item() == pytest.approx(2)
    assert table[["low", "high", "p", "holm"]].isna().all(axis=None)
    (shown, note), both = contrasts_table(table), contrasts_table(table.assign(p=0.5))
    row = shown.iloc[0]
    assert (row.difference, row.p, row["p, Holm"]) == ("x 2.00", "", "")
    assert "interval" not in note and "interval" in both[1]


def test_no_common_seed_is_one_line():
    found = arms(one={"fid": [2.0, 8.0, 3.0]}, two={"fid": [1.0, 2.0, 2.0]}).drop([("two", 1), ("one", 2), ("one", 0)])
    with pytest.raises(ValueError, match="^a: one and two have no seed in common; expected"):
        compared(found, [Contrast("a", "one", "two", "fid")])


@pytest.mark.parametrize("words", [("late", "two", "fid"), ("one", "late", "fid"), ("one", "two", "late")])
def test_an_arm_or_outcome_that_is_not_there_is_named(words):
    found = arms(one={"fid": [2.0, 8.0, 3.0]}, two={"fid": [1.0, 2.0, 2.0]})
    with pytest.raises(ValueError, match="^a: no 'late' among what was measured; expected one of (one; two|fid)$"):
        compared(found, [Contrast("a", *words)])


def test_outcomes_are_those_after_the_last_task_on_the_images_they_say():
    """Each metric is 0 for task 1 when learned, 10 of its own units at the end, where task 2 is 40."""
    rows = []
    for unit, (metric, split, base) in enumerate(
        (
            ("fid", "train", 900),
            ("fid", "validation", 100),
            ("fid", "test", 200),
            ("recall", "test", 300),
            ("bpd", "test", 400),
            ("copied", "buffer", 500),
            ("accuracy", None, 600),
        ),
        start=1,
    ):
        for after, of, value in ((1, 1, 0), (2, 1, 10), (2, 2, 40)):
            row = {"metric": metric, "split": split, "after_task": after, "eval_task": of}
            rows.append(row | {"value": base + unit * value})
    scores = pd.DataFrame(rows).assign(run="r", label="l", seed=4, extractor="lenet")
    curves = pd.DataFrame({"run": "r", "step": [5, 9, 9], "bpd": [1.0, np.nan, 7.0]})
    assert np.isnan(outcomes(scores[scores.metric != "copied"], curves).copied.item())  # of older results
    found = outcomes(scores, curves)
    assert found.index.tolist() == [("l", 4)]
    assert found.iloc[0].to_dict() == {
        "fid": 275,
        "bpd": 525,
        "fid_old": 230,
        "fid_new": 320,
        "bpd_old": 450,
        "fid_learned": 260,
        "forgetting": 30,
        "forgetting_bpd": 50,
        "recall": 400,
        "accuracy": 775,
        "copied": 560,
        "fid_validation": 150,
        "bpd_validation": 7,
    }


def test_p_values_of_several_contrasts_are_corrected_by_holm():
    found = arms(one={"bpd": [1.0, 1.1, 1.2], "recall": [1.0, 2.0, 6.0]}, two={"bpd": [0, 0, 0], "recall": [0, 0, 0]})
    table = compared(found, [Contrast("", "one", "two", outcome) for outcome in ("bpd", "recall")])
    small, large = table.p
    assert small < large / 2 and table.holm.tolist() == pytest.approx([2 * small, large])
