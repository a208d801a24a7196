"""A run that begins with another's network."""

import json
import shutil
from concurrent.futures import Executor, ThreadPoolExecutor

import pytest
import torch
from conftest import tiny

from cldiff import load_scores, make_run
from cldiff.cluster import run_all
from cldiff.errors import Problem
from cldiff.files import file_sha256, load_tensors, save_tensors
from cldiff.results import WEIGHTS, ResultError, find_start
from cldiff.unet import UNet, begin

SHORT = dict(steps=1, tasks=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folders of results with one finished run, of the tasks in reversed order."""
    results, run = tmp_path_factory.mktemp("results"), tiny(order="reversed", **SHORT)
    assert make_run(run, results / "first" / run.name, device="cpu")
    return results, run


@pytest.fixture
def copy(finished, tmp_path):
    results, run = finished
    shutil.copytree(results, tmp_path / "results")
    return tmp_path / "results", run


def first_network(run, folder) -> dict:
    """The parameters before the first step."""
    found = {}

    def keep(step) -> None:
        if not found:
            found.update({name: p.detach().clone() for name, p in step.learner.net.named_parameters()})

    assert make_run(run, folder / run.name, device="cpu", progress=keep)
    return found


def test_training_begins_with_the_weights_of_the_other_run_whatever_profile_it_is_of(copy):
    results, other = copy
    saved = load_tensors(results / "first" / other.name / WEIGHTS)["parameters"]
    run = tiny(start=other.name, learning_rate=1e-12, **SHORT)  # the first step moves nothing
    found = first_network(run, results / "second")
    assert found.keys() == saved.keys()
    assert all(torch.allclose(found[name], saved[name].float(), atol=1e-6) for name in saved)
    result = json.loads((results / "second" / run.name / "result.json").read_text())
    assert result["sha256"]["start"] == file_sha256(results / "first" / other.name / WEIGHTS)
    assert result["run"]["start"] == other.name and run.name != tiny(learning_rate=1e-12, **SHORT).name


@pytest.mark.parametrize("weight", [1e6, 0.5, 1e-7])
def test_any_name_of_a_run_may_be_a_start(weight):
    name = tiny("rank1", weight=weight).name
    assert tiny(start=name).start == name


def test_the_first_task_is_shared_with_runs_of_the_same_start_alone(finished):
    name = finished[1].name
    one, other, scratch = tiny(start=name), tiny("replay", start=name), tiny("replay")
    assert one.first_task_name == other.first_task_name != scratch.first_task_name


def test_a_start_that_is_not_there_is_one_line_before_anything_is_loaded(copy):
    results, _ = copy
    run = tiny(start="digits-finetune-s0-00000000", **SHORT)
    with pytest.raises(ResultError) as error:
        make_run(run, results / "second" / run.name, data="/nowhere", device="cpu")
    place = f"{results}/*/{run.start}/{WEIGHTS}"
    assert f"{place} is missing, and from results too; expected a finished run" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_start_is_found_in_the_clone_by_a_run_whose_results_go_elsewhere(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tiny(start=copy[1].name, **SHORT)
    assert make_run(run, tmp_path / "else" / "where" / "out" / run.name, device="cpu")


def test_a_start_is_sent_to_workers_who_do_not_have_it(copy):
    results, other = copy
    run = tiny(start=other.name, **SHORT)
    with ThreadPoolExecutor(1) as pool:
        assert run_all(pool, [run], results / "second", device="cpu", data="data") == {}
    assert make_run(run, results / "third" / run.name, device="cpu")
    for name in ("scores.csv", WEIGHTS):
        assert len({file_sha256(results / place / run.name / name) for place in ("second", "third")}) == 1


def test_a_damaged_copy_of_a_start_does_not_hide_a_whole_one(copy):
    results, other = copy
    shutil.copytree(results / "first" / other.name, results / "a" / other.name)
    (results / "a" / other.name / WEIGHTS).write_bytes(b"cut")
    run = tiny(start=other.name, **SHORT)
    found = find_start(run, results / "second" / run.name)
    assert found == (results / "first" / other.name / WEIGHTS).read_bytes()


def test_a_first_task_from_other_weights_of_the_same_name_is_named(copy, tmp_path):
    results, other = copy
    run, changed = tiny("replay", start=other.name, **SHORT), results / "first" / other.name
    assert make_run(tiny(start=other.name, **SHORT), results / "second" / tiny(start=other.name, **SHORT).name)
    saved = load_tensors(changed / WEIGHTS)
    save_tensors(changed / WEIGHTS, {**saved, "parameters": {k: p + 1 for k, p in saved["parameters"].items()}})
    result = json.loads((changed / "result.json").read_text())
    result["sha256"][WEIGHTS] = file_sha256(changed / WEIGHTS)
    (changed / "result.json").write_text(json.dumps(result))
    with pytest.raises(Problem, match="belongs to .* from weights .*, not to .* from weights .*: move it away"):
        make_run(run, results / "second" / run.name, device="cpu")


def test_a_start_that_is_missing_is_said_before_workers_are_asked(tmp_path):
    run = tiny(start="digits-finetune-s0-00000000", **SHORT)
    with pytest.raises(ResultError, match="weights.pt is missing"):
        run_all(Executor(), [tiny(**SHORT), run], tmp_path / "results" / "second", device="cpu")


def test_damaged_weights_to_start_from_are_named(copy):
    results, other = copy
    path = results / "first" / other.name / WEIGHTS
    run = tiny(start=other.name, **SHORT)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ResultError, match=f"{path} is damaged"):
        make_run(run, results / "second" / run.name, device="cpu")
    path.write_bytes(whole)
    saved = load_tensors(path)
    save_tensors(path, {**saved, "parameters": {name: p + 1 for name, p in saved["parameters"].items()}})
    with pytest.raises(ResultError, match=f"{other.name}: {WEIGHTS} is not the file that was written"):
        make_run(run, results / "second" / run.name, device="cpu")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": 16}, "its network has channels=8, expected this run's 16"),
        ({"tasks": 3}, "its network has tasks=2, expected this run's 3"),
    ],
)
def test_a_start_of_another_size_is_one_line_before_images_are_looked_at(changes, message, copy, monkeypatch):
    results, other = copy
    run = tiny(start=other.name, **{**SHORT, **changes})
    monkeypatch.setattr("cldiff.work.Measurer", lambda *words: pytest.fail("looked at"))
    with pytest.raises(Problem, match=f"^start={other.name}: {message}$"):
        make_run(run, results / "second" / run.name, device="cpu")


def test_dropout_may_be_another_than_that_of_the_start(copy):
    results, other = copy
    saved = load_tensors(results / "first" / other.name / WEIGHTS)
    net = UNet(**{**saved["arguments"], "dropout": 0.5})
    begin(net, saved, other.name)
    assert all(torch.equal(p, saved["parameters"][name].float()) for name, p in net.state_dict().items())


def test_an_older_file_without_patch_is_compared_by_its_default_and_no_other_network_is_built(copy, monkeypatch):
    results, other = copy
    saved = load_tensors(results / "first" / other.name / WEIGHTS)
    nets = [UNet(**{**saved["arguments"], "patch": patch}) for patch in (1, 2)]
    del saved["arguments"]["patch"]
    monkeypatch.setattr(torch.nn, "Conv2d", lambda *words, **how: pytest.fail("built"))
    begin(nets[0], saved, other.name)
    with pytest.raises(Problem, match="its network has patch=1, expected this run's 2$"):
        begin(nets[1], saved, other.name)


def test_a_start_with_networks_of_its_own_is_one_line(tmp_path):
    other = tiny("separate", **SHORT)
    assert make_run(other, tmp_path / "results" / "first" / other.name, device="cpu")
    run = tiny(start=other.name, **SHORT)
    with pytest.raises(Problem, match="its network is not one U-Net for all tasks, as expected$"):
        make_run(run, tmp_path / "results" / "second" / run.name, device="cpu")


def test_results_from_scratch_and_from_a_start_are_not_mixed(copy):
    results, other = copy
    for run in (tiny(**SHORT), tiny("replay", start=other.name, **SHORT)):
        assert make_run(run, results / "second" / run.name, device="cpu")
    with pytest.raises(ResultError, match="start="):
        load_scores(results / "second")
    assert set(load_scores(results / "second", start=other.name).method) == {"replay"}
