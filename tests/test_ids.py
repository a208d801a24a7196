"""The network is given the ID of the task, or that of the class."""

import pytest
import torch
from conftest import tiny

import cldiff.measure
from cldiff import METHODS, Measurer, load_scores, make_run
from cldiff.diffusion import Diffusion
from cldiff.ids import Ids
from cldiff.learner import Learner
from cldiff.metrics import Predictor
from cldiff.tasks import load_tasks, to_uint8
from cldiff.train import train

ONE_NETWORK = [name for name, method in METHODS.items() if not method.by_task]


@pytest.fixture(scope="module")
def backwards():
    """Classes 8, 9, then 6, 7, then 4, 5: their IDs are 0 to 5."""
    return load_tasks("digits", first=3, order="reversed")


PLACE = {8: 0, 9: 1, 6: 2, 7: 3, 4: 4, 5: 5}


def own(method: str) -> dict:
    return {"images": 4} if "images" in METHODS[method].Options.names() else {}


def test_ids_count_classes_in_the_order_in_which_they_are_learned(backwards):
    ids = Ids(backwards, by_class=True)
    assert ids.number == 6 and [part.tolist() for part in ids.own] == [[0, 1], [2, 3], [4, 5]]
    assert ids.of(1, torch.tensor([7, 6, 6])).tolist() == [3, 2, 2] and ids.past(2).tolist() == [0, 1, 2, 3]
    assert ids.spread(2, 5).tolist() == [4, 5, 4, 5, 4]
    for task, train_ids in zip(backwards, ids.train):
        assert train_ids.tolist() == [PLACE[label] for label in task.train.labels.tolist()]


def test_ids_of_tasks_are_their_numbers(backwards):
    ids = Ids(backwards, by_class=False)
    assert ids.number == 3 and ids.of(1, torch.tensor([7, 6])).tolist() == [1, 1] and ids.past(2).tolist() == [0, 1]
    assert ids.spread(2, 3).tolist() == [2, 2, 2]
    ((number, images),) = ids.parts(1, backwards[1].test)
    assert number == 1 and torch.equal(images, backwards[1].test.images)


def test_parts_are_the_images_of_each_class(backwards):
    split = backwards[1].test
    parts = dict(Ids(backwards, by_class=True).parts(1, split))
    assert parts.keys() == {2, 3} and sum(map(len, parts.values())) == len(split)
    assert torch.equal(parts[3], split.images[split.labels == 7])
    assert dict(Ids(backwards, by_class=True).parts(1, split[split.labels == 7])).keys() == {3}


@pytest.mark.parametrize("method", ONE_NETWORK)
def test_every_image_that_a_method_draws_has_the_id_of_its_class(method, backwards, monkeypatch):
    """Those of draw(), and those of a batch that a method made by hand. Images that the model draws itself are looked at
    below."""
    places = {i.numpy().tobytes(): PLACE[n] for t in backwards for i, n in zip(t.train.images, t.train.labels.tolist())}
    real, draw, loss = [], Learner.draw, Learner.loss

    def look(batch):
        for image, number in zip(to_uint8(batch.x0), batch.task.tolist()):
            if (place := places.get(image.numpy().tobytes())) is not None:
                assert number == place
                real.append(number)
        return batch

    monkeypatch.setattr(Learner, "draw", lambda *words, **how: look(draw(*words, **how)))
    if method != "lwf":  # which asks what the images of now are under the IDs of then
        monkeypatch.setattr(Learner, "loss", lambda learner, batch: loss(learner, look(batch)))
    for step in train(tiny(method, condition="class", steps=2, options=own(method)), backwards):
        assert step.learner.arguments["tasks"] == 6
    assert set(real) == set(range(6))


def drawing_ids(monkeypatch) -> None:
    """A model whose every pixel is the ID that it is given."""
    monkeypatch.setattr(Learner, "model", lambda learner, ids: ids)

    def sample(self, ids, x, *words, **how):
        return (torch.as_tensor(ids).view(-1, 1, 1, 1) / 127.5 - 1).expand(x.shape)

    monkeypatch.setattr("cldiff.diffusion.Diffusion.sample", sample)


def test_samples_of_a_task_are_of_its_classes_in_turn(backwards, monkeypatch):
    drawing_ids(monkeypatch)
    learner = Learner(tiny(condition="class"), backwards)
    assert to_uint8(learner.sample(1, 5, 2, 0.0, "samples"))[:, 0, 3, 3].tolist() == [2, 3, 2, 3, 2]
    learner = Learner(tiny(), backwards)
    assert to_uint8(learner.sample(1, 3, 2, 0.0, "samples"))[:, 0, 3, 3].tolist() == [1, 1, 1]
    many = Learner(tiny(condition="class"), backwards).sample(2, 1_003, 2, 0.0, "samples")  # in several batches
    assert to_uint8(many)[:, 0, 0, 0].tolist() == [4 + k % 2 for k in range(1_003)]


@pytest.mark.parametrize("method", ["generative", "generative_distillation"])
def test_images_that_the_model_drew_keep_the_ids_that_they_were_drawn_for(method, backwards, monkeypatch):
    drawing_ids(monkeypatch)
    learner = Learner(tiny(method, condition="class"), backwards)
    learner.task = 1
    learner.next_task()
    state = learner.method.state
    assert state["images"][:, 0, 0, 0].tolist() == state["task"].tolist() and set(state["task"].tolist()) == {
        0,
        1,
        2,
        3,
    }


def test_learning_without_forgetting_asks_for_every_past_class(backwards):
    learner = Learner(tiny("lwf", condition="class", batch=64), backwards)
    learner.task = 1
    learner.next_task()
    batch = learner.method.batch(learner, learner.draw(learner.images[2], learner.ids.train[2], "current"))
    assert set(batch.task[:64].tolist()) == {4, 5} and set(batch.task[64:].tolist()) == {0, 1, 2, 3}


def test_self_tuned_replay_holds_back_one_image_of_each_class_at_least(backwards):
    learner = Learner(tiny("self_tuned", condition="class", buffer=40), backwards)
    learner.task = 1
    learner.next_task()
    state = learner.method.state
    assert set(state["unseen task"].tolist()) == {0, 1, 2, 3} and len(state["unseen task"]) < 20


def test_bounds_are_those_of_images_under_their_classes_ids(backwards, monkeypatch):
    model, seen = Learner.model, []

    def numbered(learner, number):
        closure = model(learner, number)
        closure.number = number
        return closure

    class Spy(Predictor):
        def __init__(self, diffusion, model, images, *words):
            super().__init__(diffusion, model, images, *words)
            seen.extend((model.number, image.numpy().tobytes()) for image in images)

    monkeypatch.setattr(Learner, "model", numbered)
    monkeypatch.setattr(cldiff.measure, "Predictor", Spy)
    run = tiny(condition="class", steps=1)
    measure = Measurer(run, backwards)
    for step in train(run, backwards):
        measure(step)
    places = {i.numpy().tobytes(): PLACE[n] for t in backwards for i, n in zip(t.test.images, t.test.labels.tolist())}
    assert len(seen) == (1 + 2 + 3) * run.bound_images and all(places[image] == number for number, image in seen)
    curves = step.learner.record["curves"]
    assert len(curves) == 3 * (2 * len(run.curve_timesteps) + 1)


def test_losses_of_classes_are_those_of_their_ids_and_weigh_by_their_images(three, monkeypatch):
    """The network predicts 10 for the second class of task 1 and 0 for the first: squared errors of 101 and 1."""

    def predicting(learner, number):
        return lambda x, t: 0 * x + 10.0 * torch.as_tensor(number).float().view(-1, 1, 1, 1)

    monkeypatch.setattr(Learner, "model", predicting)
    run = tiny(condition="class", steps=1, curve_images=9)
    measure = Measurer(run, three[:1])
    (step,) = train(run, three[:1])
    measure(step)
    share = (three[0].validation.labels[:9] == 1).double().mean().item()
    assert share != 0.5
    found = [row["loss"] for row in step.learner.record["curves"] if row["split"] == "validation" and row["loss"]]
    assert sum(found) / len(found) == pytest.approx(1 + 100 * share, rel=0.02)


def test_a_class_conditional_run_is_made_and_read(tmp_path):
    run = tiny("generative_distillation", condition="class", tasks=2)
    assert make_run(run, tmp_path / run.name, device="cpu")
    scores = load_scores(tmp_path, condition="class")
    assert scores.value.notna().all() and {"fid", "bpd", "accuracy"} <= set(scores.metric)


def test_the_bound_of_a_curve_weighs_classes_by_their_images(three, monkeypatch):
    """A bound of 1 for the second class of task 1 and of 0 for the first."""

    def bound(diffusion, number, x0, **how):
        return torch.full((len(x0),), float(number)), None, None

    monkeypatch.setattr(Learner, "model", lambda learner, number: number)
    monkeypatch.setattr(cldiff.measure, "losses_by_timestep", lambda *words: [0.0] * len(words[3]))
    monkeypatch.setattr(Diffusion, "bits_per_dim", bound)
    run = tiny(condition="class", steps=2, curve_every=1, curve_images=9)
    step = next(train(run, three[:1]))
    Measurer(run, three[:1])(step)
    share = (three[0].validation.labels[:9] == 1).double().mean().item()
    assert share != 0.5 and step.learner.record["curves"][-1]["bpd"] == pytest.approx(share)
