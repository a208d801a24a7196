import copy
import dataclasses
import inspect
import math
import re
import subprocess
import sys
import traceback
from contextlib import nullcontext
from difflib import get_close_matches
from pathlib import Path

import pytest
import torch
from conftest import OPTIONS, copied, documented, same, tiny, weights, weights_after_tasks, with_noise_held_out
from torch.utils.flop_counter import FlopCounterMode

from cldiff import errors
from cldiff.errors import Problem
from cldiff.learner import Learner, TrainingError
from cldiff.measure import Measurer
from cldiff.methods import METHODS, Batch, Method
from cldiff.methods.replay import buffer
from cldiff.metrics import METRICS, OfClasses
from cldiff.parameters import Parameters, number
from cldiff.tasks import to_uint8
from cldiff.train import train
from cldiff.unet import UNet

WEIGHTED = [name for name, method in METHODS.items() if method.weight is not None]
SHARING = [name for name, method in METHODS.items() if method.shares_first_task]
STUDIED = ("l2", "replay", "generative")  # whose gradients are known


def at_task(run, tasks, index) -> Learner:
    """A learner at the start of a task, without training before."""
    learner = Learner(run, tasks)
    for _ in range(index):
        learner.next_task()
    return learner


def replayed(learner) -> Batch:
    """What a method adds to the current batch."""
    current = learner.draw(learner.images[learner.task], learner.task, "current")
    both, n = learner.method.batch(learner, current), len(current.t)
    assert torch.equal(both.x0[:n], current.x0) and torch.equal(both.noise[:n], current.noise)
    return Batch(*(getattr(both, f.name)[n:] for f in dataclasses.fields(Batch)))


def pixels(images) -> list[bytes]:
    """What tells one image from another: no two of the digits are the same."""
    return [image.numpy().tobytes() for image in images]


HOOKS = {name: value for name, value in vars(Method).items() if inspect.isroutine(value) and name[0] != "_"}


@pytest.mark.parametrize("name", METHODS)
def test_the_class_is_one_that_training_understands(name):
    """What would fail late or not at all: labels mix runs, misspelled hooks are never called."""
    method = METHODS[name]
    assert re.fullmatch("[a-z][a-z0-9_]*", name) and inspect.isclass(method)
    assert [other for other in METHODS if METHODS[other].label == method.label] == [name], "give it a label of its own"
    for hook, known in HOOKS.items():
        expected, found = (list(inspect.signature(value).parameters) for value in (known, getattr(method, hook)))
        assert found == expected, f"{hook}: expected these parameters"
    own = [key for key, value in vars(method).items() if inspect.isroutine(value) and key[0] != "_"]
    known = {key for base in method.__mro__[1:-1] for key, value in vars(base).items() if inspect.isroutine(value)}
    for key in set(own) - known:
        alike = get_close_matches(key, known, cutoff=0.75)
        assert not alike, f"{key} is neither a hook nor called by {method.__mro__[1].__name__}: is {alike[0]} meant?"
    assert issubclass(method.Options, Parameters)
    for f in dataclasses.fields(method.Options):
        assert "help" in f.metadata, f"{f.name}: declare it by number(), among() or flag()"
        code = "".join(inspect.getsource(inspect.getmodule(base)) for base in method.__mro__[:-1])
        assert re.search(rf"\.{f.name}\b", code), f"{f.name}: an option that nothing reads"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name] is not METHODS["finetune"]])
def test_a_method_does_something_else_than_the_one_it_extends(name, trained):
    """As a misspelled hook does not."""
    base = next(other for other in METHODS[name].__mro__[1:] if other in METHODS.values() or other is Method)
    other = next((key for key, value in METHODS.items() if value is base), "finetune")
    ours, theirs = trained(name), trained(other)
    assert len(ours) != len(theirs) or not all(map(same, ours, theirs))


@pytest.mark.parametrize("method", METHODS)
def test_what_a_subclass_remembers_outlives_the_next_task(method, three):
    for begun in (0, 1):  # in the first task, where a subclass may say shares_first_task = False
        learner = at_task(tiny(method), three, begun)
        learner.method.state["own"] = torch.ones(1)
        learner.update()
        learner.next_task()
        assert "own" in learner.method.state
        learner.update()


@pytest.mark.parametrize("method", STUDIED)
def test_with_weight_0_a_method_is_finetuning_bit_for_bit(method, trained):
    assert all(map(same, trained(method, weight=0.0), trained("finetune")))


@pytest.mark.parametrize("method", WEIGHTED)
def test_a_weight_is_not_ignored(method, trained):
    doubled = trained(method, weight=2 * METHODS[method].weight)
    assert not all(map(same, trained(method), doubled))


def test_with_distillation_0_the_pair_is_rank_1_ewc_bit_for_bit(trained, three):
    alone = weights_after_tasks(tiny("rank1_distillation", steps=2, options={"distillation": 0.0}), three)
    assert all(map(same, alone, trained("rank1")))


def test_a_replay_that_returns_no_batch_is_one_line(monkeypatch, three):
    monkeypatch.setattr(METHODS["replay"], "replayed", lambda self, learner: None)
    with pytest.raises(Problem, match="^a Batch and NoneType: expected two, as replayed"):
        at_task(tiny("replay"), three, 1).update()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_costs_the_passes_that_the_method_says(method, three):
    """Counted by torch: a backward pass has twice the multiplications of a forward pass."""
    learner = at_task(tiny(method, batch=32, channels=16, options={"rank": 1} if method == "lora" else {}), three, 2)
    learner.step = 1  # self-tuned replay measures in the first
    net, n = learner.ema if learner.method.shares_first_task else UNet(**learner.arguments), 32
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        net(torch.zeros(n, 1, 8, 8), torch.zeros(n, dtype=torch.int64), torch.full((n,), 2))
    with FlopCounterMode(display=False) as step:
        learner.update()
    assert step.get_total_flops() / forward.get_total_flops() == pytest.approx(METHODS[method].passes, rel=0.06)


SIZE = 64  # bytes of an image of the digits
HELD = {  # in the third task: real images, bytes without networks, networks or numbers for each of a network's
    "finetune": (0, 0, 0),
    "l2": (0, 0, 1),  # an anchor
    "replay": (10, 10 * (SIZE + 8), 0),  # with the number of the task of each image
    "generative": (0, 12 * (SIZE + 8), 0),
    "distilled": (10, 10 * (SIZE + 8), 1),  # a teacher
    "timesteps": (10, 10 * (SIZE + 8), 0),
    "self_tuned": (10, 10 * (SIZE + 8) + 4 * 2 * 20, 0),  # two losses in 20 bins
    "generative_distillation": (0, 12 * (SIZE + 8), 1),
    "rank1_distillation": (0, 12 * (SIZE + 8) + 4 * 2, 1 + 1 + 2),  # teacher, anchor, a direction for each past task
    "lwf": (0, 0, 1),
    "agem": (10, 10 * (SIZE + 8), 0),
    "ewc": (0, 0, 2),  # anchor and importances
    "rank1": (0, 4 * 2, 1 + 2),
    "mas": (0, 0, 2),
    "si": (0, 0, 3),
    "averaging": (0, 0, 1),  # the network from before the task
    "separate": (0, 0, 2),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_holds_is_counted(method, three):
    learner = Learner(tiny(method, **({"options": {"images": 2}} if method in ("ewc", "mas") else {})), three)
    for _ in range(2):
        learner.update()  # synaptic intelligence counts from its first step
        learner.next_task()
    found = learner.method.held(learner)
    real = {image.numpy().tobytes() for task in three for image in task.train.images}
    kept = [image for value in learner.method.state.values() if value.dtype == torch.uint8 for image in value]
    assert found["images"] >= sum(image.numpy().tobytes() in real for image in kept)
    if method == "joint":
        images = sum(len(task.train) for task in three[:2])
        assert found == {"images": images, "bytes": images * SIZE}
    elif method == "lora":
        changes = [p for name, p in learner.net.named_parameters() if not name.startswith("net.")]
        assert found == {"images": 0, "bytes": 4 * sum(p.numel() for p in changes)}
    elif method in HELD:
        images, bytes, times = HELD[method]
        network = 4 * sum(p.numel() for p in UNet(**learner.arguments).parameters())
        assert found == {"images": images, "bytes": bytes + times * network}


@pytest.mark.parametrize("method", SHARING)
def test_methods_share_the_first_task_and_part_in_the_second(method, trained):
    ours, finetuned = trained(method), trained("finetune")
    assert same(ours[0], finetuned[0])
    # A-GEM's gradients agree in these steps, so that it changes none; where they do not: test_other_methods.py.
    assert same(ours[1], finetuned[1]) == (method in ("finetune", "agem"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_continues_bit_for_bit_and_keeps_nothing_but_tensors(method, three, trained, tmp_path):
    run = tiny(method, steps=2)
    found = {}
    for stop in (1, 2, None):
        for step in train(run, three, tmp_path / run.name, checkpoint_seconds=0):
            if step.step == run.steps:
                if step.task == stop:
                    break  # after a step that no checkpoint has
                found[step.task] = weights(step.learner)
    assert list(found) == [0, 1, 2] and all(map(same, found.values(), trained(method)))
    assert all(isinstance(value, torch.Tensor) for value in step.learner.method.state.values())


@pytest.mark.parametrize("method", METHODS)
def test_validation_and_test_images_do_not_influence_training(method, three, trained):
    noisy = weights_after_tasks(tiny(method, steps=2), with_noise_held_out(three))
    assert all(map(same, noisy, trained(method)))


# L2


def test_a_huge_l2_weight_holds_the_parameters_at_the_anchor(three):
    moved = {}
    for method, weight in (("finetune", None), ("l2", 1e6)):
        learner = at_task(tiny(method, weight=weight, learning_rate=1e-3), three, 1)
        start = copied(learner.net)
        for _ in range(12):
            learner.update()
        moved[method] = max((p - start[name]).abs().max().item() for name, p in learner.net.named_parameters())
    assert moved["l2"] < 3e-3 and moved["finetune"] > 8e-3


def distance(net, anchor) -> torch.Tensor:
    return sum((p - anchor[name]).double().square().sum() for name, p in net.named_parameters())


def test_the_l2_anchor_is_the_network_after_the_task_before(three):
    run = tiny("l2", weight=3.0, steps=2)
    for step in train(run, three):
        penalty = step.learner.method.penalty(step.learner)
        if step.task > 0:
            expected = 3 * distance(step.learner.net, anchor).item()
            assert penalty.item() == pytest.approx(expected, rel=1e-4) and expected > 0
        else:
            assert penalty is None
        if step.step == run.steps:
            anchor = copied(step.learner.net)


# What one update descends


def prepared(method, tasks, **changes) -> tuple[Learner, dict]:
    """At task 3, away from the zeros of a new last layer and from where the task began, which is returned too; without
    dropout and clipping."""
    learner = at_task(tiny(method, weight=0.3, dropout=0.0, clip=1e9, **changes), tasks, 2)
    start = copied(learner.net)
    with torch.no_grad():
        for p in learner.net.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return learner, start


def mean_loss(learner, batch) -> torch.Tensor:
    guess = learner.net(learner.diffusion.noised(batch.x0, batch.t, batch.noise), batch.t, batch.task)
    return (guess - batch.noise).square().mean()


@pytest.mark.parametrize("method", STUDIED)
def test_the_gradient_is_that_of_the_current_loss_plus_weight_times_the_methods_own(method, three):
    learner, start = prepared(method, three)
    named = dict(learner.net.named_parameters())
    current = learner.draw(three[2].train.images, 2, "current")
    if method == "l2":
        own = distance(learner.net, start)
    else:
        own = mean_loss(learner, learner.draw(learner.method.state["images"], learner.method.state["task"], "replay"))
    of_current = torch.autograd.grad(mean_loss(learner, current), named.values())
    of_own = torch.autograd.grad(own, named.values())
    learner.update()
    for name, one, other in zip(named, of_current, of_own):
        torch.testing.assert_close(named[name].grad, one + 0.3 * other, rtol=1e-3, atol=1e-5, msg=name)


# Experience replay


@pytest.fixture(scope="module")
def replaying(three):
    return at_task(tiny("replay", buffer=100), three, 2)


def test_the_buffer_holds_as_many_training_images_of_each_past_task_as_run_buffer_says(replaying, three):
    images, owner = replaying.method.state["images"], replaying.method.state["task"]
    assert owner.unique().tolist() == [0, 1]
    for task in three[:2]:
        kept = pixels(images[owner == task.index])
        assert len(set(kept)) == len(kept) == replaying.run.buffer
        assert set(kept) <= set(pixels(task.train.images))
        assert not set(kept) & set(pixels(task.validation.images) + pixels(task.test.images))


def test_a_buffer_larger_than_a_task_holds_all_of_it_once(three):
    learner = at_task(tiny("replay", buffer=100_000), three, 2)
    size = sum(len(task.train) for task in three[:2])
    assert len(learner.method.state["images"]) == size
    assert learner.method.held(learner)["images"] == size
    learner.update()


@pytest.mark.parametrize("method", METHODS)
def test_the_buffer_depends_on_the_seed_alone(method, replaying, three):
    torch.manual_seed(len(method))
    learner = at_task(tiny(method, buffer=100), three, 1)
    learner.sample(0, 3, 2, 0.0, "pictures")
    learner.update()
    kept = replaying.method.state["images"][replaying.method.state["task"] == 0]
    assert torch.equal(buffer(learner, 0).images, kept)


@pytest.mark.parametrize("seed", range(4))
def test_a_balanced_buffer_holds_its_classes_in_turn(seed, three):
    images, train = {}, three[0].train
    for n in (2, 5, 100_000):
        kept = buffer(Learner(tiny("replay", seed=seed, buffer=n, balanced=True), three), 0)
        images[n] = pixels(kept.images)
        counts = kept.labels.bincount()[list(three[0].classes)]
        assert len(kept) == counts.sum() == min(n, len(train))
        assert n > len(train) or counts.max() - counts.min() == n % 2
    assert images[5][:2] == images[2] and sorted(images[100_000]) == sorted(pixels(train.images))


def test_another_seed_keeps_other_images(replaying, three):
    other = Learner(tiny("replay", seed=1, buffer=100), three)
    assert set(pixels(buffer(other, 0).images)) != set(pixels(buffer(replaying, 0).images))


@pytest.mark.parametrize("method", ("replay", "generative"))
def test_replayed_images_come_with_the_task_ids_that_they_are_remembered_under(method, three):
    learner = at_task(tiny(method, batch=64), three, 2)
    batch = replayed(learner)
    assert len(batch.task) == 64
    known = {task: set(pixels(learner.method.remember(learner, task))) for task in range(2)}
    assert not known[0] & known[1]
    assert {task for task, images in known.items() for image in images} == set(batch.task.tolist())
    for image, task in zip(pixels(to_uint8(batch.x0)), batch.task.tolist()):
        assert image in known[task]


def test_each_step_replays_other_images_at_other_timesteps(three):
    learner = at_task(tiny("replay", buffer=50), three, 1)
    first = replayed(learner)
    learner.update()
    second = replayed(learner)
    assert not torch.equal(first.x0, second.x0) and not torch.equal(first.t, second.t)


# Generative replay


def test_the_pool_is_drawn_by_the_averaged_network_from_before_the_task(three):
    run = tiny("generative", steps=3, learning_rate=2e-2)

    def drawn(learner, net, task):
        noise = torch.randn(run.pool, 1, 8, 8, generator=learner.generator(f"pool {task}", step=0))
        model = lambda x, t: net(x, t, torch.full_like(t, task))  # noqa: E731
        return to_uint8(learner.diffusion.sample(model, noise, run.pool_steps, eta=0.0))

    for step in train(run, three):
        learner, state = step.learner, step.learner.method.state
        if step.task > 0:
            assert state["task"].tolist() == [task for task in range(step.task) for _ in range(run.pool)]
            for task in range(step.task):
                pool = state["images"][state["task"] == task]
                assert torch.equal(pool, drawn(learner, averaged, task))
                assert not torch.equal(pool, drawn(learner, plain, task))
        if step.step == run.steps:
            averaged, plain = copy.deepcopy(learner.ema), copy.deepcopy(learner.net).eval()


# Methods of others


class Watching(Method):
    """Notes when the loop calls it, and what it finds then."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = []

    def start_task(self, learner):
        self.calls.append(("start_task", learner.task, learner.step))
        self.before = weights(learner)

    def batch(self, learner, current):
        self.calls.append("batch")
        return current

    def penalty(self, learner):
        self.calls.append("penalty")

    def adjust_gradients(self, learner):
        self.calls.append("adjust_gradients")
        self.gradient = max(p.grad.abs().max().item() for p in learner.net.parameters())
        self.weights = copied(learner.net)

    def after_step(self, learner):
        self.calls.append("after_step")
        assert not same(self.weights, copied(learner.net))

    def end_task(self, learner):
        self.calls.append(("end_task", learner.task, learner.step))
        self.end = weights(learner)


def with_method(patch, method, **changes):
    patch.setitem(METHODS, "own", method)
    return tiny("own", **changes)


def test_the_loop_calls_a_method_at_the_promised_moments(monkeypatch, three):
    run = with_method(monkeypatch, Watching, steps=2)
    for step in train(run, three):
        method = step.learner.method
        if step.task and step.step == 1:
            assert same(method.before, end)
        end = weights(step.learner)
        assert method.gradient > 0
        assert step.task == 0 or step.step == 1 or same(method.end, end)  # what is measured is what it left
    one_step = ["batch", "penalty", "adjust_gradients", "after_step"]
    later = [[("start_task", k, 0), *one_step * 2, ("end_task", k, 2)] for k in (1, 2)]
    assert method.calls == [*one_step * 2, *later[0], *later[1]]


def test_gradients_adjusted_to_zero_leave_the_network_as_it_is(monkeypatch, three):
    class Frozen(Method):
        def adjust_gradients(self, learner):
            for p in learner.net.parameters():
                p.grad.zero_()

    run = with_method(monkeypatch, Frozen, steps=2)
    start = weights(Learner(run, three))
    assert all(same(after, start) for after in weights_after_tasks(run, three))


def test_adjusted_gradients_are_clipped(monkeypatch, three):
    class Exploding(Method):
        def adjust_gradients(self, learner):
            for p in learner.net.parameters():
                p.grad.fill_(1e3)

    learner = Learner(with_method(monkeypatch, Exploding, clip=0.5), three)
    learner.update()
    assert torch.stack([p.grad.norm() for p in learner.net.parameters()]).norm().item() == pytest.approx(0.5, rel=1e-3)


def test_the_loss_is_the_penalty_plus_shares_of_squared_errors_against_the_targets(monkeypatch, three):
    class Teaching(Method):
        def batch(self, learner, current):
            x, share = torch.zeros(3, 1, 8, 8), torch.tensor([0.1, 0.2, 0.4])
            return current + Batch(x, torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]), x, share, x + torch.tensor(2.0))

        def penalty(self, learner):
            return torch.tensor(7.0)

    learner = Learner(with_method(monkeypatch, Teaching), three)
    current = learner.draw(three[0].train.images, 0, "current")
    # A new network predicts zero: what is left of each error is its target.
    assert learner.update().item() == pytest.approx(current.noise.square().mean().item() + 0.7 * 4 + 7, rel=1e-5)


# Hooks for what replay and penalties cannot do


class Moving(Method):
    """Keeps state from the first step on, wraps the network, and counts its steps."""

    label = "Moving"
    shares_first_task = False

    class Scaled(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.scale = net, torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, task):
            return self.scale * self.net(x, t, task)

    @dataclasses.dataclass(frozen=True)
    class Options(Parameters):
        factor: float = number(1.0, 0, 2, help="of what is counted")

    def build(self, net):
        return self.Scaled(net)

    def batch(self, learner, current):  # as joint training does: another batch altogether
        return learner.draw(learner.images[0], 0, "joint", size=5)

    def adjust_gradients(self, learner):
        self.other = learner.loss(learner.draw(learner.images[0], 0, "other", size=3)).item()

    def after_step(self, learner):
        self.state["steps"] = self.state.get("steps", torch.zeros(())) + self.options.factor


def test_a_method_that_acts_in_the_first_task_has_one_of_its_own_and_continues_bit_for_bit(
    monkeypatch, three, tmp_path
):
    run = with_method(monkeypatch, Moving, steps=2, options={"factor": 2})
    assert run.first_task_name != tiny(steps=2).first_task_name
    assert run.first_task_name != tiny("own", steps=2).first_task_name  # the options count there, too
    whole = weights_after_tasks(run, three)
    for step in train(run, three, tmp_path / run.name):
        if step.total == 3:
            break
    *_, last = train(run, three, tmp_path / run.name)
    assert same(weights(last.learner), whole[-1]) and "ema scale" in whole[-1]
    assert last.learner.method.state["steps"] == 2 * 6 and last.learner.method.other > 0


@pytest.mark.parametrize("mistake", [TypeError, ValueError, KeyError, NameError, ZeroDivisionError, RuntimeError])
@pytest.mark.parametrize("hook", ["build", "batch", "held"])
def test_a_mistake_in_a_hook_says_where_it_is_in_one_line(monkeypatch, three, mistake, hook, tmp_path):
    class Mistaken(Method):
        label = "Mistaken"

    def mistaken(self, *words):
        raise mistake("and\nwhy")

    setattr(Mistaken, hook, mistaken)
    run = with_method(monkeypatch, Mistaken, steps=1)
    with pytest.raises(Problem, match=rf"^[^\n]*test_methods\.py:\d+: {mistake.__name__}: [^\n]*why.?$"):
        measure = Measurer(run, three)
        for step in train(run, three):
            measure(step)
        measure.save(tmp_path / run.name, step.learner)


def spoilt(batch: Batch, **changes) -> Batch:
    return dataclasses.replace(batch, **{name: change(getattr(batch, name)) for name, change in changes.items()})


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"share": lambda v: v[:, None]},
            r"share is torch.float32 \(16, 1\), expected torch.float32 \(16,\) of at least one example",
        ),
        ({"share": lambda v: v * math.nan}, "share, x0, noise or target has numbers that are not finite"),
        ({"target": lambda v: v[:1]}, r"target is .*\(1, 1, 8, 8\), expected torch.float32 \(16, 1, 8, 8\) .*"),
        ({"target": lambda v: v.clone().requires_grad_()}, r"target has a gradient, .*torch.no_grad\(\)"),
        ({"x0": lambda v: (v + 1) * 127.5}, r"x0 reaches 25\d.*, expected \[-1, 1\]: to_model\(\) makes it so"),
        ({"x0": lambda v: v - 2}, r"x0 reaches 3, expected \[-1, 1\]: to_model\(\) makes it so"),
        ({"x0": lambda v: to_uint8(v)}, "x0 is torch.uint8 .*, expected torch.float32 .*"),
        ({"x0": lambda v: v * math.nan}, "share, x0, noise or target has numbers that are not finite"),
        ({"noise": lambda v: v.double()}, "noise is torch.float64 .*, expected torch.float32 .*"),
        ({"t": lambda v: v - 1000}, r"t is -\d+ .. -\d+, expected 0 .. 999"),
        ({"t": lambda v: v.float()}, r"t is torch.float32 \(16,\), expected torch.int64 \(16,\)"),
        ({"task": lambda v: v[:, None]}, r"task is torch.int64 \(16, 1\), expected torch.int64 \(16,\)"),
        ({"task": lambda v: v + 2}, "task is 3 .. 3, expected 0 .. 2"),
        (dict.fromkeys(("x0", "task", "t", "noise", "share", "target"), lambda v: v[:0]), ".* of at least one example"),
    ],
)
def test_a_batch_that_would_train_wrongly_without_a_word_is_an_error_in_the_first_step_of_a_task(
    changes, words, monkeypatch, three
):
    class Spoiling(Method):
        label = "Spoiling"

        def batch(self, learner, current):
            return spoilt(current, **changes) if learner.task else current

    steps = train(with_method(monkeypatch, Spoiling, batch=16, steps=2), three)
    next(steps), next(steps)
    with pytest.raises(Problem, match=f"^batch: {words}$"):
        next(steps)


def test_what_a_method_calls_wrongly_is_said_to_be_its_own_line(monkeypatch, three):
    """Not that of the network, or of a library, which fails."""

    class Calling(Method):
        label = "Calling"

        def penalty(self, learner):
            return learner.net(torch.zeros(1, 3, 8, 8), torch.tensor([0]), torch.tensor([0])).sum()

    with pytest.raises(Problem, match=r"^[^\n]*test_methods\.py:\d+: RuntimeError: [^\n]*$"):
        next(train(with_method(monkeypatch, Calling, steps=1), three))


def test_a_mistake_in_a_method_of_an_installed_package_is_that_methods_line(monkeypatch):
    packages = Path(torch.__file__).parents[1]
    monkeypatch.setattr(errors, "__file__", str(packages / "cldiff" / "errors.py"))
    files = ("cldiff/train.py", "cldiff/methods/own.py", "cldiff/unet.py", "torch/nn/modules/conv.py")
    frames = [traceback.FrameSummary(str(packages / file), 1, "f") for file in files]
    assert errors._asked(frames).filename.endswith("methods/own.py")
    assert errors._asked([*frames[:1], *frames[2:]]).filename.endswith("unet.py")


def test_a_mistake_in_a_metric_says_where_it_is_in_one_line(monkeypatch, three):
    def mistaken(drawn):
        raise KeyError("colour")

    monkeypatch.setitem(METRICS, "own", OfClasses("own", 1, mistaken))
    run = tiny(steps=1)
    with pytest.raises(Problem, match=r"^[^\n]*test_methods\.py:\d+: KeyError: 'colour'$"):
        measure = Measurer(run, three)
        for step in train(run, three):
            measure(step)


def test_state_in_the_shared_first_task_is_an_error(monkeypatch, three):
    class Careless(Moving):
        shares_first_task = True

    with pytest.raises(TrainingError, match="own keeps state in the first task.*shares_first_task = False"):
        next(train(with_method(monkeypatch, Careless), three))


def test_options_are_checked_and_count_in_the_name_off_their_defaults(monkeypatch):
    run = with_method(monkeypatch, Moving)
    assert tiny("own", options={"factor": 1}).name == run.name and run.options == {}
    other = tiny("own", options={"factor": 1.5})
    assert (
        other.name != run.name and other.label == "Moving, factor 1.5" and tiny("own", options=other.options) == other
    )
    with pytest.raises(ValueError, match="^factor=3.0: expected 0 .. 2$"):
        tiny("own", options={"factor": 3})
    with pytest.raises(TypeError, match="^factor='a': expected a float, not str$"):
        tiny("own", options={"factor": "a"})
    with pytest.raises(ValueError, match="^unknown option 'facter' of own; known: factor$"):
        tiny("own", options={"facter": 1})
    name = run.name
    monkeypatch.setattr(Moving, "version", 2)
    assert run.name != name


def test_the_compiler_is_loaded_where_it_is_used_alone():
    """A second or more of each import, in every kernel and process."""
    lines = "import sys, cldiff.work, cldiff.report.plots; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", lines], check=True)


@pytest.mark.parametrize("page, options, above", [("docs/extending.md", {"above": 500}, 500), ("README.md", {}, 250)])
def test_the_method_of_the_docs_replays_late_timesteps_alone(page, options, above, monkeypatch, three):
    names = {"__name__": "cldiff.methods.late", "__package__": "cldiff.methods"}
    exec(documented("class LateReplay", page), names)
    monkeypatch.setitem(METHODS, "late", names["LateReplay"])
    learner = Learner(tiny("late", options=options), three)
    learner.next_task()
    for learner.step in range(3):
        current = learner.draw(learner.images[1], 1, "current")
        both = learner.method.batch(learner, current)
        new, old = both.share.split(len(current.t))
        assert (new > 0).all() and torch.equal(old > 0, both.t[len(new) :] >= above)


def test_the_other_method_of_the_docs_is_the_one_that_is_there(monkeypatch, trained, three):
    names = {"__name__": "cldiff.methods.own", "__package__": "cldiff.methods"}
    exec(documented("class ModelAveraging"), names)
    monkeypatch.setitem(METHODS, "own", names["ModelAveraging"])
    assert all(map(same, weights_after_tasks(tiny("own", steps=2), three), trained("averaging")))


def test_the_test_of_the_docs_sees_early_timesteps_that_are_replayed(monkeypatch, three):
    names, tests = {"__name__": "cldiff.methods.late", "__package__": "cldiff.methods"}, {}
    exec(documented("test_only_late"), tests)
    for change, right in (("", True), (" + 300", False), (" - 400", False)):
        exec(documented("class LateReplay").replace("self.options.above", f"self.options.above{change}"), names)
        monkeypatch.setitem(METHODS, "late", names["LateReplay"])
        with nullcontext() if right else pytest.raises(AssertionError):
            tests["test_only_late_timesteps_are_replayed"](three)


@pytest.mark.parametrize("method", METHODS)
def test_no_two_things_of_a_step_are_drawn_by_the_same_random_numbers(method, three, monkeypatch):
    """But the two batches that self-tuned replay compares."""
    options = {**OPTIONS, "timesteps": {"drawn": True}}.get(method, {})
    learner, purposes = at_task(tiny(method, options=options), three, 2), []
    generator = learner.generator
    monkeypatch.setattr(learner, "generator", lambda purpose: purposes.append(purpose) or generator(purpose))
    learner.update()
    twice = ["self-tuning"] if method == "self_tuned" else []
    assert sorted(purposes) == sorted([*set(purposes), *twice])


def test_a_batch_that_would_train_wrongly_is_an_error_in_the_first_task_too(monkeypatch, three):
    class Spoiling(Method):
        label = "Spoiling"
        shares_first_task = False

        def batch(self, learner, current):
            return spoilt(current, share=lambda v: v * math.nan)

    with pytest.raises(Problem, match="^batch: share, x0, noise or target has numbers that are not finite$"):
        next(train(with_method(monkeypatch, Spoiling), three))
