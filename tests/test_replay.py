"""Distilled, timestep-aware and self-tuned replay."""

import copy
import math
import re
from dataclasses import fields
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from conftest import copied, same, tiny, weights_after_tasks
from test_methods import at_task, pixels, prepared, replayed

from cldiff.diffusion import Diffusion
from cldiff.methods.timesteps import READ, WEIGHTINGS, TimestepReplay
from cldiff.train import train


def noised(learner, batch):
    return learner.diffusion.noised(batch.x0, batch.t, batch.noise)


# Distilled replay


def taught(learner, net, batch):
    with torch.no_grad():
        return net.eval()(noised(learner, batch), batch.t, batch.task)


@pytest.mark.parametrize("which, other", [("average", "raw"), ("raw", "average")])
def test_the_target_is_the_prediction_of_the_network_before_the_task(which, other, three):
    """Trained for some steps: the average differs from the network, and neither may move with it; no dropout."""
    run = tiny("distilled", steps=3, learning_rate=2e-2, dropout=0.5, options={"teacher": which})
    before = {}
    for step in train(run, three):
        learner = step.learner
        if step.task > 0:
            batch = replayed(learner)
            torch.testing.assert_close(batch.target, taught(learner, before[which], batch))
            assert (batch.target - taught(learner, before[other], batch)).abs().max() > 1e-3
            assert (batch.target - batch.noise).abs().max() > 0.1
        if step.step == run.steps:
            before = {"average": copy.deepcopy(learner.ema), "raw": copy.deepcopy(learner.net)}


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_gradient_is_that_of_both_errors_against_teacher_and_noise(noise, three):
    learner, _ = prepared("distilled", three, options={"noise": noise})
    for value in learner.method.state.values():
        if value.is_floating_point():  # a teacher that says something
            value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    teacher = copy.deepcopy(learner.net)
    teacher.load_state_dict(
        {name: learner.method.state.get(f"teacher.{name}", value) for name, value in teacher.state_dict().items()}
    )
    current = learner.draw(three[2].train.images, 2, "current")
    old = learner.draw(learner.method.state["images"], learner.method.state["task"], "replay")
    guess = learner.net(noised(learner, old), old.t, old.task)
    own = (guess - taught(learner, teacher, old)).square().mean() + noise * (guess - old.noise).square().mean()
    whole = (learner.net(noised(learner, current), current.t, current.task) - current.noise).square().mean() + 0.3 * own
    named = dict(learner.net.named_parameters())
    wanted = torch.autograd.grad(whole, named.values())
    learner.update()
    for name, gradient in zip(named, wanted):
        torch.testing.assert_close(named[name].grad, gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_from_a_timestep_on_the_target_is_the_noise_alone(three):
    plain = replayed(at_task(tiny("replay", batch=64), three, 1))
    until = plain.t.sort().values[32].item()  # one of the batch's: the first with the noise
    batch = replayed(at_task(tiny("distilled", batch=64, options={"until": until, "noise": 0.5}), three, 1))
    late = batch.t >= until
    assert 10 < late.sum() < 54 and torch.equal(batch.t, plain.t) and torch.equal(batch.x0, plain.x0)
    assert torch.equal(batch.target[late], plain.noise[late]) and torch.equal(batch.share[late], plain.share[late])
    # A new network predicts 0: the mean of 0 and the noise, at weights 1 and 0.5.
    torch.testing.assert_close(batch.target[~late], plain.noise[~late] / 3)
    torch.testing.assert_close(batch.share[~late], 1.5 * plain.share[~late])


def test_by_default_the_teacher_is_asked_at_all_timesteps(three):
    """Of any number of them: a new network predicts 0, at t = 1,000 and later too."""
    batch = replayed(at_task(tiny("distilled", batch=64, timesteps=4000, early=200, late=2000), three, 1))
    assert (batch.t >= 1000).any() and not batch.target.any()


# Timestep-aware replay

BETA = [0.0001 + (0.02 - 0.0001) * t / 999 for t in range(1000)]
ABAR = [math.prod(1 - beta for beta in BETA[: t + 1]) for t in range(1000)]
SNR = [a / (1 - a) for a in ABAR]
BY_HAND = [  # options, the shape at timestep t before it is brought to mean 1
    ({"weighting": "constant"}, lambda t: 1),
    ({"weighting": "step", "at": 300}, lambda t: 1 if t >= 300 else 0),
    ({"weighting": "step", "at": 300, "low": 0.1}, lambda t: 1 if t >= 300 else 0.1),
    ({"weighting": "step", "at": 300, "mirrored": True}, lambda t: 1 if t < 300 else 0),
    ({"weighting": "power", "power": 2.0}, lambda t: (t / 1000) ** 2),
    ({"weighting": "power", "power": 2.0, "mirrored": True}, lambda t: (1 - t / 1000) ** 2),
    ({}, lambda t: 1 - ABAR[t]),  # P2
    ({"mirrored": True}, lambda t: ABAR[t]),
    ({"snr": 1.9, "power": 2.0, "low": 0.01}, lambda t: 0.01 + 0.99 / (1 + (SNR[t] / 1.9) ** 2)),
    ({"weighting": "hump", "snr": 0.5}, lambda t: math.exp(-(math.log(SNR[t] / 0.5) ** 2) / 2)),
    ({"weighting": "hump", "mirrored": True}, lambda t: 1 - math.exp(-(math.log(SNR[t]) ** 2) / 2)),
    ({"weighting": "hump", "power": 0.5}, lambda t: math.exp(-((math.log(SNR[t]) / 2) ** 2) / 2)),
]


def test_every_weighting_is_computed_by_hand_below():
    assert {options.get("weighting", "sigmoid") for options, _ in BY_HAND} == set(WEIGHTINGS) == set(READ)


@pytest.mark.parametrize("options, by_hand", BY_HAND, ids=[str(options) for options, _ in BY_HAND])
def test_replayed_images_weigh_by_the_shape_at_equal_mean(options, by_hand, three):
    learner = at_task(tiny("timesteps", weight=0.3, batch=64, options=options), three, 1)
    plain = replayed(at_task(tiny("replay", weight=0.3, batch=64), three, 1))
    batch = replayed(learner)
    assert torch.equal(batch.t, plain.t) and torch.equal(batch.target, plain.noise)
    shape = [by_hand(t) for t in range(1000)]
    wanted = torch.tensor([0.3 / 64 * shape[t] / (sum(shape) / 1000) for t in batch.t])
    torch.testing.assert_close(batch.share, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "method, options, words",
    [
        ("timesteps", {"weighting": "step", "at": 1000}, "at=1000: expected 0 .. 999, as timesteps=1000"),
        ("timesteps", {"weighting": "step", "at": 0, "mirrored": True}, "at=0: expected 1 .. 1000, as timesteps=1000"),
        ("timesteps", {"weighting": "power", "power": 1e6}, "power=1000000.0: expected 0.001 .. 10"),
        (
            "timesteps",
            {"weighting": "hump", "power": 1e-12, "mirrored": True},
            "power=1e-12: expected 0.001 .. 10",
        ),
        ("timesteps", {"snr": 1e-9}, "snr=1e-09: expected 0.0001 .. 1000"),
        ("timesteps", {"on": "current", "drawn": True}, "drawn=True: expected on='replay', as the timesteps of the "),
        (
            "timesteps",
            {"at": 700},
            "at=700: the sigmoid has none; expected options of its own (mirrored, low, snr, power)",
        ),
        ("timesteps", {"weighting": "power", "snr": 2.0}, "snr=2.0: the power has none; expected options of its own ("),
        (
            "timesteps",
            {"weighting": "constant", "low": 0.1},
            "low=0.1: the constant has none; expected options of its own (none)",
        ),
        ("distilled", {"until": 1001}, "until=1001: expected at most timesteps=1000"),
    ],
)
def test_options_that_leave_no_shape_or_no_effect_are_one_line(method, options, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}") as error:
        tiny(method, options=options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("timesteps", (20, 21, 300, 1000, 4000))
def test_no_weighting_that_a_run_takes_is_0_all_over(timesteps):
    learner = SimpleNamespace(diffusion=Diffusion(timesteps))
    found = {f.name: f.metadata for f in fields(TimestepReplay.Options)}
    powers = (found["power"]["low"], 1.0, found["power"]["high"])
    low, high = (math.log(found["snr"][end]) for end in ("low", "high"))
    snrs = torch.linspace(low + 1e-9, high - 1e-9, 99, dtype=torch.float64).exp().tolist()
    for name, mirrored in product(WEIGHTINGS, (False, True)):
        read = {  # the options of a shape; those that it does not read are at their defaults
            "constant": {},
            "step": {"at": (int(mirrored), timesteps - 1 + mirrored)},
            "power": {"power": powers},
        }.get(name, {"power": powers, "snr": snrs})
        for values in product(*read.values()):
            own = {"weighting": name, "mirrored": mirrored, **dict(zip(read, values))}
            options = TimestepReplay.Options(**own)
            if "at" in read:
                TimestepReplay.check(options, timesteps)
            shape = TimestepReplay(1.0, options).shape(learner)
            assert shape.isfinite().all() and shape.min() >= 0 and shape.mean() == pytest.approx(1), own


def test_timesteps_are_drawn_by_the_shape_and_anew_in_each_step(three):
    learner = at_task(
        tiny("timesteps", weight=0.3, batch=4000, options={"drawn": True, "weighting": "power"}), three, 1
    )
    batch = replayed(learner)
    assert torch.allclose(batch.share, torch.tensor(0.3 / 4000))
    assert batch.t.double().mean().item() == pytest.approx(1000 * 2 / 3, abs=15)  # of density 2 u
    assert (batch.t < 100).sum() < 80  # 1 % of 4,000, where evenly drawn are 400
    learner.step += 1
    assert not torch.equal(replayed(learner).t, batch.t)


def test_the_control_weighs_the_current_loss_and_not_the_replay(three):
    learner = at_task(tiny("timesteps", weight=0.3, batch=64, options={"on": "current"}), three, 1)
    plain = at_task(tiny("replay", weight=0.3, batch=64), three, 1)
    current = learner.draw(learner.images[1], 1, "current")
    batch, wanted = (one.method.batch(one, current) for one in (learner, plain))
    p2 = torch.tensor([1 - ABAR[t] for t in current.t]) / (1 - sum(ABAR) / 1000)
    torch.testing.assert_close(batch.share[:64], wanted.share[:64] * p2, rtol=1e-4, atol=1e-7)
    assert torch.equal(batch.share[64:], wanted.share[64:])


@pytest.mark.parametrize("weight, index", [(0.3, 0), (0.0, 1)])
def test_the_control_weighs_nothing_in_the_shared_first_task_and_with_weight_0(weight, index, three):
    learner = at_task(tiny("timesteps", weight=weight, options={"on": "current"}), three, index)
    current = learner.draw(learner.images[index], index, "current")
    assert learner.method.batch(learner, current) is current


def test_a_constant_shape_is_experience_replay_bit_for_bit(three, trained):
    constant = tiny("timesteps", weight=1.0, steps=2, options={"weighting": "constant"})
    assert all(map(same, weights_after_tasks(constant, three), trained("replay", weight=1.0)))


# Self-tuned replay


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_teacher_predicts_in_the_precision_of_training(precision, three):
    learner = at_task(tiny("distilled", precision=precision), three, 1)
    seen = []
    learner.ema.first.register_forward_hook(lambda layer, inputs, found: seen.append(found.dtype))
    assert replayed(learner).target.dtype == torch.float32
    assert seen == [getattr(torch, precision)]


def test_a_tenth_of_the_buffer_is_kept_apart(three):
    learner = at_task(tiny("self_tuned", buffer=40, batch=256), three, 2)
    plain, state = at_task(tiny("replay", buffer=40), three, 2).method.state, learner.method.state
    assert len(state["unseen"]) == 2 * 4 and len(state["images"]) == 2 * 36
    for task in range(2):
        kept = [set(pixels(state[a][state[b] == task])) for a, b in (("images", "task"), ("unseen", "unseen task"))]
        assert [len(one) for one in kept] == [36, 4] and not kept[0] & kept[1]
        assert kept[0] | kept[1] == set(pixels(plain["images"][plain["task"] == task]))
    assert at_task(tiny("self_tuned", buffer=5), three, 2).method.state["unseen task"].tolist() == [0, 1]
    pairs = at_task(tiny("self_tuned", buffer=2), three, 2).method.state
    assert [pairs[name].tolist() for name in ("task", "unseen task")] == [[0, 1], [0, 1]]
    single = at_task(tiny("self_tuned", buffer=1), three, 1)
    assert len(single.method.state["images"]) == 1  # plain replay of that image
    assert len(single.method.state["unseen"]) == 1 == single.method.held(single)["images"]  # it is both


def test_the_weight_falls_by_the_ratio_of_the_losses_in_each_bin(three):
    learner = at_task(tiny("self_tuned", weight=0.5, batch=64, buffer=40), three, 1)
    learner.step = 1  # no measurement
    losses = learner.method.state["losses"]
    losses[0], losses[1] = torch.arange(20) + 1, 10.0
    batch = replayed(learner)
    wanted = torch.tensor([0.5 / 64 * min(1, (t // 50 + 1) / 10) for t in batch.t.tolist()])
    torch.testing.assert_close(batch.share, wanted)
    assert torch.equal(batch.target, batch.noise)


def test_both_losses_are_measured_by_the_average_in_their_bins_and_averaged_over_time(three):
    learner = at_task(tiny("self_tuned", buffer=40, options={"bins": 4}), three, 1)
    start = copied(learner.net)
    with torch.no_grad():  # a prediction of 3 from t = 500 on, of 0 before: errors of 1 and of 1 + 9
        learner.ema.forward = lambda x, t, task: torch.where(t >= 500, 3.0, 0.0).view(-1, 1, 1, 1).expand_as(x)
    learner.method.measure(learner)
    once = learner.method.state["losses"].clone()
    torch.testing.assert_close(once, torch.tensor([[1.0, 1.0, 10.0, 10.0]] * 2), rtol=0.35, atol=0)
    assert torch.equal(once[0], once[1])  # the same timesteps and noise
    learner.step = 50
    learner.ema.forward = lambda x, t, task: torch.full_like(x, 10.0)
    learner.method.measure(learner)
    torch.testing.assert_close(learner.method.state["losses"], 0.9 * once + 0.1 * 101, rtol=0.05, atol=0)
    assert same(start, copied(learner.net))


def test_a_measurement_is_of_noised_images_under_their_ids_at_timesteps_all_over_the_bins(three):
    learner = at_task(tiny("self_tuned", buffer=40, options={"bins": 4}), three, 2)
    state, calls = learner.method.state, []
    learner.ema.forward = lambda x, t, task: calls.append((x, t, task)) or (task + 0.5).view(-1, 1, 1, 1) * x
    learner.method.measure(learner)
    assert len(calls) == 2
    for losses, names, (x, t, task) in zip(state["losses"], (("images", "task"), ("unseen", "unseen task")), calls):
        drawn = learner.draw(*(state[name] for name in names), "self-tuning", size=16)
        assert torch.equal(task, drawn.task) and set(task.tolist()) == {0, 1}
        assert torch.equal(x, learner.diffusion.noised(drawn.x0, t, drawn.noise))
        errors = [((k + 0.5) * image - noise).square().mean() for image, noise, k in zip(x, drawn.noise, task)]
        wanted = [sum(e for e, s in zip(errors, t) if s // 250 == bin) / 4 for bin in range(4)]
        torch.testing.assert_close(losses, torch.stack(wanted))
        assert torch.bincount(t // 250).tolist() == [4] * 4 and (t % 250).unique().numel() > 12


@pytest.mark.parametrize("timesteps, bins", [(1000, 20), (50, 20), (1000, 64), (1000, 7), (50, 50)])
def test_a_timestep_is_measured_in_the_bin_whose_weight_it_has(timesteps, bins, three):
    changes = dict(timesteps=timesteps, early=0, late=timesteps - 1)
    learner = at_task(tiny("self_tuned", options={"bins": bins}, **changes), three, 1)
    seen, wanted = [], torch.arange(4 * bins) % bins
    learner.ema.forward = lambda x, t, task: seen.append(t) or torch.zeros_like(x)
    for learner.step in range(5):
        learner.method.measure(learner)
    assert len(seen) == 10 and all(torch.equal(t * bins // timesteps, wanted) for t in seen)


def test_more_bins_than_timesteps_are_refused():
    with pytest.raises(ValueError, match="^bins=51: expected at most one for each of timesteps=50$"):
        tiny("self_tuned", options={"bins": 51}, timesteps=50, early=0, late=49)


def test_measurements_are_so_many_steps_apart_and_begin_anew_with_a_task(three):
    learner = at_task(tiny("self_tuned", options={"every": 3}), three, 1)
    at = []
    learner.method.measure = lambda learner: at.append(learner.step)
    for learner.step in range(7):
        replayed(learner)
    assert at == [0, 3, 6]
    learner.method.state["losses"] += 1
    learner.next_task()
    assert not learner.method.state["losses"].any()


def test_each_measurement_is_at_other_timesteps(three):
    learner, seen = at_task(tiny("self_tuned"), three, 1), []
    learner.ema.forward = lambda x, t, task: seen.append(t) or torch.zeros_like(x)
    for learner.step in range(2):
        learner.method.measure(learner)
    buffer, unseen, later, _ = seen
    assert torch.equal(buffer, unseen) and not torch.equal(buffer, later)


def test_a_teacher_may_be_asked_up_to_the_last_timestep():
    assert tiny("distilled", options={"until": 1000}).options == {"until": 1000}
