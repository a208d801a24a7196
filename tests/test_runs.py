import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from cldiff import DATASETS, METHODS, Run, __main__, load_curves, load_scores, results, study
from cldiff.errors import Problem
from cldiff.files import write_atomically
from cldiff.plan import draw, jobs, write_plan
from cldiff.profiles import FIGURES
from cldiff.report.plots import ORDER
from cldiff.results import COLUMNS, CURVES, FILES, ResultError, load_bootstrap, read_result, save_result
from cldiff.rows import STUDY, Row
from cldiff.stats import best_weights, sweep_table
from cldiff.study import PROFILES, planned, row_run, runs
from cldiff.unet import UNet

ROOT = Path(__file__).parents[1]
SMOKE = runs("smoke")


def waits(profile: str) -> bool:
    """For a sweep."""
    try:
        runs(profile)
    except ValueError as error:
        return "was chosen yet" in str(error)
    return False


WAITING = {name for name, p in PROFILES.items() if p.sweep and waits(name)}


@pytest.mark.parametrize(
    "values, words",
    [
        ({"dataset": "cifar"}, f"unknown dataset 'cifar'; known: {', '.join(DATASETS)}"),
        ({"method": "ewk"}, "unknown method 'ewk'; known: finetune, l2, replay, generative"),
        ({"precision": "float16"}, "unknown precision 'float16'; known: float32, bfloat16"),
        ({"steps": 0}, "steps=0: expected at least 1"),
        ({"steps": 1.0}, "steps=1.0: expected an int, not float"),
        ({"steps": True}, "steps=True: expected an int, not bool"),
        ({"steps": "4"}, "steps='4': expected an int, not str"),
        ({"method": "replay", "weight": -1}, "weight=-1.0: expected at least 0"),
        ({"method": "replay", "weight": float("nan")}, "weight=nan: expected a finite number"),
        ({"method": "replay", "weight": float("inf")}, "weight=inf: expected a finite number"),
        ({"method": "finetune", "weight": 1.0}, "weight=1.0: finetune has no loss of its own to weigh; leave it out"),
        ({"seed": 1.5}, "seed=1.5: expected an int, not float"),
        ({"seed": -1}, "seed=-1: expected 0 .. 2147483647"),
        ({"timesteps": 1}, "timesteps=1: expected at least 20"),
        ({"learning_rate": "1e-4"}, "learning_rate='1e-4': expected a float, not str"),
        ({"channels": 12}, "channels=12: expected a multiple of 8"),
        ({"multipliers": 2}, "multipliers=2: expected a list of integers of at least 1"),
        ({"multipliers": [1, 0]}, "multipliers=[1, 0]: expected a list of integers of at least 1"),
        ({"curve_every": 3}, "curve_every=3: expected a divisor of steps=4"),
        ({"sample_steps": 600}, "sample_steps=600: expected a divisor of timesteps=1000"),  # would begin in the middle
        ({"pool_steps": 30}, "pool_steps=30: expected a divisor of timesteps=1000"),
        ({"sample_steps": 1001}, "sample_steps=1001: expected a divisor of timesteps=1000"),
        ({"order": "label, reversed"}, "unknown order 'label, reversed'; known: label, reversed, shuffled"),
        (
            {"classes_per_task": 3},
            "classes_per_task=3: expected a divisor of 10, the classes of digits, and two tasks or",
        ),
        (
            {"classes_per_task": 10},
            "classes_per_task=10: expected a divisor of 10, the classes of digits, and two tasks",
        ),
        ({"classes_per_task": 1, "tasks": 11}, "tasks=11: expected 0 (all of digits), or 2 .. 10"),
        (
            {"start": "results/paper-cpu/weights.pt"},
            "start='results/paper-cpu/weights.pt': expected the name of a finished run",
        ),
        ({"condition": "label"}, "unknown condition 'label'; known: task, class"),
        (
            {"method": "lora", "condition": "class"},
            "condition='class': lora has weights for each task; expected 'task'",
        ),
        ({"start": "*"}, "start='*': expected the name of a finished run"),
        ({"early": 51}, "early=51: expected one of [0, 50,"),
    ],
)
def test_bad_value_is_named_in_one_line(values, words):
    with pytest.raises((ValueError, TypeError)) as error:
        dataclasses.replace(SMOKE[0], **{"weight": None, **values})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_weight_defaults_to_the_methods_own():
    assert Run(method="replay").weight == METHODS["replay"].weight
    assert Run(method="replay") == Run(method="replay", weight=1)
    assert Run(method="finetune").weight is None


def test_every_parameter_is_part_of_the_name():
    other = {
        "dataset": "mnist",
        "method": "l2",
        "precision": "bfloat16",
        "deterministic": True,
        "compiled": True,
        "multipliers": [2, 2],
        "channels": 16,
        "early": 50,
        "late": 700,
        "attention": 2,
        "inception": True,
        "curve_every": 1,
        "timesteps": 2000,
        "order": "reversed",
        "condition": "class",
        "balanced": True,
        "start": "mnist-finetune-s0-ada38114",
        "classes_per_task": 5,
        "dropout": 0.5,
    }
    base = dataclasses.replace(SMOKE[0], method="replay", weight=1.0, early=0, late=300, eta=0.5)
    for f in dataclasses.fields(Run):
        if f.name == "options":  # a method of the study has none: see test_methods.py
            continue
        value = other.get(f.name, getattr(base, f.name) or 0)
        value = value / 2 if isinstance(value, float) and value == getattr(base, f.name) else value
        value = value + 2 if type(value) is int and value == getattr(base, f.name) else value
        if f.name in ("early", "late"):
            value = 50
        if f.name == "steps":
            value = 8
        changed = dataclasses.replace(base, **{f.name: value})
        assert changed.name != base.name, f.name


def test_names_of_published_runs_stay():
    """Each folder of results keeps the name that its parameters have, whatever parameters are added later."""
    found = list((ROOT / "results").glob("*/*/result.json"))
    assert len(found) >= 25
    for path in found:
        assert Run(**json.loads(path.read_text())["run"]).name == path.parent.name
    assert {run.name for run in runs("benchmark-digits", 3)} <= {path.parent.name for path in found}


def test_a_later_parameter_counts_in_the_name_off_its_default_only():
    run = runs("benchmark-digits")[0]
    assert run.name == "digits-finetune-s0-19354408" and (run.compiled, run.patch) == (False, 1)
    assert len({run.name, dataclasses.replace(run, compiled=True).name, dataclasses.replace(run, patch=2).name}) == 3


def test_methods_share_the_first_task_and_runs_of_other_parameters_do_not():
    a, b, c, d, e = SMOKE
    assert len({run.first_task_name for run in SMOKE}) == 1
    for other in ({"seed": 1}, {"buffer": 21}, {"steps": 8}, {"dropout": 0.2}):
        assert dataclasses.replace(a, **other).first_task_name != a.first_task_name


def test_curve_timesteps_include_those_of_the_paper():
    points = Run().curve_timesteps
    assert len(points) >= 20 and {50, 700, 0, 999} <= set(points)
    assert len(Run(timesteps=25, pool_steps=5, sample_steps=5, bound_terms=5, early=5, late=20).curve_timesteps) >= 20


def test_git_keeps_the_results_of_published_profiles_alone():
    for name, p in PROFILES.items():
        words = ["git", "check-ignore", "--quiet", f"results/{name}/a-run/result.json"]
        assert subprocess.run(words, cwd=ROOT).returncode == (1 if p.published else 0), name


def test_profiles_are_valid_and_the_paper_keeps_its_protocol():
    for profile, p in PROFILES.items():
        if profile in WAITING:
            continue
        found = {run.name for run in runs(profile, seeds=2)}
        # A weight that a sweep chose may be the study's, whose row then is there already.
        chosen = {(row.method, tuple(row.options)) for row in p.rows if row.weight is None} & {
            (row.method, ()) for row in p.rows if row.weight is not None
        }
        rows = len(p.rows) * len(p.datasets)
        assert 2 * (rows - len(chosen) * len(p.datasets)) <= len(found) == len(runs(profile, seeds=2)) <= 2 * rows
    for run in runs("paper"):
        assert (
            run.steps,
            run.timesteps,
            run.batch,
            run.learning_rate,
            run.ema,
            run.clip,
            run.dropout,
            run.buffer,
            run.samples,
        ) == (20_000, 1000, 128, 2e-4, 0.9999, 1.0, 0.1, 200, 5_000)
        assert run.bound_images > 2_200  # all test images of a task
    assert [run.label for run in runs("paper")][: len(ORDER)] == ORDER


def test_a_label_names_what_is_off_its_default_and_a_flag_alone():
    run = Run(method="timesteps", weight=0.1, options={"weighting": "power", "mirrored": True, "power": 1.0})
    assert run.label == "Timestep-aware replay, weight 0.1, weighting power, mirrored"


def test_an_experiment_is_confirmed_by_its_own_runs_on_other_seeds():
    screened, confirmed = runs("replay", 3), runs("replay-confirm", 2)
    assert {run.seed for run in screened} == {0, 1, 2} and {run.seed for run in confirmed} == {3, 4}
    assert {dataclasses.replace(run, seed=0).name for run in confirmed} < {
        run.name for run in screened if run.seed == 0
    }


def test_run_notebook_has_every_parameter_of_a_run_with_its_meaning_and_the_value_of_the_digits():
    """Papermill takes its parameters from this cell, which therefore has to be written out."""
    run = Run(**PROFILES["digits"].settings)

    def line(f):
        value, known = getattr(run, f.name), f.metadata.get("among")
        written = json.dumps(value) if isinstance(value, str) else repr(list(value) if type(value) is tuple else value)
        choices = f"{' or '.join(known)}: " if type(known) is tuple else ""
        return f"{f.name} = {written}  # {choices}{f.metadata['help']}"

    book = nbformat.read(ROOT / "notebooks" / "run.ipynb", as_version=4)
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    lines = cell.source.splitlines()
    assert [text.split(" = ")[0] for text in lines[:4]] == ["results", "data", "device", "checkpoint_seconds"]
    assert lines[4:] == [line(f) for f in dataclasses.fields(Run)]


def test_command_line_says_what_is_wrong():
    """In a process of its own; what else may be wrong: test_bad_input.py."""
    done = subprocess.run([sys.executable, "-m", "cldiff", "plan", "digitz"], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == f"error: unknown profile 'digitz'; known: {', '.join(PROFILES)}\n"


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, lambda p: Path(p).write_text("old"))

    def fail(p):
        Path(p).write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_writers_with_the_same_process_id_do_not_meet(tmp_path):
    """Of two machines that share a folder; a kill leaves what save_result() removes."""
    path = tmp_path / "file.txt"

    def write(temporary):
        temporary.write_text("one")
        write_atomically(path, lambda other: other.write_text("other"))
        assert temporary.read_text() == "one" and list(tmp_path.glob(".*-*")) == [temporary]

    write_atomically(path, write)
    assert path.read_text() == "one" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def finish(results: Path, run: Run, lenet: str = "y", data: str = "x") -> Path:
    score = {
        "after_task": 1,
        "eval_task": 1,
        "metric": "fid",
        "value": 2.5,
        "split": "train",
        "extractor": "lenet",
        "n": 16,
    }
    curve = {"step": 2, "task": 1, "eval_task": 1, "split": "validation", "timestep": None, "loss": None, "bpd": 3.5}
    replicate = {"after_task": 1, "eval_task": 1, "metric": "fid", "replicate0": 2.25}
    net = UNet(8, 5, 8, (1,), 1)
    save_result(
        results / run.name,
        run,
        net,
        net.arguments,
        {"scores.csv": [score], "curves.csv": [curve], "bootstrap.csv": [replicate]},
        Image.new("L", (80, 8)),
        {"seconds": {"train": 1.0}, "sha256": {"data": data, "lenet": lenet}},
    )
    return results / run.name


def test_results_are_read_back(tmp_path):
    for run in SMOKE[:2]:
        finish(tmp_path, run)
    scores, curves, bootstrap = load_scores(tmp_path), load_curves(tmp_path), load_bootstrap(tmp_path)
    assert bootstrap.replicate0.tolist() == [2.25, 2.25] and bootstrap.label.tolist() == [
        run.label for run in SMOKE[:2]
    ]
    assert set(COLUMNS) <= set(scores.columns) and set(CURVES) <= set(curves.columns)
    assert {"run", "dataset", "method", "weight", "seed", "label"} <= set(scores.columns)
    assert set(scores.run) == {run.name for run in SMOKE[:2]} and scores.value.tolist() == [2.5, 2.5]
    assert pd.isna(curves.timestep).all() and curves.bpd.tolist() == [3.5, 3.5]
    result = json.loads((tmp_path / SMOKE[0].name / "result.json").read_text())
    assert {"run", "seconds", "sha256"} <= set(result)
    assert result["run"]["steps"] == SMOKE[0].steps


def test_finished_run_is_never_overwritten(tmp_path):
    folder = finish(tmp_path, SMOKE[0])
    before = {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(ResultError, match="holds a finished run"):
        finish(tmp_path, SMOKE[0])
    assert before == {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "scores.csv").write_bytes((folder / "scores.csv").read_bytes()[:-1]),
        lambda folder: (folder / "result.json").write_bytes((folder / "result.json").read_bytes()[:-9]),
        lambda folder: (folder / "result.json").write_text("[]"),
        lambda folder: (folder / "samples.png").unlink(),
        lambda folder: (folder / "result.json").write_text(
            (folder / "result.json").read_text().replace('"protocol": 2', '"protocol": 1')
        ),
        lambda folder: (folder / "result.json").write_text(
            (folder / "result.json").read_text().replace('"steps": 4', '"steps": 8')
        ),
    ],
)
def test_the_folder_of_a_damaged_result_is_named(tmp_path, damage):
    folder = finish(tmp_path, SMOKE[0])
    damage(folder)
    with pytest.raises(ResultError) as error:
        read_result(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_renamed_folder_is_told_its_name(tmp_path):
    folder = finish(tmp_path, SMOKE[0])
    with pytest.raises(ResultError, match=f"/copy: its parameters are those of {folder.name}: rename it"):
        read_result(folder.rename(tmp_path / "copy"))


def test_results_of_different_protocols_are_not_mixed(tmp_path):
    finish(tmp_path, SMOKE[0])
    finish(tmp_path, dataclasses.replace(SMOKE[1], samples=32))
    with pytest.raises(ResultError, match="samples=32.*samples=16|samples=16.*samples=32"):
        load_scores(tmp_path)


def test_compiled_runs_are_not_mixed_with_those_from_before_there_were_any(tmp_path):
    finish(tmp_path, SMOKE[0])
    finish(tmp_path, dataclasses.replace(SMOKE[1], compiled=True))
    path = tmp_path / SMOKE[0].name / "result.json"
    result = json.loads(path.read_text())
    del result["run"]["compiled"]
    path.write_text(json.dumps(result))
    with pytest.raises(ResultError, match="compiled=True"):
        load_scores(tmp_path)


@pytest.mark.parametrize("what", ("lenet", "data"))
def test_results_of_different_extractors_or_data_are_not_mixed(what, tmp_path):
    finish(tmp_path, SMOKE[0])
    finish(tmp_path, SMOKE[1], **{what: "z"})
    with pytest.raises(ResultError, match=f"SHA-256 of {what}.*; move one of them away$"):
        load_scores(tmp_path)


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(ResultError, match="no finished run on mnist"):
        load_scores(tmp_path, "mnist")
    with pytest.raises(ResultError, match=f"^no folder {tmp_path}/none: expected one of results"):
        load_scores(tmp_path / "none")


def test_runs_of_several_settings_are_read_one_setting_at_a_time(tmp_path):
    """As those of the rows of axes, which have settings of their own."""
    few, many = (
        row_run(Row("replay", settings={"buffer": n}), **{**PROFILES["smoke"].settings, "buffer": 7}) for n in (2, 3)
    )
    assert (few.buffer, many.buffer, few.label) == (2, 3, many.label)
    for run in (few, many):
        finish(tmp_path, run)
    assert set(load_scores(tmp_path, "digits", buffer=3, multipliers=list(many.multipliers)).run) == {
        many.name
    }  # as profiles have it
    with pytest.raises(
        ResultError, match="(buffer=2.*buffer=3|buffer=3.*buffer=2).*; ask for those of one, buffer=[23]$"
    ):
        load_scores(tmp_path)
    with pytest.raises(ResultError, match="no finished run on digits with buffer=4 in"):
        load_scores(tmp_path, "digits", buffer=4)
    with pytest.raises(ValueError, match="unknown setting images: expected parameters of Run"):
        load_scores(tmp_path, images=4)


def test_every_target_has_a_notebook_and_its_parameters_fit():
    from cldiff.report.execute import check_parameters

    for profile in PROFILES.keys() - WAITING:
        for job in jobs(profile).values():
            if job["kind"] != "first_task":
                check_parameters(ROOT / job["notebook"], job["parameters"])


def test_runs_with_and_without_inception_features_are_read_together(tmp_path):
    """Its weights may have come later; the tables show it where every run has it."""
    finish(tmp_path, SMOKE[0])
    folder = finish(tmp_path, SMOKE[1])
    result = json.loads((folder / "result.json").read_text())
    result["sha256"]["inception"] = "i"
    (folder / "result.json").write_text(json.dumps(result))
    assert len(load_scores(tmp_path)) == 2


def test_a_table_is_complete_before_the_next_seed_and_data_set_begin_and_long_runs_come_first():
    order = [(run.dataset, run.seed) for run in planned("small", 2)]
    assert order == [(d, s) for d in ("mnist", "fashion_mnist") for s in (0, 1) for _ in STUDY]
    assert [run.method for run in planned("small", 2)[:5]] == ["generative", "replay", "replay", "l2", "finetune"]
    assert sorted(run.name for run in planned("small", 2)) == sorted(run.name for run in runs("small", 2))


def test_l2_takes_the_weight_that_the_sweep_chose(monkeypatch):
    def weights(profile: str) -> list[float]:
        return [run.weight for run in runs(profile) if run.method == "l2"]

    monkeypatch.setattr(study, "chosen", lambda *words: {("digits-sweep", "digits", "l2"): 0.25}[words])
    assert weights("digits") == [0.25] and weights("smoke") == [1.0]
    assert weights("digits-sweep") == [0.001, 0.01, 0.1, 1.0, 10.0]
    assert [run.method for run in runs("digits-sweep")].count("finetune") == 1  # weight 0 of every method


def test_a_row_without_weight_and_trials_says_what_to_give_it():
    with pytest.raises(ValueError, match="^agem has neither a weight in its row nor trials in digits-sweep: give it"):
        study.chosen("digits-sweep", "digits", "agem")


@pytest.mark.parametrize(
    "row, words",
    [
        (Row("repaly", 1.0), "^unknown method 'repaly' in a row; known: finetune, .*cldiff/methods/__init__.py$"),
        (Row("replay", 1.0, {}, {"stash": 5}), "^unknown parameter 'stash' in a row's settings, .*; known: .*steps, "),
        (Row("replay", 1.0, {}, {"weight": 5.0}), "^unknown parameter 'weight' in a row's settings, .*; known: "),
        (Row("replay", 1.0, {"stash": 5}), "^unknown option 'stash' of replay; known: "),
    ],
)
def test_a_misspelt_row_says_so_and_what_is_known(row, words, monkeypatch):
    profile = dataclasses.replace(PROFILES["benchmark-digits"], rows=(row,))
    monkeypatch.setitem(PROFILES, "benchmark-digits", profile)
    with pytest.raises(ValueError, match=words):
        runs("benchmark-digits")


def test_a_weight_that_no_sweep_chose_is_an_error_where_it_is_needed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(study, "CHOSEN", tmp_path / "chosen.json")
    (tmp_path / "chosen.json").write_text("{}")
    with pytest.raises(ValueError, match="no weight of l2 on mnist was chosen yet: .*paper-cpu-sweep"):
        runs("paper-cpu")
    assert [run.method for run in runs("paper-cpu", only="mnist-replay")] == ["replay", "replay"]
    monkeypatch.setattr(sys, "argv", ["cldiff", "list", "paper-cpu"])
    __main__.main()
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("-s0-")[0] for line in listed[:1] + listed[2:5]] == [
        "mnist-finetune", "mnist-replay-w1", "mnist-replay-w0.01", "mnist-generative-w1"
    ]  # fmt: skip
    assert listed[1].startswith("mnist-l2-...: no weight of l2 on mnist was chosen yet: ") and len(listed) == 10
    monkeypatch.setattr(sys, "argv", ["cldiff", "plan", "paper-cpu"])
    with pytest.raises(SystemExit, match="^error: no weight of l2 on mnist was chosen yet: [^\n]*$"):
        __main__.main()


def sweep(fid: dict) -> pd.DataFrame:
    """Scores of one seed: the average FID against validation images by method and weight."""
    rows = [
        {
            "method": m,
            "weight": w,
            "seed": 0,
            "metric": metric,
            "split": "validation",
            "extractor": "lenet",
            "after_task": after,
            "eval_task": task,
            "value": value,
        }
        for (m, w), value in fid.items()
        for metric in ("fid", "kid")
        for after, task in ((1, 1), (2, 1), (2, 2))
    ]
    return pd.DataFrame(rows)


def test_the_rule_of_a_sweep_is_the_lowest_fid_on_validation_images_and_of_equals_the_smallest_weight(
    monkeypatch, tmp_path
):
    scores = sweep(
        {("finetune", math.nan): 1.0, ("l2", 0.1): 3.0, ("l2", 1.0): 3.0, ("replay", 1.0): 9.0, ("replay", 10.0): 2.0}
    )
    found = best_weights(scores)
    assert found == {"l2": 0.1, "replay": 10.0}
    monkeypatch.setattr(study, "CHOSEN", tmp_path / "chosen.json")
    (tmp_path / "chosen.json").write_text('{"other": {"mnist": {"l2": 5.0}}}')
    study.keep_chosen("paper-cpu-sweep", "mnist", found)
    assert study.chosen("paper-cpu-sweep", "mnist", "l2") == 0.1 and study.chosen("other", "mnist", "l2") == 5.0


def test_a_sweep_is_judged_by_means_over_seeds_and_shows_kid_beside_fid():
    seeds = (sweep({("l2", 0.1): a, ("l2", 1.0): b}).assign(seed=seed) for seed, a, b in ((0, 1.0, 4.0), (1, 9.0, 4.0)))
    scores = pd.concat(seeds)
    assert best_weights(scores) == {"l2": 1.0}
    scores.loc[scores.metric == "kid", "value"] = 0.5
    assert set(sweep_table(scores)["average KID"]) == {0.5}


def test_finetuning_is_weight_0_of_every_method_of_a_sweep():
    scores = sweep({("l2", 0.1): 3.0, ("mas", 1.0): 4.0, ("finetune", math.nan): 9.0})
    found = sweep_table(scores).set_index(["method", "weight"])["average FID"].to_dict()
    assert found == {("l2", 0.0): 9.0, ("l2", 0.1): 3.0, ("mas", 0.0): 9.0, ("mas", 1.0): 4.0}
    assert best_weights(scores) == {"l2": 0.1, "mas": 1.0}
    older = pd.concat([scores, sweep({("l2", 0.0): 8.0})])  # of a sweep that trained it for every method
    assert sweep_table(older).set_index(["method", "weight"])["average FID"].to_dict() == found


def test_the_label_of_a_row_whose_weight_a_sweep_chose_is_asked_of_its_profile():
    with pytest.raises(ValueError, match="^the label of distilled has the weight that a sweep chose: take labels of"):
        study.labels_of([Row("replay", 1.0), Row("l2"), Row("distilled")])
    assert study.labels_of([Row("replay", 1.0), Row("l2")]) == ["Experience replay, weight 1", "L2"]


def test_the_choice_of_a_published_sweep_follows_its_rule():
    """chosen.json holds what the rule makes of the table of the sweep: the lowest average FID on validation images."""
    names = {METHODS[method].label: method for method in METHODS}
    for profile, datasets in json.loads(study.CHOSEN.read_text()).items():
        for dataset, weights in datasets.items():
            lines = (ROOT / "figures" / profile / f"sweep-{dataset}.md").read_text().splitlines()[2:]
            rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
            for method, weight in weights.items():
                trials = [row for row in rows if names[row[0]] == method]
                assert trials, f"{method}: its trials are not in the table; docs/extending.md says how they get there"
                found = {float(row[1]): float(row[3].split(" ")[0].replace(",", "")) for row in trials if float(row[1])}
                assert found[weight] == min(found.values())


def test_the_plan_lists_a_first_task_once_before_its_runs_and_none_for_runs_that_are_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = jobs("smoke", planned("smoke", seeds=2))
    first = [target for target, job in found.items() if job["kind"] == "first_task"]
    assert list(found)[:2] == first and {job["after"] for job in found.values() if job["kind"] == "run"} == set(first)
    for run in runs("smoke", 2)[:5]:
        (tmp_path / "results/smoke" / run.name).mkdir(parents=True)
        (tmp_path / "results/smoke" / run.name / "result.json").touch()
    found = jobs("smoke", planned("smoke", seeds=2))
    assert [target for target, job in found.items() if job["kind"] == "first_task"] == first[1:]
    assert sum("after" in job for job in found.values()) == 5
    for run in runs("smoke", 2)[5:7]:  # which have their first task behind them
        (tmp_path / "results/smoke" / run.name).mkdir(parents=True)
        (tmp_path / "results/smoke" / run.name / "checkpoint.pt").touch()
    assert sum("after" in job for job in jobs("smoke", planned("smoke", seeds=2)).values()) == 3


def test_draw_executes_the_notebooks_of_data_sets_that_have_finetuning_and_no_run(monkeypatch, tmp_path):
    there = [path.parent for path in (ROOT / "results/paper-cpu").glob("*/result.json")]
    made, pages = {}, []
    monkeypatch.setattr("cldiff.report.execute.execute", lambda notebook, output, words: made.update({output: words}))
    monkeypatch.setattr("cldiff.report.page.write_page", lambda *paths: pages.append([str(path) for path in paths]))
    monkeypatch.chdir(tmp_path)
    none = "no finished run of finetuning in results/paper-cpu: `make paper PROFILE=paper-cpu` makes them"
    for folder in there:
        if folder.name.startswith(("mnist-replay", "fashion_mnist-replay")):
            shutil.copytree(folder, tmp_path / "results/paper-cpu" / folder.name)
    with pytest.raises(ResultError, match=f"^{none}$"):
        draw("paper-cpu")
    first = next(folder for folder in there if folder.name.startswith("mnist-finetune"))
    shutil.copytree(first, tmp_path / "results/paper-cpu" / first.name)
    draw("paper-cpu")
    assert {words["dataset"] for output, words in made.items() if not output.endswith("paper.ipynb")} == {"mnist"}
    assert made["figures/paper-cpu/paper.ipynb"]["datasets"] == ["mnist"] and len(made) == len(FIGURES) + 1
    assert pages == [["figures/paper-cpu/paper.ipynb", "figures/paper-cpu/paper.html"]]


def test_an_experiment_is_drawn_where_every_row_is_there(monkeypatch, tmp_path):
    made = {}
    monkeypatch.setattr("cldiff.report.execute.execute", lambda notebook, output, words: made.update({output: words}))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results/orders", tmp_path / "results/orders")
    draw("orders")
    assert list(made) == ["figures/orders/orders-digits.ipynb"]
    lost = runs("orders")[4].name
    shutil.rmtree(tmp_path / "results/orders" / lost)
    with pytest.raises(
        Problem, match=f"^results/orders lacks 1 of 9 runs, {lost} first, and the notebook needs every row"
    ):
        draw("orders")


def test_another_plan_leaves_its_targets_to_a_make_that_is_at_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    two, one = (jobs("smoke", planned("smoke", seeds)) for seeds in (2, 1))
    for found in (two, one):
        write_plan("smoke", found)
    kept = json.loads(Path("results/smoke/jobs.json").read_text())
    assert kept.keys() == two.keys() > one.keys()
    assert sorted(Path("results/smoke/targets.mk").read_text().split("RUNS := ")[1].split("\n")[0].split()) == sorted(
        target for target, job in one.items() if job["kind"] == "run"
    )


def test_what_is_drawn_can_be_read(monkeypatch, tmp_path):
    folder = next((ROOT / "results/paper-cpu").glob("mnist-finetune-s0-*"))
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(folder, tmp_path / "results/paper-cpu" / folder.name))
    (copy / "scores.csv").write_text("")
    with pytest.raises(ResultError, match=f"^results/paper-cpu/{folder.name}: "):
        draw("paper-cpu")


def test_accept_writes_what_the_rule_makes_of_a_sweep(monkeypatch, tmp_path, capsys):
    scores = {"mnist": {0.0: 9.0, 0.1: 3.0, 1.0: 4.0}, "fashion_mnist": {0.0: 9.0, 0.1: 3.0, 1.0: 2.0}}
    asked = []

    def load(folder: Path, dataset: str) -> pd.DataFrame:
        asked.append(folder)
        return sweep({("l2", weight): fid for weight, fid in scores[dataset].items()})

    for run in runs("paper-cpu-sweep"):
        finish(tmp_path / "results/paper-cpu-sweep", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "CHOSEN", tmp_path / "chosen.json")
    monkeypatch.setattr(results, "load_scores", load)
    monkeypatch.setattr(sys, "argv", ["cldiff", "accept", "paper-cpu-sweep"])
    (tmp_path / "chosen.json").write_text('{"paper-cpu-sweep": {"mnist": {"l2": 9, "other": 5}}}')
    __main__.main()
    assert json.loads((tmp_path / "chosen.json").read_text()) == {
        "paper-cpu-sweep": {"fashion_mnist": {"l2": 1.0}, "mnist": {"l2": 0.1, "other": 5}}
    }
    assert set(asked) == {Path("results/paper-cpu-sweep")}
    assert capsys.readouterr().out == "mnist: l2 0.1\nfashion_mnist: l2 1\n"
    assert {(run.dataset, run.weight) for run in runs("paper-cpu") if run.method == "l2"} == {
        ("mnist", 0.1),
        ("fashion_mnist", 1.0),
    }


def test_accept_takes_methods_and_data_sets_one_by_one_but_no_half_sweep_of_a_method(monkeypatch, tmp_path, capsys):
    def refused() -> str:
        with pytest.raises(SystemExit) as error:
            __main__.main()
        return str(error.value)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "CHOSEN", tmp_path / "chosen.json")
    monkeypatch.setattr(sys, "argv", ["cldiff", "accept", "paper-cpu-sweep"])
    monkeypatch.setattr(results, "load_scores", lambda *words: sweep({("l2", 0.0): 9.0, ("l2", 0.1): 3.0}))
    (tmp_path / "chosen.json").write_text("{}")
    trials = runs("paper-cpu-sweep", only="mnist-l2-")
    folder = Path("results/paper-cpu-sweep")
    lacks = (
        f"error: {folder} lacks {{}} of the trials, {{}} first: `python -m cldiff run paper-cpu-sweep{{}}` makes them"
    )
    assert refused() == lacks.format(14, trials[0].name, "")
    finish(folder, *runs("paper-cpu-sweep", only="fashion_mnist-finetune"))  # of which nothing is chosen
    assert refused() == lacks.format(14, trials[0].name, "")
    for run in trials[:-1]:
        finish(folder, run)
    assert refused() == lacks.format(1, trials[-1].name, " --only mnist-l2-")
    assert (tmp_path / "chosen.json").read_text() == "{}"
    finish(folder, trials[-1])
    __main__.main()
    assert capsys.readouterr().out == "mnist: l2 0.1\n"
    assert json.loads((tmp_path / "chosen.json").read_text()) == {"paper-cpu-sweep": {"mnist": {"l2": 0.1}}}
    uneven = pd.concat([sweep({("l2", 0.0): 9.0, ("l2", 0.1): 3.0}), sweep({("l2", 0.1): 3.0}).assign(seed=1)])
    monkeypatch.setattr(results, "load_scores", lambda *words: uneven)
    assert refused() == f"error: {folder}: weights of l2 on mnist have different seeds: make the others too"
    for run in runs("paper-cpu-sweep", only="fashion_mnist-l2-"):  # refused as a whole
        finish(folder, run)
    even, before = sweep({("l2", 0.0): 9.0, ("l2", 1.0): 3.0}), (tmp_path / "chosen.json").read_text()
    monkeypatch.setattr(results, "load_scores", lambda _, dataset: even if dataset == "mnist" else uneven)
    assert "on fashion_mnist have different seeds" in refused() and (tmp_path / "chosen.json").read_text() == before
    monkeypatch.setattr(sys, "argv", ["cldiff", "accept", "digits-sweep"])  # of several methods, one of them made
    monkeypatch.setattr(results, "load_scores", lambda *words: sweep({("lwf", 0.0): 9.0, ("lwf", 1.0): 3.0}))
    for run in runs("digits-sweep", only="digits-lwf-"):
        finish(Path("results/digits-sweep"), run)
    __main__.main()
    assert capsys.readouterr().out == "digits: lwf 1\n"


def test_every_row_without_a_weight_needs_its_sweep(monkeypatch, tmp_path):
    """In each profile with a sweep, for each of its data sets; the other rows can be run all the same."""
    monkeypatch.setattr(study, "CHOSEN", tmp_path / "chosen.json")
    (tmp_path / "chosen.json").write_text("{}")
    swept = {name: p for name, p in PROFILES.items() if p.sweep}
    benchmarks = {name for name in PROFILES if name.startswith("benchmark-")}
    assert set(swept) == {"digits", "small", "paper-cpu", "paper", "axes-digits"} | benchmarks
    for name, p in swept.items():
        unchosen = {row.method for row in p.rows if row.weight is None and METHODS[row.method].weight is not None}
        assert unchosen and "finetune" not in unchosen
        for dataset in p.datasets:
            for method in {row.method for row in p.rows}:
                only = f"{dataset}-{method}-"
                if method in unchosen:
                    with pytest.raises(ValueError) as error:
                        runs(name, only=only)
                    for words in (f"`make paper PROFILE={p.sweep}`", f"`python -m cldiff accept {p.sweep}`"):
                        assert words in str(error.value) and "\n" not in str(error.value)
                else:
                    assert runs(name, only=only)
    assert [run.method for run in runs("paper-cpu", only="mnist-finetune")] == ["finetune"]


def test_a_sweep_shows_what_was_forgotten_beside_the_average():
    scores = sweep({("l2", 0.1): 3.0})
    scores.loc[(scores.metric == "fid") & (scores.after_task == 2) & (scores.eval_task == 1), "value"] = 5.0
    found = sweep_table(scores).iloc[0]
    assert (found["average FID"], found["forgetting FID"]) == (4.0, 2.0)


def test_what_differs_for_a_data_set_goes_before_the_settings_of_its_profile():
    assert {(run.dataset, run.attention) for run in runs("more")} == {("kmnist", 7), ("cifar10", 8)}


def test_a_plan_that_is_written_again_has_the_words_of_the_last(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for device, seconds in (("auto", 300), ("cpu", 7)):
        write_plan("smoke", jobs("smoke", device=device, checkpoint=seconds))
    kept = json.loads(Path("results/smoke/jobs.json").read_text()).values()
    words = [job.get("parameters", job) for job in kept if job["kind"] in ("first_task", "run")]
    assert {(of["device"], of["checkpoint_seconds"]) for of in words} == {("cpu", 7)}


def test_finetuning_on_a_data_set_of_another_profile_is_none_to_compare_with(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    finish(tmp_path / "results/paper-cpu", SMOKE[0])
    with pytest.raises(ResultError, match="^no finished run of finetuning in results/paper-cpu: "):
        draw("paper-cpu")


def test_a_zero_with_a_sign_is_the_weight_zero():
    assert Run(method="l2", weight=-0.0).name == Run(method="l2", weight=0.0).name


def test_runs_whose_pools_differ_share_the_first_task():
    run = Run(method="generative")
    for other in ({"pool": 7}, {"pool_steps": 10}, {"options": {"shared": True}}, {"weight": 2.0}):
        assert dataclasses.replace(run, **other).first_task_name == run.first_task_name


def test_a_sampler_is_ancestral_by_its_noise_at_every_timestep():
    found = [Run(eta=eta, sample_steps=steps).sampler for eta in (0.0, 0.5, 1.0) for steps in (50, 1000)]
    assert found == ["ddim50", "ddim1000", "ddim50-eta0.5", "ddim1000-eta0.5", "ddim50-eta1", "ancestral1000"]


@pytest.mark.parametrize("name", FILES[:-1])
def test_each_file_that_a_result_vouches_for_is_compared(name, tmp_path):
    folder = finish(tmp_path, SMOKE[0])
    with open(folder / name, "ab") as file:
        file.write(b"\n")
    with pytest.raises(ResultError, match=f"{name} is not the file that was written$"):
        read_result(folder)


def test_what_a_kill_left_half_written_is_gone_when_a_run_is_saved(tmp_path):
    left = tmp_path / SMOKE[0].name / ".01ab-scores.csv"
    left.parent.mkdir()
    left.touch()
    finish(tmp_path, SMOKE[0])
    assert not left.exists()


def test_published_results_are_those_of_their_profiles():
    published = [name for name, profile in PROFILES.items() if profile.published and (ROOT / "results" / name).is_dir()]
    assert len(published) > 9
    for name in published:
        paths = (ROOT / "results" / name).glob("*/result.json")
        seeds = {path.parent.name: json.loads(path.read_text())["run"]["seed"] for path in paths}
        assert seeds.keys() <= {run.name for run in runs(name, 8)}, name
        assert min(seeds.values()) == PROFILES[name].first_seed, name


def test_sweeps_whose_choices_are_kept_have_the_settings_that_chose():
    names = {profile: runs(profile)[0].name for profile in json.loads(study.CHOSEN.read_text())}
    assert names == {
        "digits-sweep": "digits-finetune-s0-19354408",
        "fashion_mnist-sweep": "fashion_mnist-finetune-s0-fa02818c",
        "mnist-sweep": "mnist-finetune-s0-cba2e8eb",
        "paper-cpu-sweep": "mnist-finetune-s0-a1e11431",
    }


def test_the_command_lists_every_seed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cldiff", "list", "smoke", "--seeds", "2"])
    __main__.main()
    assert sorted(capsys.readouterr().out.split()) == sorted(run.name for run in runs("smoke", 2))


@pytest.mark.parametrize("seeds", ["1", "300"])  # less than the buffer of stdout, and more than a pipe's
def test_a_list_ends_without_a_word_where_nobody_reads_on(seeds):
    """As in `list | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "cldiff", "list", "benchmark-mnist", "--seeds", seeds]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_words_of_the_command_have_the_defaults_that_its_help_says():
    words = vars(__main__.parser().parse_args(["run", "smoke"]))
    del words["function"]
    nothing = dict.fromkeys(("budget", "out", "cluster", "shared"))
    given = {"profile": "smoke", "seeds": 1, "device": "auto", "checkpoint": 300, "only": "", "data": "data"}
    assert words == {**given, **nothing}
