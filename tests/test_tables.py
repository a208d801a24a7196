"""The table of what becomes of task 1, from numbers that are easy to divide; that of the methods; their colours."""

import re
from pathlib import Path

import pandas as pd
import pytest

from cldiff import load_bootstrap, load_scores
from cldiff.metrics import METRICS, AgainstReal, OfImages, metrics_of
from cldiff.report.plots import OWN, colours, present
from cldiff.report.tables import (
    contrasts_table,
    differences_table,
    mean_and_error,
    orders_by_metric,
    results_table,
    samples_note,
    save_table,
    seeds_note,
    task1_table,
)
from cldiff.rows import STUDY
from cldiff.stats import summarise
from cldiff.study import labels_of, runs

PUBLISHED = Path(__file__).parents[1] / "results" / "paper-cpu"
RUN = {"steps": 10, "early": 5, "late": 7, "buffer": 20, "curve_images": 100}


def tables(methods, seeds=(0,), tasks=3):
    """Scores and curves of runs whose value after task k is that of `methods` times k, in another split times 1,000."""
    scores, curves = [], []
    for label, value in methods.items():
        for seed in seeds:
            of = {"run": f"{label}-{seed}", "label": label, "seed": seed, "dataset": "digits", "eval_task": 1}
            other = of | {"eval_task": 2}  # whose numbers would be wrong ones
            for task in range(1, tasks + 1):
                size = (value if task > 1 else 1) * task + seed
                for metric, split in (("fid", "train"), ("accuracy", None), ("bpd", "test"), ("recall", "test")):
                    kept = {"after_task": task, "metric": metric, "extractor": "lenet" if metric != "bpd" else None}
                    scores.append(of | kept | {"split": split, "value": size})
                    scores.append(of | kept | {"split": "validation", "value": 1000.0})
                    scores.append(other | kept | {"split": split, "value": 1000.0})
                    scores.append(of | kept | {"split": split, "value": 1000.0, "extractor": "inception"})
                for half in (5, 10):  # of a task's steps: only its end is shown
                    for split, t, loss in (
                        ("buffer", 5, 4 / size),
                        ("validation", 5, 4 * size),
                        ("buffer", 7, 8),
                        ("validation", 7, 8 * size),
                    ):
                        step = {"step": 10 * (task - 1) + half, "task": task, "timestep": t, "split": split}
                        curves.append(of | step | {"loss": loss if half == 10 else 1000.0})
    return pd.DataFrame(scores), pd.DataFrame(curves)


def test_a_row_for_each_method_after_the_second_and_the_last_task_and_one_for_the_first_that_all_share():
    table, note = task1_table(*tables({"Finetuning": 2, "L2": 1}, tasks=4), RUN)
    assert list(table.columns[:3]) == ["", "after task", "FID ↓"]
    assert list(zip(table[""], table["after task"])) == [
        ("all methods", 1), ("Finetuning", 2), ("L2", 2), ("Finetuning", 4), ("L2", 4)
    ]  # fmt: skip
    end = table.iloc[3]
    assert (end["FID ↓"], end["accuracy ↑"], end["BPD ↓"], end["recall ↑"]) == ("8.0", "8.000", "8.000", "8.000")
    assert [end[f"t = {t}, {of}"] for t in (5, 7) for of in ("kept", "new")] == ["0.12", "8.00", "1.00", "8.00"]
    assert "copies of the buffer ↓" not in table and "20 images that replay keeps" in note


def test_methods_whose_first_tasks_differ_have_rows_of_their_own():
    scores, curves = tables({"Finetuning": 2, "L2": 1})
    scores.loc[(scores.label == "L2") & (scores.after_task == 1), "value"] += 1
    table, _ = task1_table(scores, curves, RUN)
    assert list(table[table["after task"] == 1][""]) == ["Finetuning", "L2"]


def test_seeds_are_divided_each_by_its_own_and_have_errors():
    table, _ = task1_table(*tables({"Finetuning": 2}, seeds=(0, 1), tasks=2), RUN)
    assert list(table["after task"]) == [1, 2]
    assert table.iloc[1]["FID ↓"] == "4.5 ± 0.5"  # of 4 and 5
    assert table.iloc[1]["t = 5, new"] == "3.25 ± 0.75"  # of 4 / 1 and 5 / 2


def test_copies_are_shown_where_every_run_has_them():
    scores, curves = tables({"Finetuning": 2, "L2": 1})
    one = scores[(scores.metric == "fid") & (scores.split == "train") & (scores.label == "L2")]
    one = one.assign(metric="copied", split="buffer", extractor=None)
    table, _ = task1_table(pd.concat([scores, one]), curves, RUN)
    assert "copies of the buffer ↓" not in table
    both = pd.concat([one, one.assign(label="Finetuning", run="Finetuning-0")])
    table, _ = task1_table(pd.concat([scores, both]), curves, RUN)
    assert "copies of the buffer ↓" in table


def test_only_averages_are_bold_and_beside_them_stands_what_was_learned():
    """The study's rows on MNIST: replay forgets least, L2 learns least."""
    table, _ = results_table(*(load(PUBLISHED, "mnist", STUDY) for load in (load_scores, load_bootstrap)))
    bold = [name for name in table if table[name].str.contains("*", regex=False).any()]
    assert bold == [name for name in table if name.startswith("avg ")]
    learned = table.set_index("")["FID when learned ↓"]
    assert learned.iloc[:-1].map(lambda cell: float(cell.split(" ")[0])).idxmax() == "L2"


def test_a_row_alone_is_not_called_the_best():
    alone = [
        of[of.label == "Finetuning"]
        for of in (load(PUBLISHED, "mnist", STUDY) for load in (load_scores, load_bootstrap))
    ]
    assert "*" not in results_table(*alone)[0].to_string()


def test_rows_of_fewer_seeds_are_named_or_those_that_have_all_where_they_are_less():
    of = [("A", 0), ("A", 1), ("B", 0), ("A", 2), ("B", 1), ("C", 0)]
    scores = pd.DataFrame(of, columns=["label", "seed"]).assign(dataset="mnist")
    assert seeds_note(scores) == "MNIST, n = 1 to 3 seeds (3: A), mean ± standard error"
    assert seeds_note(scores[scores.label != "C"]).startswith("MNIST, n = 2 to 3 seeds (fewer: B), ")
    more = pd.concat([scores, scores[scores.label == "A"].assign(label="D, weight 1")])
    assert seeds_note(more).startswith("MNIST, n = 1 to 3 seeds (fewer: B; C), ")
    assert seeds_note(scores[scores.label == "A"]) == "MNIST, n = 3 seeds, mean ± standard error"
    assert seeds_note(scores[scores.seed == 0]) == "MNIST, n = 1 seed"


def test_metrics_are_grouped_by_the_order_that_they_put_the_methods_in(monkeypatch):
    """B is better in what counts upwards and in KID, A in the rest; of two seeds the means decide."""
    better = {"precision": (0.1, 0.9), "recall": (0.1, 0.9), "kid": (5.0, 2.0)}
    kinds = {**metrics_of(AgainstReal), **metrics_of(OfImages)}
    scores = pd.DataFrame(
        {"run": f"{label}{seed}", "label": label, "metric": name, "split": split, "extractor": "lenet"}
        | {"after_task": 1, "eval_task": 1, "value": better.get(name, (1.0, 2.0))[label == "B"] + 5 * seed}
        for name, m in kinds.items()
        for split in {m.split, "test"}
        for label in "BA"
        for seed in (0, 1)
    )
    found = orders_by_metric(scores)
    assert found[("B", "A")] == ["KID", "precision", "recall"]
    assert found[("A", "B")][:3] == ["FID (train)", "FID (test)", "BPD"] and len(found) == 2
    scores.loc[(scores.run == "A1") & (scores.split == "test") & (scores.metric == "fid"), "value"] += 9
    assert orders_by_metric(scores)[("B", "A")][0] == "FID (test)"
    monkeypatch.setitem(METRICS, "new", OfImages("new", 1, None))  # which no finished run has
    assert "new" not in sum(orders_by_metric(scores).values(), [])


def test_a_method_has_one_colour_in_every_company_and_no_two_have_the_same():
    labels = list(dict.fromkeys(run.label for run in runs("benchmark-digits")))
    found = colours(labels)
    assert len(set(found.values())) == len(found) == len(labels)
    first = {method: name for name in reversed(labels) if (method := name.partition(",")[0]) in OWN}
    assert len(first) == len(OWN)
    for name in (*labels_of(STUDY), *first.values()):
        assert colours([name])[name] == found[name] == colours(["Another", name])[name]


def test_columns_of_numbers_are_set_to_the_right_and_minus_signs_are_such(tmp_path):
    table = {
        "": ["L2, weight 1e-05", "real"],
        "of -1": ["**-0.5 ± 1.2**", ""],
        "between": ["+1,003 [-2.0, -.5] noise", "× 2"],
        "p": ["0.5", "4e-07"],
        "range": ["1", "1-2"],
        "words": ["-1", "2023-09 to -4"],
        "empty": ["", ""],
    }
    save_table(pd.DataFrame(table), tmp_path, "t", "a-1")
    head, rule, first, second = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()[:4]
    assert rule == "| --- | ---: | ---: | ---: | --- | --- | --- |"
    assert head == "|  | of −1 | between | p | range | words | empty |"
    assert first == "| L2, weight 1e-05 | **−0.5 ± 1.2** | +1,003 [−2.0, −.5] noise | 0.5 | 1 | −1 |  |"
    assert second == "| real |  | × 2 | 4e-07 | 1-2 | 2023-09 to −4 |  |"
    tex = (tmp_path / "t.tex").read_text(encoding="utf-8").splitlines()
    assert tex[0] == r"\begin{tabular}{lrrrlll}"
    assert (
        tex[4] == r"L2, weight 1e-05 & \textbf{$-$0.5 $\pm$ 1.2} & +1,003 [$-$2.0, $-$.5] noise & 0.5 & 1 & $-$1 &  \\"
    )


def test_large_numbers_can_be_read():
    assert mean_and_error(pd.Series([1000.0, 1002.5]), 1) == "1,001.2 ± 1.2"
    assert mean_and_error(pd.Series([-1234.5]), 0) == "-1,234"


@pytest.mark.parametrize(
    "sampler, words",
    [
        ("ddim20", "DDIM, 20 steps"),
        ("ancestral1000", "ancestral, 1,000 steps"),
        ("ddim8-eta0.5", "DDIM, 8 steps, eta 0.5"),
    ],
)
def test_how_samples_were_drawn_is_said_in_words(sampler, words):
    scores = pd.DataFrame(
        {"metric": ["fid"] * 2, "extractor": ["inception", "lenet"], "n": [5, 1024], "sampler": sampler}
    )
    assert samples_note(scores) == f"LeNet features of 1,024 samples per task ({words})"


def test_a_contrast_is_printed_from_low_to_high_with_both_values_of_p():
    table = pd.DataFrame({"question": ["a"], "first": "one", "second": "two", "outcome": "bpd", "ratio": False})
    values = {"mean of the first": 1.0, "mean of the second": 2.0, "difference": -1.0, "low": -1.5, "high": -0.5}
    shown, _ = contrasts_table(table.assign(**values, p=0.01, holm=0.02))
    assert shown.iloc[0].tolist() == ["a", "one", "two", "BPD", "1.00", "2.00", "-1.00 [-1.50, -0.50]", "0.01", "0.02"]


def test_differences_are_first_minus_second_between_their_bounds_and_noise_where_zero_lies_between():
    several = PUBLISHED.parent / "benchmark-digits"
    scores, bootstrap = (load(several, "digits", STUDY) for load in (load_scores, load_bootstrap))
    summary, (table, _) = summarise(scores), differences_table(scores, bootstrap)
    for metric, kind, column in (("fid", "average", "avg FID"), ("bpd", "forgetting", "forgetting BPD")):
        means = summary[summary.metric == metric].groupby("label")[kind].mean()
        for one, other, cell in zip(table["first"], table["second"], table[column]):
            found = re.fullmatch(r"(\S+) \[(\S+), (\S+)\]( noise)?", cell)
            mean, low, high = (float(number.replace(",", "")) for number in found.groups()[:3])
            assert mean == pytest.approx(means[one] - means[other], abs=0.06) and low <= mean <= high
            assert bool(found[4]) == (low <= 0 <= high)
    assert 0 < table.map(lambda cell: cell.endswith("noise")).to_numpy().sum() < 10


def test_the_table_says_what_real_images_have_and_what_the_bound_rests_on():
    scores, bootstrap = (load(PUBLISHED, "mnist", STUDY) for load in (load_scores, load_bootstrap))
    floors = scores[(scores.metric == "fid_floor") & (scores.run == scores.run.iloc[0])]
    real = floors[(floors.split == "train") & (floors.extractor == "lenet")]
    for some in (scores, pd.concat([scores, real.assign(extractor="inception", value=1e6)])):
        table, note = results_table(some, bootstrap)
        assert table.iloc[-1, 1] == f"{real.value.mean():.1f}"
    assert f"two disjoint parts of these, {real.n.min():,} images each. BPD" in note
    assert "20 timesteps each, variance fixedlarge, x0 clipped." in note


def test_labels_stand_in_the_order_of_the_study_and_others_behind_them():
    assert present(["Mine", "L2", "Another", "Finetuning", "L2"]) == ["Finetuning", "L2", "Mine", "Another"]
