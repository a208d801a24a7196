import math
import pickle
from pathlib import Path

import pytest
import torch
from conftest import copied, same, tiny, weights, weights_after_tasks

from cldiff.methods import METHODS, Method
from cldiff.train import Learner, pick_device, train


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
    steps = [(step.task, step.step, step.total) for step in train(tiny(steps=2), three, tmp_path / "run" if keep else None)]
    assert steps == [(0, 1, 1), (0, 2, 2), (1, 1, 3), (1, 2, 4), (2, 1, 5), (2, 2, 6)]


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
    state = torch.get_rng_state()
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


def test_each_step_draws_anew(three):
    learner = Learner(tiny(), three)
    drawn = []
    for _ in range(3):
        batch = learner.draw(three[0].train.images, 0, "current")
        drawn += [tuple(batch.t.tolist()), tuple(batch.noise.flatten().tolist()), tuple(batch.x0.flatten().tolist()),
                  learner.derive("dropout")]
        learner.update()
    learner.next_task()
    drawn += [tuple(learner.draw(three[1].train.images, 1, "current").t.tolist()), learner.derive("dropout")]
    assert len(set(drawn)) == len(drawn)


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
            return self.weight * sum((p - self.state[name]).square().sum() for name, p in learner.net.named_parameters())


def measured(step) -> None:
    learner, run = step.learner, step.learner.run
    learner.curves.append({"step": step.total, "loss": step.loss.item()})
    if step.step == run.steps:
        images = learner.sample(step.task, 3, 2, 0.0, "samples")
        learner.scores.append({"after_task": step.task + 1, "value": images.mean().item(), "split": None})
        learner.samples.append(images)


def record(learner) -> tuple:
    return learner.scores, learner.curves, [images.tolist() for images in learner.samples]


@pytest.mark.parametrize("method", [*METHODS, "remembering"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one_bit_for_bit(method, three, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "remembering", Remembering)
    run = tiny(method, steps=2)
    for step in train(run, three):
        measured(step)
    began = []
    for stop in (5, 3, 5, math.inf):  # of all steps; the first two of these stop before a checkpoint of task 2
        for number, resumed in enumerate(train(run, three, tmp_path / "run")):
            began += [resumed.total] if number == 0 else []
            measured(resumed)
            if resumed.total == min(stop, began[-1] + 1):
                break
        else:
            break
    assert began == [1, 3, 5]
    assert same(weights(resumed.learner), weights(step.learner))
    assert record(resumed.learner) == record(step.learner)
