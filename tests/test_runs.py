import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from PIL import Image

from cldiff import METHODS, Run, grid, load_curves, load_scores
from cldiff.grid import PROFILES, jobs, planned, runs
from cldiff.measure import save_result
from cldiff.plots import ORDER
from cldiff.files import write_atomically
from cldiff.runs import COLUMNS, CURVES, FILES, ResultError, load_bootstrap, read_result
from cldiff.unet import UNet

ROOT = Path(__file__).parents[1]
SMOKE = runs("smoke")


@pytest.mark.parametrize("values, words", [
    ({"dataset": "cifar"}, "unknown dataset 'cifar'; known: digits, mnist, fashion_mnist"),
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
    ({"sample_steps": 1001}, "sample_steps=1001: expected at most timesteps=1000"),
    ({"early": 51}, "early=51: expected one of [0, 50,"),
])
def test_bad_value_is_named_in_one_line(values, words):
    with pytest.raises((ValueError, TypeError)) as error:
        dataclasses.replace(SMOKE[0], **{"weight": None, **values})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_weight_defaults_to_the_methods_own():
    assert Run(method="replay").weight == METHODS["replay"].weight
    assert Run(method="replay") == Run(method="replay", weight=1)
    assert Run(method="finetune").weight is None


def test_every_parameter_is_part_of_the_name():
    other = {"dataset": "mnist", "method": "l2", "precision": "bfloat16", "deterministic": True, "compiled": True, "multipliers": [2, 2],
             "channels": 16, "early": 0, "late": 0, "attention": 2, "inception": True, "curve_every": 1, "timesteps": 2000, "dropout": 0.5}
    base = dataclasses.replace(SMOKE[0], method="replay", weight=1.0, early=0, late=0, eta=0.5)
    for f in dataclasses.fields(Run):
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
    assert {run.name for run in runs("small", 2)} <= {path.parent.name for path in found}


def test_a_later_parameter_counts_in_the_name_off_its_default_only():
    run = runs("small")[0]
    assert run.name == "mnist-finetune-s0-ada38114" and (run.compiled, run.patch) == (False, 1)
    assert len({run.name, dataclasses.replace(run, compiled=True).name, dataclasses.replace(run, patch=2).name}) == 3


def test_methods_share_the_first_task_but_nothing_else_does():
    a, b, c, d, e = SMOKE
    assert len({run.first_task_name for run in SMOKE}) == 1
    for other in ({"seed": 1}, {"buffer": 21}, {"steps": 8}, {"dropout": 0.2}):
        assert dataclasses.replace(a, **other).first_task_name != a.first_task_name


def test_curve_timesteps_include_those_of_the_paper():
    grid = Run().curve_timesteps
    assert len(grid) >= 20 and {50, 700, 0, 999} <= set(grid)
    assert len(Run(timesteps=25, pool_steps=5, sample_steps=5, bound_terms=5, early=5, late=20).curve_timesteps) >= 20


def test_profiles_are_valid_and_the_paper_keeps_its_protocol():
    for profile in PROFILES:
        p = PROFILES[profile]
        assert len({run.name for run in runs(profile, seeds=2)}) == 2 * len(p.rows) * len(p.datasets)
    for run in runs("paper"):
        assert (run.steps, run.timesteps, run.batch, run.learning_rate, run.ema, run.clip, run.dropout, run.buffer,
                run.samples) == (20_000, 1000, 128, 2e-4, 0.9999, 1.0, 0.1, 200, 5_000)
        assert run.bound_images > 2_200  # all test images of a task
    assert [run.label for run in runs("paper")][: len(ORDER)] == ORDER


def test_run_notebook_has_every_parameter_of_a_run():
    book = nbformat.read(ROOT / "notebooks" / "run.ipynb", as_version=4)
    cell = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
    names = [line.split(" = ")[0] for line in cell.source.splitlines()]
    assert names == ["results", "data", "device", "checkpoint_seconds", *Run.names()[:1], "method", "weight", "seed", *Run.names()[4:]]


@pytest.mark.parametrize("words, message", [
    (["digitz"], "error: unknown profile 'digitz'; known: smoke, digits, digits-long, small, paper-cpu, paper, digits-sweep, small-sweep"),
    (["smoke", "--seeds", "0"], "error: seeds=0: expected at least 1"),
    (["smoke", "--seeds", "two"], "error: argument --seeds: invalid int value: 'two'"),
    (["smoke", "--device", "tpu"], "error: unknown device 'tpu'; known: auto, cpu, cuda"),
])
def test_command_line_says_what_is_wrong(words, message):
    done = subprocess.run([sys.executable, "-m", "cldiff.grid", *words], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.strip() == message and not done.stdout


def test_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, lambda p: Path(p).write_text("old"))

    def fail(p):
        Path(p).write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def finish(results: Path, run: Run, lenet: str = "y") -> Path:
    score = {"after_task": 1, "eval_task": 1, "metric": "fid", "value": 2.5, "split": "train", "extractor": "lenet", "n": 16}
    curve = {"step": 2, "task": 1, "eval_task": 1, "split": "validation", "timestep": None, "loss": None, "bpd": 3.5}
    replicate = {"after_task": 1, "eval_task": 1, "metric": "fid", "replicate0": 2.25}
    save_result(results / run.name, run, UNet(8, 5, 8, (1,), 1), {"scores.csv": [score], "curves.csv": [curve], "bootstrap.csv": [replicate]},
                Image.new("L", (80, 8)), {"train": 1.0}, {"data": "x", "lenet": lenet})
    return results / run.name


def test_results_are_read_back(tmp_path):
    for run in SMOKE[:2]:
        finish(tmp_path, run)
    scores, curves, bootstrap = load_scores(tmp_path), load_curves(tmp_path), load_bootstrap(tmp_path)
    assert bootstrap.replicate0.tolist() == [2.25, 2.25] and bootstrap.label.tolist() == [run.label for run in SMOKE[:2]]
    assert set(COLUMNS) <= set(scores.columns) and set(CURVES) <= set(curves.columns)
    assert {"run", "dataset", "method", "weight", "seed", "label"} <= set(scores.columns)
    assert set(scores.run) == {run.name for run in SMOKE[:2]} and scores.value.tolist() == [2.5, 2.5]
    assert pd.isna(curves.timestep).all() and curves.bpd.tolist() == [3.5, 3.5]
    result = json.loads((tmp_path / SMOKE[0].name / "result.json").read_text())
    assert {"run", "seconds", "machine", "versions", "commit", "sha256"} <= set(result)
    assert result["run"]["steps"] == SMOKE[0].steps


def test_finished_run_is_never_overwritten(tmp_path):
    folder = finish(tmp_path, SMOKE[0])
    before = {name: (folder / name).read_bytes() for name in FILES}
    with pytest.raises(ResultError, match="holds a finished run"):
        finish(tmp_path, SMOKE[0])
    assert before == {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "scores.csv").write_bytes((folder / "scores.csv").read_bytes()[:-1]),
    lambda folder: (folder / "result.json").write_bytes((folder / "result.json").read_bytes()[:-9]),
    lambda folder: (folder / "result.json").write_text("[]"),
    lambda folder: (folder / "samples.png").unlink(),
    lambda folder: (folder / "result.json").write_text(
        (folder / "result.json").read_text().replace('"protocol": 2', '"protocol": 1')),
    lambda folder: (folder / "result.json").write_text((folder / "result.json").read_text().replace('"steps": 4', '"steps": 8')),
])
def test_damaged_result_is_named(tmp_path, damage):
    folder = finish(tmp_path, SMOKE[0])
    damage(folder)
    with pytest.raises(ResultError) as error:
        read_result(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


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


def test_results_of_different_extractors_are_not_mixed(tmp_path):
    finish(tmp_path, SMOKE[0])
    finish(tmp_path, SMOKE[1], lenet="z")
    with pytest.raises(ResultError, match="SHA-256 of lenet"):
        load_scores(tmp_path)


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(ResultError, match="no finished run on mnist"):
        load_scores(tmp_path, "mnist")


def test_every_target_has_a_notebook_and_its_parameters_fit():
    from cldiff.execute import check_parameters

    for profile in PROFILES:
        for job in jobs(profile).values():
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
    assert order == [(d, s) for d in ("mnist", "fashion_mnist") for s in (0, 1) for _ in grid.ROWS]
    assert [run.method for run in planned("small", 2)[:5]] == ["generative", "replay", "replay", "l2", "finetune"]
    assert sorted(run.name for run in planned("small", 2)) == sorted(run.name for run in runs("small", 2))


def test_l2_takes_the_weight_that_the_sweep_chose(monkeypatch):
    weights = lambda profile: [run.weight for run in runs(profile) if run.method == "l2"]  # noqa: E731
    monkeypatch.setattr(grid, "chosen", lambda sweep, dataset: {("digits-sweep", "digits"): {"l2": 0.25}}.get((sweep, dataset), {}))
    assert weights("digits") == [0.25] and weights("smoke") == [1.0]
    assert weights("digits-sweep") == [0.0, 0.001, 0.01, 0.1, 1.0, 10.0]


def test_the_choice_of_a_sweep_follows_its_rule():
    """chosen-*.json is what the rule makes of the table beside it: the lowest average FID on validation images."""
    for path in (ROOT / "figures").glob("*/chosen-*.json"):
        dataset = path.stem.removeprefix("chosen-")
        table = next(p for p in path.parent.glob("sweep*.md") if f"\n{dataset}, n = " in p.read_text())
        rows = [[cell.strip() for cell in line.split("|")[1:-1]]
                for line in table.read_text().splitlines()[2:] if line.startswith("|")]
        names = {"l2": "L2", "replay": "Experience replay"}
        for method, weight in json.loads(path.read_text()).items():
            found = {float(row[1]): float(row[3].split(" ")[0]) for row in rows if row[0] == names[method]}
            assert found[weight] == min(found.values())
            assert grid.chosen(path.parent.name, dataset)[method] == weight
