import dataclasses
import hashlib
import io
import math
import re
import shutil
import time
from pathlib import Path
from shutil import which
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import copied, same, tiny, weights, weights_after_tasks
from torch._dynamo.utils import counters

from cldiff import DATASETS, Run
from cldiff.errors import Problem
from cldiff.files import load_tensors, save_tensors
from cldiff.learner import Learner, TrainingError
from cldiff.methods import METHODS, Method
from cldiff.metrics import METRICS, OfClasses
from cldiff.results import ResultError
from cldiff.train import check_precision, first_task_path, pick_device, train
from cldiff.work import make_run


def test_train_yields_after_the_optimiser_step(three):
    run = tiny()
    by_hand = Learner(run, three)
    start = weights(by_hand)
    loss = by_hand.update()
    step = next(train(run, three))
    assert (step.task, step.step, step.total, step.learner.step) == (0, 1, 1, 1)
    assert torch.equal(step.loss, loss) and not step.loss.requires_grad
    after = weights(step.learner)
    assert same(after, weights(by_hand)) and not same(after, start)


@pytest.mark.parametrize("keep", (False, True), ids=("without a folder", "with a folder"))
def test_every_step_of_every_task_comes_once_and_in_order(keep, three, tmp_path):
    steps = train(tiny(steps=2), three, tmp_path / "run" if keep else None)
    assert [(step.task, step.step, step.total) for step in steps] == [
        (0, 1, 1),
        (0, 2, 2),
        (1, 1, 3),
        (1, 2, 4),
        (2, 1, 5),
        (2, 2, 6),
    ]


def test_what_a_method_does_between_tasks_is_time_of_training(three, monkeypatch):
    run, started = tiny("replay", steps=1), METHODS["replay"].start_task
    monkeypatch.setattr(METHODS["replay"], "start_task", lambda *words: time.sleep(1) or started(*words))
    seconds = [step.learner.seconds["train"] for step in train(run, three)]
    assert all(after - before >= 1 for before, after in zip(seconds, seconds[1:]))


@pytest.mark.parametrize("method", ("replay", "generative"))
def test_what_happens_between_steps_does_not_change_training(method, three, trained):
    torch.manual_seed(5)
    for step in train(tiny(method, steps=2), three):
        learner = step.learner
        learner.sample(step.task, 3, 2, 1.0, "samples")
        learner.draw(three[0].train.images, 0, "current")
        learner.diffusion.bits_per_dim(learner.model(0), torch.zeros(2, 1, 8, 8), terms=2)
        torch.rand(step.total)
    assert same(weights(learner), trained(method)[-1])


@pytest.mark.parametrize("method", METHODS)
def test_training_leaves_the_global_generator_as_it_was(method, three):
    state = torch.manual_seed(11).get_state()
    for _ in train(tiny(method, steps=1), three):
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_decides_weights_images_timesteps_and_dropout(three):
    one, other = Learner(tiny(), three), Learner(tiny(seed=1), three)
    assert not same(copied(one.net), copied(other.net))
    batches = [learner.draw(three[0].train.images, 0, "current") for learner in (one, other)]
    for name in ("x0", "t", "noise"):
        assert not torch.equal(getattr(batches[0], name), getattr(batches[1], name))
    assert one.derive("dropout") != other.derive("dropout")


def test_each_task_step_and_purpose_draws_anew(three):
    learner = Learner(tiny(), three)
    drawn = []

    def draw():
        for purpose in ("current", "replay"):
            batch = learner.draw(three[0].train.images, 0, purpose)
            drawn.extend([batch.t.tolist(), batch.noise.tolist(), batch.x0.tolist()])
        drawn.append(learner.derive("dropout"))
        drawn.extend(learner.sample(task, 1, 1, 0.0, "samples").tolist() for task in range(2))

    draw()
    learner.update()
    draw()
    learner.next_task()
    draw()
    assert len({str(numbers) for numbers in drawn}) == len(drawn) == 27


def test_a_batch_is_of_every_image_and_timestep_each_with_noise_of_its_own(three):
    batch = Learner(tiny(batch=20_000), three).draw(three[0].train.images[:3], 0, "current")
    assert set(batch.t.tolist()) == set(range(1000)) and torch.bincount(batch.t).max() < 50
    assert len(batch.x0.flatten(1).unique(dim=0)) == 3
    assert len(batch.noise[:, 0, 0, 0].unique()) > 19_000


def test_samples_beyond_what_is_drawn_at_a_time_are_new_ones(three):
    samples = Learner(tiny(), three).sample(0, 1_003, 1, 0.0, "samples")
    assert len(samples.flatten(1).unique(dim=0)) == 1_003


def test_the_first_step_of_adam_is_as_long_as_the_learning_rate(three):
    learner = Learner(tiny(learning_rate=1e-3), three)
    start = copied(learner.net)
    learner.update()
    longest = max((p - start[name]).abs().max().item() for name, p in learner.net.named_parameters())
    assert longest == pytest.approx(1e-3, rel=1e-2)


def test_dropout_is_the_same_for_every_loss_of_a_step_and_another_in_the_next(three):
    learner = Learner(tiny(dropout=0.5), three)
    learner.update()
    learner.update()
    batch = learner.draw(learner.images[0], 0, "current")
    one, again = learner.loss(batch), learner.loss(batch)
    learner.step += 1
    assert torch.equal(one, again) and not torch.equal(one, learner.loss(batch))


def test_dropout_acts_in_training_alone(three):
    without, usual = (Learner(tiny(dropout=dropout), three) for dropout in (0.0, 0.5))
    for learner in (without, usual):
        learner.update()
        learner.update()
    assert not same(copied(without.net), copied(usual.net))
    assert torch.equal(usual.sample(0, 2, 2, 0.0, "a"), usual.sample(0, 2, 2, 0.0, "a"))


# Interruption


class Remembering(Method):
    """Its state grows from task to task, so that a lost one shows."""

    weight = 0.1

    def start_task(self, learner):
        for name, p in learner.net.named_parameters():
            self.state[name] = self.state.get(name, 0) + p.detach()

    def penalty(self, learner):
        if self.state:
            named = learner.net.named_parameters()
            return self.weight * sum((p - self.state[name]).square().sum() for name, p in named)


def measured(step) -> None:
    learner, run = step.learner, step.learner.run
    for name in ("scores", "curves", "samples"):
        learner.record.setdefault(name, [])
    learner.record["curves"].append({"step": step.total, "loss": step.loss.item()})
    if step.step == run.steps:
        images = learner.sample(step.task, 3, 2, 0.0, "samples")
        learner.record["scores"].append({"after_task": step.task + 1, "value": images.mean().item(), "split": None})
        learner.record["samples"].append(images)


def record(learner) -> tuple:
    return learner.record["scores"], learner.record["curves"], [images.tolist() for images in learner.record["samples"]]


@pytest.mark.parametrize("method", [*METHODS, "remembering"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one_bit_for_bit(method, three, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "remembering", Remembering)
    run = tiny(method, steps=2)
    for step in train(run, three):
        measured(step)
    began = []
    for stop in (1, 3, 4, 5, 6):  # in task 1; after it; before the checkpoint of task 2; after it; never
        totals = []
        for resumed in train(run, three, tmp_path / "run"):
            measured(resumed)
            totals.append(resumed.total)
            if resumed.total == stop:
                break
        began.append(totals[0])
    assert began == [1, 1, 3, 3, 5]
    assert same(weights(resumed.learner), weights(step.learner))
    assert record(resumed.learner) == record(step.learner)


def test_a_run_continues_inside_a_task(three, tmp_path):
    run = tiny("replay", steps=5)
    for step in train(run, three):
        measured(step)
    began = []
    for stop in (4, 9, 13, 15):
        totals = []
        for resumed in train(run, three, tmp_path / "run", checkpoint_seconds=0):
            measured(resumed)
            totals.append(resumed.total)
            if resumed.total == stop:  # before the checkpoint that the generator would write now
                break
        began.append(totals[0])
    assert began == [1, 4, 9, 13]
    assert same(weights(resumed.learner), weights(step.learner))
    assert record(resumed.learner) == record(step.learner)
    assert [path.name for path in (tmp_path / "first_task").glob("*.pt")] == [f"{run.first_task_name}.pt"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(three, tmp_path):
    run, path = tiny("replay", steps=4), tmp_path / "run" / "checkpoint.pt"
    for step in train(run, three):
        measured(step)
    for stopped in train(run, three, tmp_path / "run", checkpoint_seconds=0):
        measured(stopped)
        if stopped.total == 8:  # checkpoints of steps 6 and 7
            break
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        steps = train(run, three, tmp_path / "run")
        first = next(steps)
    assert first.total == 7
    # A damaged file that stayed would take the place of the good one when the next is saved.
    assert [file.name for file in path.parent.glob("*.pt")] == ["checkpoint.before.pt"]
    measured(first)
    for resumed in steps:
        measured(resumed)
    assert same(weights(resumed.learner), weights(step.learner)) and record(resumed.learner) == record(step.learner)


def test_with_no_good_checkpoint_the_run_starts_after_the_first_task(three, tmp_path):
    run = tiny("replay", steps=2)
    for stopped in train(run, three, tmp_path / "run", checkpoint_seconds=0):
        if stopped.total == 5:
            break
    for name in ("checkpoint.pt", "checkpoint.before.pt"):
        (tmp_path / "run" / name).write_bytes(b"cut")
    with pytest.warns(UserWarning, match="damaged"):
        assert next(train(run, three, tmp_path / "run")).total == 3


def test_methods_share_the_first_task_and_what_was_measured_in_it(three, tmp_path, trained):
    for step in train(tiny("finetune", steps=2), three, tmp_path / "one"):
        measured(step)
    of_first = step.learner.record["curves"][:2]
    steps = []
    for step in train(tiny("replay", steps=2), three, tmp_path / "other"):
        steps.append((step.task, step.step))
    assert steps == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert step.learner.record["curves"] == of_first
    assert same(weights(step.learner), trained("replay")[-1])


def test_another_seed_trains_its_own_first_task(three, tmp_path):
    for seed in (0, 1):
        steps = list(train(tiny(seed=seed, steps=1), three, tmp_path / str(seed)))
        assert (steps[0].task, steps[0].step) == (0, 1)


def test_a_checkpoint_between_tasks_is_half_of_one_inside_a_task(three, tmp_path):
    size = {}
    for stopped in train(tiny("replay", steps=2), three, tmp_path / "run", checkpoint_seconds=0):
        if stopped.total == 4:  # kept: the one inside task 2
            size["inside"] = (tmp_path / "run" / "checkpoint.pt").stat().st_size
        if stopped.total == 5:  # and the one after it
            size["between"] = (tmp_path / "run" / "checkpoint.pt").stat().st_size
            break
    assert size["between"] < 0.6 * size["inside"]


def test_checkpoints_hold_nothing_that_only_pickle_can_read(three, tmp_path):
    for step in train(tiny("replay", steps=1), three, tmp_path / "run"):
        measured(step)
    state = torch.load(io.BytesIO((tmp_path / "run" / "checkpoint.pt").read_bytes()[32:]), weights_only=True)
    assert (state["task"], state["step"]) == (1, 1) and state["method"] and state["record"]["scores"]
    (first,) = (tmp_path / "first_task").glob("*.pt")
    assert torch.load(io.BytesIO(first.read_bytes()[32:]), weights_only=True)["task"] == 0


@pytest.mark.parametrize("value", [np.mean([1.0, 0.0]), torch.tensor(0.5)], ids=["NumPy's", "torch's"])
def test_values_of_somebodys_metric_may_be_others_than_floats(value, tmp_path, monkeypatch):
    """Which checkpoints, the first task's among them, could not hold, or a column of numbers not."""
    monkeypatch.setitem(METRICS, "own", OfClasses("own", 2, lambda drawn: value, headline=True))
    run = tiny("replay", steps=1, tasks=2)
    for first_task_only in (True, False):
        assert make_run(run, tmp_path / run.name, device="cpu", first_task_only=first_task_only)
    scores = pd.read_csv(tmp_path / run.name / "scores.csv")
    assert scores.value[scores.metric == "own"].tolist() == [0.5] * 3
    replicates = pd.read_csv(tmp_path / run.name / "bootstrap.csv").set_index("metric").filter(like="replicate")
    assert (replicates.loc["own"] == 0.5).all(axis=None)


def test_what_a_method_keeps_and_no_checkpoint_can_hold_is_one_line_in_the_first_step(three, tmp_path, monkeypatch):
    class Counting(METHODS["replay"]):
        def start_task(self, learner):
            super().start_task(learner)
            self.state["count"] = 5

    monkeypatch.setitem(METHODS, "replay", Counting)
    steps = train(tiny("replay", steps=2), three, tmp_path / "run")
    assert [next(steps).total, next(steps).total] == [1, 2]
    with pytest.raises(Problem, match=r"state\['count'\] is int, expected a tensor"):
        next(steps)


def test_a_weight_that_no_float_can_hold_stops_the_run(three):
    """Clipping by a norm that is infinite leaves nothing of any gradient."""
    steps = train(tiny("replay", weight=1e30, steps=2), three)
    next(steps), next(steps)
    with pytest.raises(TrainingError, match=r"no longer finite at step 1 of task 2: lower .*, weight=1e\+30 or clip="):
        next(steps)


def test_a_folder_of_another_name_and_a_damaged_result_are_one_line_before_training(tmp_path):
    run = tiny(steps=1, tasks=2)
    with pytest.raises(ValueError, match=f"^{tmp_path}/own: expected a folder named as the run, {run.name}"):
        make_run(run, str(tmp_path / "own"), device="cpu")
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "result.json").touch()
    with pytest.raises(ResultError, match=f"{run.name}: cut short or damaged"):
        make_run(run, tmp_path / run.name, device="cpu")


@pytest.mark.parametrize("seconds", ["5m", None, -1, float("nan")])
def test_seconds_between_checkpoints_are_asked_for_before_training(seconds, tmp_path):
    with pytest.raises(ValueError, match=f"^checkpoint_seconds={seconds!r}: expected a number of at least 0$"):
        make_run(tiny(), tmp_path / tiny().name, device="cpu", checkpoint_seconds=seconds)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_executed(three, tmp_path):
    (tmp_path / "run").mkdir()
    content = io.BytesIO()
    torch.save({"task": Harmful(tmp_path / "harm")}, content)
    digest = hashlib.sha256(content.getvalue()).digest()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(digest + content.getvalue())
    with pytest.raises(Problem, match="is whole, and not what belongs there .UnpicklingError") as error:
        next(train(tiny(), three, tmp_path / "run"))
    assert not (tmp_path / "harm").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")])
def test_a_checkpoint_for_which_there_is_no_memory_is_not_to_blame(error, three, tmp_path, monkeypatch):
    next(train(tiny(), three, tmp_path / "run", checkpoint_seconds=0))
    save_tensors(tmp_path / "run" / "checkpoint.pt", {})

    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(Problem, match="^out of memory"):
        next(train(tiny(), three, tmp_path / "run"))
    with pytest.raises(Problem, match=f"^out of memory, on reading {tmp_path / 'run' / 'checkpoint.pt'}$"):
        load_tensors(tmp_path / "run" / "checkpoint.pt")


def begun(run: Run, tasks: list, folder) -> dict:
    """A run that was stopped after its fourth step, in the second of two tasks; returns its checkpoint."""
    for step in train(run, tasks, folder, checkpoint_seconds=0):
        if step.total == 5:
            break
    return load_tensors(folder / "checkpoint.pt")


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"method": "replay"}, {"steps": 6}, {"learning_rate": 1e-3}, {"method": "l2", "weight": 2.0}]
)
def test_the_checkpoint_of_another_run_is_named_and_stays(other, three, tmp_path):
    one, other = tiny(steps=3), tiny(**{"steps": 3, **other})
    begun(one, three[:2], tmp_path / one.name)
    shutil.copytree(tmp_path / one.name, tmp_path / other.name)
    path = tmp_path / other.name / "checkpoint.pt"
    content = path.read_bytes()
    with pytest.raises(TrainingError, match=rf"^{path} belongs to {one.name} on data .*, not to {other.name} on data"):
        next(train(other, three[:2], path.parent))
    assert path.read_bytes() == content


def test_the_first_task_of_other_runs_and_a_checkpoint_on_other_data_are_named(three, tmp_path, monkeypatch):
    one, other = tiny(steps=3), tiny(steps=3, seed=1)
    begun(one, three[:2], tmp_path / one.name)
    first = [first_task_path(run, tmp_path / run.name) for run in (one, other)]
    shutil.copy(*first)
    with pytest.raises(TrainingError, match=rf"^{first[1]} belongs to {one.first_task_name} on data"):
        next(train(other, three[:2], tmp_path / other.name))
    monkeypatch.setitem(DATASETS["digits"].sha256, "images and labels", "0" * 64)
    with pytest.raises(TrainingError, match=rf"belongs to {one.name} on data .{{8}}, not to {one.name} on data"):
        next(train(one, three[:2], tmp_path / one.name))


@pytest.mark.parametrize("content", [[1, 2, 3], {}, {"task": "a"}, {"task": 1, "net": 3}, {"task": 1, "net": {}}])
def test_a_checkpoint_that_is_whole_and_holds_something_else_is_named_and_stays(content, three, tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    save_tensors(path, content)
    before = path.read_bytes()
    with pytest.raises(Problem, match=rf"^{path} is whole, and not what belongs there") as error:
        next(train(tiny(), three, path.parent))
    assert "\n" not in str(error.value) and path.read_bytes() == before


def test_a_checkpoint_that_is_a_folder_is_named(three, tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    path.mkdir(parents=True)
    with pytest.raises(Problem, match=rf"^{path} is a folder: expected a file"):
        next(train(tiny(), three, path.parent))


@pytest.mark.parametrize("step", [3, 100])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(step, three, tmp_path, monkeypatch):
    """Found before it gets into a checkpoint, and after 100 steps where there is none."""
    run, update = tiny(steps=200), Learner.update

    def broken(self):
        loss = update(self)
        return loss * math.nan if self.step >= step else loss

    monkeypatch.setattr(Learner, "update", broken)
    with pytest.raises(TrainingError, match=f"no longer finite at step {step} of task 1: lower"):
        for done in train(run, three, tmp_path / "run", checkpoint_seconds=0 if step == 3 else 300):
            pass
    assert done.step == (3 if step == 3 else 99)
    begun = list((tmp_path / "first_task").glob("*.begun.pt"))
    assert len(begun) == (step == 3)
    monkeypatch.setattr(Learner, "update", update)
    assert next(train(run, three, tmp_path / "run")).step == (3 if step == 3 else 1)


def test_parameters_that_are_no_numbers_stop_the_run(three):
    learner = Learner(tiny(), three)
    loss = learner.update()
    learner.check(loss)
    with torch.no_grad():
        learner._weights[3].view(-1)[0] = math.inf
    with pytest.raises(TrainingError, match="step 1 of task 1"):
        learner.check(loss)


# Average, optimiser, precision


def test_the_average_restarts_at_each_task_and_follows_the_ramp(three):
    run = tiny(ema=0.2)  # the ramp is 1/10, 2/11, 3/12, ...: it is cut off from the third step on
    average = copied(Learner(run, three).net)
    for step in train(run, three):
        net = copied(step.learner.net)
        keep = min(0.2, step.step / (step.step + 9))
        average = {name: keep * average[name] + (1 - keep) * net[name] for name in net}
        torch.testing.assert_close(copied(step.learner.ema), average, rtol=1e-5, atol=1e-6)
        if step.step == run.steps:
            average = net


def test_samples_come_from_the_averaged_network_for_the_task_id_asked_for(three):
    learner = Learner(tiny(learning_rate=2e-2), three)
    for _ in range(3):
        learner.update()

    def drawn(net, task):
        noise = torch.randn(2, 1, 8, 8, generator=learner.generator("samples 1"))
        return learner.diffusion.sample(lambda x, t: net(x, t, torch.tensor([task, task])), noise, 2, eta=0.0)

    samples = learner.sample(1, 2, 2, 0.0, "samples")
    assert torch.equal(samples, drawn(learner.ema, 1))
    assert not torch.equal(samples, drawn(learner.ema, 0)) and not torch.equal(samples, drawn(learner.net.eval(), 1))


def test_the_average_has_neither_dropout_nor_a_graph_of_gradients(three):
    for step in train(tiny(steps=1), three):
        assert not step.learner.ema.training and not any(p.requires_grad for p in step.learner.ema.parameters())
        assert step.learner.net.training


def test_the_optimiser_restarts_at_each_task(three):
    run = tiny(steps=2)
    for step in train(run, three):
        states = step.learner.optimizer.state
        assert len(states) == len(list(step.learner.net.parameters()))
        assert {int(state["step"]) for state in states.values()} == {step.step}


def gradient_norm(learner) -> float:
    return torch.stack([p.grad.norm() for p in learner.net.parameters()]).norm().item()


def test_the_gradient_is_clipped_to_its_largest_norm(three):
    free, clipped = (Learner(tiny(clip=clip), three) for clip in (1e9, 1e-3))
    for learner in (free, clipped):
        learner.update()
    assert gradient_norm(free) > 0.1
    assert gradient_norm(clipped) == pytest.approx(1e-3, rel=1e-2)
    scale = gradient_norm(free) / 1e-3
    for one, other in zip(free.net.parameters(), clipped.net.parameters()):
        torch.testing.assert_close(one.grad, other.grad * scale, rtol=1e-2, atol=1e-3)


def test_bfloat16_trains_near_float32_and_keeps_float32_weights(three, trained):
    half, whole = weights_after_tasks(tiny(steps=2, precision="bfloat16"), three)[0], trained("finetune")[0]
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert not same(half, whole)
    difference = math.sqrt(sum((half[name] - whole[name]).square().sum().item() for name in half))
    start = weights(Learner(tiny(), three))
    moved = math.sqrt(sum((start[name] - whole[name]).square().sum().item() for name in half))
    assert difference < 0.5 * moved


def test_bfloat16_is_refused_on_a_gpu_that_has_to_emulate_it(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr("cldiff.work.pick_device", torch.device)
    half, found = tiny(precision="bfloat16"), (7, 5)
    check_precision(tiny(), torch.device("cuda"))
    check_precision(half, torch.device("cpu"))
    with pytest.raises(TrainingError, match="Tesla T4 has no bfloat16: use precision='float32'"):
        make_run(half, tmp_path / half.name, device="cuda")
    found = (8, 0)
    check_precision(half, torch.device("cuda"))


# Compiling

compile_with = torch.compile


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", (dict(dropout=0.0), dict(dropout=0.1, precision="bfloat16")), ids=("float32", "bfloat16")
)
def test_compiled_training_takes_three_graphs_and_continues_bit_for_bit(how, three, tmp_path, monkeypatch):
    """Three graphs: the step without and with replay, the average in one shape. Without code for the machine, which would
    take a minute for each."""
    monkeypatch.setattr(
        torch, "compile", lambda net, mode, dynamic: compile_with(net, backend="aot_eager", dynamic=dynamic)
    )
    run = tiny("replay", steps=2, compiled=True, multipliers=(1, 2), **how)
    torch._dynamo.reset()
    counters["stats"].clear()
    for step in train(run, three):
        learner = step.learner
        for n in (1, 3, 600):
            learner.sample(0, n, 2, 0.0, "samples")
        learner.diffusion.bits_per_dim(learner.model(0), torch.zeros(2, 1, 8, 8), terms=3)
    assert graphs() == 3
    if not run.dropout:  # whose masks are the compiler's own
        eager = weights_after_tasks(dataclasses.replace(run, compiled=False), three)[-1]
        for name, value in weights(learner).items():
            torch.testing.assert_close(value, eager[name], rtol=1e-3, atol=1e-4)
    for stop in (3, 6):
        for resumed in train(run, three, tmp_path / "run", checkpoint_seconds=0):
            if resumed.total == stop:
                break
    assert same(weights(resumed.learner), weights(learner))


@pytest.mark.slow
@pytest.mark.skipif(not which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_step_is_the_eager_one(three):
    """With code for this machine."""
    torch._dynamo.reset()
    counters["stats"].clear()
    eager, compiled = (
        Learner(tiny(compiled=compiled, dropout=0.0, multipliers=(1, 2)), three) for compiled in (False, True)
    )
    for learner in (eager, compiled):
        for _ in range(2):
            learner.update()
    assert graphs() == 1
    for name, value in weights(compiled).items():
        torch.testing.assert_close(value, weights(eager)[name], rtol=1e-3, atol=1e-4)


def test_what_a_compiled_network_returns_may_be_written_over_by_its_next_call(three, monkeypatch):
    """As CUDA graphs do, which return the same memory each time."""

    def compile(net, **how):
        kept = []

        def call(*inputs):
            out = net(*inputs)
            if out.requires_grad:
                return out
            kept.append(out)
            for before in kept[:-1]:
                before.fill_(math.nan)
            return out

        return call

    monkeypatch.setattr(torch, "compile", compile)
    eager, compiled = (Learner(tiny(compiled=compiled), three) for compiled in (False, True))
    for learner in (eager, compiled):
        learner.update()
        learner.kept = [learner.model(task)(torch.ones(600, 1, 8, 8), torch.arange(600)) for task in (0, 1)]
    torch.testing.assert_close(compiled.kept, eager.kept)
    torch.testing.assert_close(compiled.sample(0, 3, 4, 0.0, "a"), eager.sample(0, 3, 4, 0.0, "a"))


def test_what_cannot_be_compiled_is_one_line(three, monkeypatch):
    class CompilerError(RuntimeError):  # as BackendCompilerFailed, whose own first line names the backend alone
        __module__ = "torch._dynamo.exc"
        inner_exception = OSError("no compiler\nSet TORCHDYNAMO_VERBOSE=1")

    def compile(net, **how):
        def call(*inputs):
            raise CompilerError("backend='inductor' raised:\nno compiler")

        return call

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(TrainingError, match=r"^torch.compile failed \(no compiler\): use compiled=False$"):
        next(train(tiny(compiled=True), three))


@pytest.mark.parametrize(
    "where",
    [
        "learner.UNet.of",
        "features.LeNet.to",
        "measure.real_features",
        "learner.Learner.update",
        "methods.replay.Replay.start_task",
    ],
)
def test_no_memory_is_one_line_wherever_it_is_asked_for(where, tmp_path, monkeypatch):
    def refuse(*words, **how):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 80 GiB")

    monkeypatch.setattr(f"cldiff.{where}", refuse)
    run = tiny("replay", steps=1, tasks=2)
    with pytest.raises(TrainingError, match="^out of memory on cpu: fewer JOBS, or lower batch=8, channels=8$"):
        make_run(run, tmp_path / run.name, device="cpu")


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
    ],
)
def test_memory_that_cublas_and_cudnn_lack_is_called_so(words, three, monkeypatch):
    def refuse(learner):
        raise RuntimeError(words)

    monkeypatch.setattr(Learner, "update", refuse)
    with pytest.raises(TrainingError, match=rf"^out of memory on cpu \({re.escape(words)}\): fewer JOBS"):
        next(train(tiny(), three))


def test_a_python_that_torch_does_not_compile_for_is_one_line(monkeypatch):
    """A bare RuntimeError, of torch.compile itself."""

    def refuse(*words, **how):
        raise RuntimeError("torch.compile is not supported on Python 3.15+")

    monkeypatch.setattr(torch, "compile", refuse)
    run = tiny(compiled=True)
    said = r"^torch.compile failed \(torch.compile is not supported on Python 3.15\+\): use compiled=False$"
    with pytest.raises(TrainingError, match=said):
        make_run(run, Path("/nowhere") / run.name, device="cpu", first_task_only=True)


@pytest.mark.parametrize(
    "changes, message", [({"patch": 3}, "cut into patches of 3"), ({"multipliers": (1,) * 5}, "halved 4 times")]
)
def test_a_network_that_does_not_fit_is_named_before_images_are_looked_at(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr("cldiff.work.Measurer", lambda *words: pytest.fail("looked at"))
    run = tiny(**changes)
    with pytest.raises(ValueError, match=f"^images of 8 pixels cannot be {message}: use "):
        make_run(run, tmp_path / run.name, device="cpu")


# Devices


def test_auto_takes_the_gpu_where_there_is_one():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu").type == "cpu"


def test_an_unknown_device_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'gpu'.*known: auto, cpu, cuda"):
        pick_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(ValueError, match="no GPU.*expected 'auto' or 'cpu'"):
        pick_device("cuda")


def test_a_gpu_that_this_torch_cannot_use_is_named(monkeypatch):
    def refuse(*words, **how):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", refuse)
    for name in ("auto", "cuda"):
        with pytest.raises(
            Problem, match="^the GPU of this machine .*for execution on the device.: 'cpu' does without"
        ):
            pick_device(name)
    assert pick_device("cpu").type == "cpu"


def test_deterministic_switches_torch_to_algorithms_that_repeat(three, monkeypatch):
    switched = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", switched.append)
    for deterministic in (False, True):
        next(train(tiny(deterministic=deterministic), three))
        assert switched == [True] * deterministic


def test_seconds_are_those_of_steps_alone_and_checkpoints_are_so_many_apart(three, monkeypatch, tmp_path):
    clock, update, save, saved = SimpleNamespace(now=0.0), Learner.update, Learner.save, []

    def slow(learner):
        clock.now += 10
        return update(learner)

    def kept(learner, path):
        saved.append(learner.task * 10 + learner.step)
        save(learner, path)

    monkeypatch.setattr(Learner, "update", slow)
    monkeypatch.setattr(Learner, "save", kept)
    monkeypatch.setattr(
        "cldiff.train.time",
        SimpleNamespace(
            perf_counter=lambda: clock.now, monotonic=lambda: clock.now, process_time=lambda: clock.now / 2
        ),
    )
    run = tiny("replay", steps=10)
    for step in train(run, three[:2], tmp_path / "run", checkpoint_seconds=25):
        clock.now += 1  # of measuring
        if step.total == 15:
            break
    assert saved == [3, 6, 9, 10, 13]
    for step in train(run, three[:2], tmp_path / "run", checkpoint_seconds=25):
        pass
    assert step.total == 20 and step.learner.seconds["train"] == 200  # those before the break included
    assert step.learner.seconds["train_cpu"] == 100


def test_a_checkpoint_from_before_cpu_seconds_were_counted_does_not_begin_to_count_them(three, tmp_path):
    """A part of them would look like a price."""
    run = tiny("replay", steps=2)
    learner = Learner(run, three)
    del learner.seconds["train_cpu"]
    learner.save(first_task_path(run, tmp_path / "run"))
    *_, step = train(run, three, tmp_path / "run")
    assert step.learner.seconds.keys() == {"train", "measure"} and step.learner.seconds["train"] > 0


def test_a_batch_of_another_size_weighs_as_much(three):
    batch = Learner(tiny(), three).draw(three[0].train.images, 0, "own", weight=0.5, size=5)
    assert torch.allclose(batch.share, torch.tensor([0.1] * 5))


def test_deterministic_asks_for_the_workspace_that_cublas_then_needs(three, monkeypatch):
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    name = "CUBLAS_WORKSPACE_CONFIG"
    for asked, before, wanted in ((False, {}, None), (True, {}, ":4096:8"), (True, {name: ":16:8"}, ":16:8")):
        monkeypatch.setattr("cldiff.train.os", SimpleNamespace(environ=before))
        next(train(tiny(deterministic=asked), three))
        assert before.get(name) == wanted


def test_the_end_of_a_task_is_kept_once(three, tmp_path, monkeypatch):
    """Twice, it would be the checkpoint before, too."""
    save, saved = Learner.save, []
    monkeypatch.setattr(
        Learner, "save", lambda self, path: saved.append((self.task, self.step, path.name)) or save(self, path)
    )
    run = tiny(steps=2)
    for _ in train(run, three, tmp_path / "run", checkpoint_seconds=0):
        pass
    first, own = run.first_task_name, "checkpoint.pt"
    assert saved == [(0, 1, f"{first}.begun.pt"), (0, 2, f"{first}.pt"), (1, 1, own), (1, 2, own), (2, 1, own)]
