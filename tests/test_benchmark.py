"""The benchmark's tables."""

import json
import re
import shutil

import pandas as pd
import pytest
from conftest import tiny

from cldiff import load_bootstrap, load_curves, load_scores
from cldiff.report.benchmark import beside_published, inert, leaderboard, price_table, prices
from cldiff.rows import STUDY
from cldiff.stats import summarise
from cldiff.work import make_run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of results of one run of finetuning."""
    folder = tmp_path_factory.mktemp("results")
    make_run(tiny(), folder / tiny().name)
    return folder


def tables(measured):
    return [load(measured, "digits") for load in (load_scores, load_curves, load_bootstrap)]


def changed(table, label, seed, factor=1.0, **moved):
    """The same run under another label and seed, its FID and the replicates of it times a factor."""
    new = table.assign(label=label, seed=seed, run=f"{label}-{seed}")
    values = [name for name in table.columns if name == "value" or name.startswith("replicate")]
    if "metric" in table:
        new.loc[new.metric == "fid", values] *= factor
    return new


def test_the_leaderboard_is_ordered_by_fid_and_marks_what_noise_cannot_tell_from_best_and_finetuning(measured):
    """Half of finetuning's FID is the best; twice it is worse; a copy is finetuning."""
    factors = {"Worse": 2.0, "Finetuning": 1.0, "Copy": 1.0, "Best": 0.5}
    scores, curves, bootstrap = (
        pd.concat([changed(t, label, seed, f * (1 + 0.01 * seed)) for label, f in factors.items() for seed in (0, 1)])
        for t in tables(measured)
    )
    table, note = leaderboard(scores, curves, bootstrap)
    table = table.set_index("")
    assert list(table.index)[0] == "Best" and list(table.index)[-1] == "Worse" and "n = 2 seeds" in note
    fid, bpd = table["avg FID, train ↓"], table["avg BPD ↓"]
    assert fid["Best"].startswith("**") and "°" not in fid["Best"]
    assert "**" not in fid["Copy"] and fid["Copy"].endswith(" °")
    assert "**" not in fid["Finetuning"] and "°" not in fid["Finetuning"]
    assert "**" not in fid["Worse"] and "°" not in fid["Worse"]
    assert bpd.str.startswith("**").all() and bpd.drop("Finetuning").str.endswith(" °").all()  # all the same
    test = scores[(scores.metric == "fid") & (scores.split == "test") & (scores.extractor == "lenet")]
    last = test[(test.after_task == test.after_task.max()) & (test.label == "Best")]
    newest = last[last.eval_task == last.eval_task.max()].value.mean()
    assert table.loc["Best", "avg FID, test ↓"].split()[0] == f"{last.value.mean():.1f}"
    learned = test[(test.after_task == test.eval_task) & (test.label == "Best")]
    old = [of[of.eval_task < of.eval_task.max()].value.mean() for of in (last, learned)]
    assert table.loc["Best", "forgetting FID, test ↓"].split()[0].replace("−", "-") == f"{old[0] - old[1]:.1f}"
    assert table.loc["Best", "FID, newest task, test ↓"].split()[0] == f"{newest:.1f}"
    assert "‡" not in note and re.findall(r"\w+: every number is finetuning's", note) == [
        "Copy: every number is finetuning's"
    ]
    elsewhere = scores.assign(seed=scores.seed + 9 * (scores.label == "Copy"))
    assert inert(scores) == ["Copy"] and not inert(elsewhere)  # no seed that both have
    table, note = leaderboard(scores, curves, bootstrap, apart=["Best"])  # of another machine
    fid = table.set_index("")["avg FID, train ↓"]
    assert "‡: of another machine" in note and list(fid.index)[0] == "Best ‡" and "*" not in fid["Best ‡"]
    assert "**" in fid["Copy"] and "**" in fid["Finetuning"] and "**" not in fid["Worse"]
    alone, note = leaderboard(scores, curves, bootstrap, apart=factors)  # without finetuning there is no other machine
    assert "‡" not in note and "**" in alone.set_index("")["avg FID, train ↓"]["Best"]


def test_a_row_of_one_seed_is_compared_on_it_and_the_note_says_by_what_noise(measured):
    rows = {("Finetuning", seed): 1.0 for seed in range(3)} | {("Alone", 0): 0.5}
    scores, curves, bootstrap = (
        pd.concat([changed(t, *of, factor) for of, factor in rows.items()]) for t in tables(measured)
    )
    table, note = leaderboard(scores, curves, bootstrap)
    fid = table.set_index("")["avg FID, train ↓"]
    assert "n = 1 to 3 seeds (fewer: Alone)" in note and "±" in fid["Finetuning"] and "±" not in fid["Alone"]
    assert "Beyond noise means that all agree in sign, which chance alone does one time in four." in note
    assert "that it has, of one by the noise of images alone" in note and fid["Alone"].startswith("**")
    _, note = leaderboard(*(t[t.label == "Finetuning"] for t in (scores, curves, bootstrap)))
    assert "images alone" not in note
    _, note = leaderboard(*(t[t.seed == 0] for t in (scores, curves, bootstrap)))
    assert "both over 1 seed, so that how seeds differ is not in it, uncorrected" in note


def test_real_images_are_seen_by_the_lenet_alone(measured):
    scores, curves, bootstrap = tables(measured)
    floors = scores[scores.metric == "fid_floor"].assign(extractor="inception", value=1e6)
    notes = [leaderboard(some, curves, bootstrap)[1] for some in (scores, pd.concat([scores, floors]))]
    floor = scores[(scores.metric == "fid_floor") & (scores.split == "test")].value.mean()
    assert notes[0] == notes[1] and f"real images have {floor:.1f}." in notes[0]


def test_prices_compare_with_finetuning_of_the_same_seed_on_the_same_machine(measured, tmp_path):
    source = next(measured.glob("*/result.json")).parent

    def add(method, seed, cpu, machine, gpu=None, clock=99, **held):
        run = tiny(method, seed=seed)
        folder = tmp_path / run.name
        shutil.copytree(source, folder)
        result = json.loads((folder / "result.json").read_text())
        took = {"train": clock, "measure": 0} | ({} if cpu is None else {"train_cpu": cpu})
        result |= {"seconds": took, "machine": {"cpu": machine, "gpu": gpu}, "held": held}
        result["run"] |= {"method": method, "seed": seed, "weight": run.weight}
        (folder / "result.json").write_text(json.dumps(result))
        return run.label

    finetune = [add("finetune", seed, cpu, machine) for seed, cpu, machine in ((0, 10, "a"), (1, 20, "b"))][0]
    replay = [add("replay", seed, 30, m, images=10, bytes=7000) for seed, m in ((0, "a"), (1, "b"))][0]
    l2 = [add("l2", seed, 30, "b") for seed in (0, 3)][0]  # on another machine, and a seed that finetuning lacks
    found = prices(tmp_path, "digits", [l2, replay, finetune])
    assert list(found.index) == [l2, replay, finetune] and found.time[replay] == pytest.approx((3 + 1.5) / 2)
    assert found.time[finetune] == 1 and pd.isna(found.time[l2]) and pd.isna(found.bytes[l2])
    assert found.apart.tolist() == [True, False, False]
    with pytest.raises(ValueError, match=f"has the label 'L3'; known: {replay}; {finetune}; {l2}$"):
        prices(tmp_path, "digits", [l2, "L3"])
    table, _ = price_table(found)
    assert table.astype(str).values.tolist() == [
        [l2, "", "3", "", ""],
        [replay, "x 2.25", "6", "10", "7.0"],
        [finetune, "x 1.00", "3", "", ""],
    ]
    for seed, gpu in ((4, None), (5, "H100")):  # the CPU's time, and on a GPU the clock's
        add("finetune", seed, 2, "c", gpu, clock=10)
        add("generative", seed, 3, "c", gpu, clock=40)
    generative = tiny("generative").label
    price = (3 / 2 + 40 / 10) / 2
    assert prices(tmp_path, "digits", [generative]).time.item() == pytest.approx(price)
    add("finetune", 6, None, "c")  # from before the CPU's was counted: the clock's would hold what others did
    add("generative", 6, 3, "c")
    add("l2", 4, None, "c")
    mixed = prices(tmp_path, "digits", [generative, l2])
    assert mixed.time[generative] == pytest.approx(price) and pd.isna(mixed.time[l2])
    assert not mixed.apart[generative]
    add("generative", 9, 3, "z")  # a seed that finetuning lacks is compared with nobody's
    more = prices(tmp_path, "digits", [generative]).loc[generative]
    assert more.time == mixed.time[generative] and not more.apart


def test_the_study_reads_its_own_rows_from_among_the_benchmarks(measured, tmp_path):
    source = next(measured.glob("*/result.json")).parent
    for method, weight in (("finetune", None), ("replay", 0.1), ("replay", 0.01), ("l2", 0.3)):
        run = tiny(method, weight=weight)
        shutil.copytree(source, tmp_path / run.name)
        result = json.loads((tmp_path / run.name / "result.json").read_text())
        result["run"] |= {"method": method, "weight": weight}
        (tmp_path / run.name / "result.json").write_text(json.dumps(result))
    every, own = (set(load_scores(tmp_path, "digits", rows).label) for rows in (None, STUDY))
    assert every - own == {"Experience replay, weight 0.1"} and len(own) == 3


def test_published_numbers_stand_beside_ours_with_multiples_of_joint_training_and_the_agreement_of_orders():
    """Of ewc's rows that with default options; what we have not measured is left out; two of three swap places."""
    published = pd.DataFrame(
        {
            "name": ["mnist/joint", "mnist/ewc", "mnist/finetune", "mnist/rank1"],
            "value": ["2.0", "50.0", "100.0", "7.0"],  # text, as pandas reads a column that has words in other rows
            "source": "a paper",
        }
    )
    fids = {"Joint training": (4, 6), "EWC, decay 0.9": (1, 1), "EWC": (60, 80), "Finetuning": (40, 60)}
    methods = dict(zip(fids, ("joint", "ewc", "ewc", "finetune")))
    rows = [(label, seed, fid) for label, both in fids.items() for seed, fid in enumerate(both)]
    found = pd.DataFrame(rows, columns=["label", "seed", "fid"]).set_index(["label", "seed"])
    scores = found.reset_index().assign(dataset="digits", method=lambda table: table.label.map(methods))
    table, note = beside_published(scores, found, published)
    assert table.to_numpy().tolist() == [
        ["Joint training", "2.0 (x 1.0)", "5.0 ± 1.0 (x 1.0)"],
        ["EWC", "50.0 (x 25.0)", "70.0 ± 10.0 (x 14.0)"],
        ["Finetuning", "100.0 (x 50.0)", "50.0 ± 10.0 (x 10.0)"],
    ]
    assert list(table) == ["", "published, mnist", "ours"]
    assert "compare, and joint training is no best here. Rank" in note  # EWC, decay 0.9, is
    best = found.mul([0.1 if label == "Joint training" else 1 for label, _ in found.index], axis=0)
    assert "compare. Rank" in beside_published(scores, best, published)[1]
    both = scores.method.isin(["joint", "finetune"])
    assert "ank correlation" not in beside_published(scores[both], found, published)[1]
    assert "0.50, p = 1.00 (published, mnist)" in note and "a paper" in note and "n = 2 seeds" in note


def test_columns_of_the_leaderboard_hold_what_they_are_called(measured):
    scores, curves, bootstrap = tables(measured)
    scores = scores.assign(weight=0.25)
    scores.loc[scores.metric == "recall", "value"] = 0.75
    row = leaderboard(scores, curves, bootstrap)[0].iloc[0]
    assert (row["weight"], row["recall ↑"]) == ("0.25", "0.75")
    summary = summarise(scores).set_index("metric")
    for metric, title in (("bpd", "BPD"), ("accuracy", "accuracy")):
        assert row[f"forgetting {title} ↓"] == f"{summary.forgetting[metric]:.3f}"


def test_the_leaderboard_is_ordered_by_the_fid_against_test_images(measured):
    scores, curves, bootstrap = (
        pd.concat([changed(t, label, 0) for label in ("Finetuning", "Other")], ignore_index=True)
        for t in tables(measured)
    )
    for split, factor in (("test", 0.5), ("validation", 2)):
        scores.loc[(scores.metric == "fid") & (scores.label == "Other") & (scores.split == split), "value"] *= factor
    assert list(leaderboard(scores, curves, bootstrap)[0][""]) == ["Other", "Finetuning"]
