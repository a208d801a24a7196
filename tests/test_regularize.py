"""Penalties on parameters that mattered, against closed forms, loops over single images and ways walked by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import copied, tiny
from torch import nn

from cldiff.learner import Learner
from cldiff.methods import METHODS, fisher
from cldiff.train import train

OPTIONS = {"images": 37}  # more than are differentiated at a time, and no multiple of that
SUMMED = ("ewc", "mas", "rank1")  # estimated between two tasks
PENALISED = (*SUMMED, "si")


class Line(nn.Module):
    """Predicts a * x + b[task]: each image's gradients are known in closed form."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([0.7])), nn.Parameter(torch.tensor([0.2, -0.3, 0.5]))
        self.drop = nn.Dropout(0.5)  # must be off

    def forward(self, x, t, task):
        return self.drop(self.a * x + self.b[task].view(-1, 1, 1, 1))


def flat(values) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in values])


def shaken(learner) -> None:
    """Away from the zeros of a new last layer, and from where a task began."""
    with torch.no_grad():
        for i, p in enumerate(learner.net.parameters()):
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))


def into_next_task(learner) -> list:
    """Begins the next task; returns (x_t, t, noise) of the single images that the method drew on the way."""
    drawn, draw, past = [], learner.draw, learner.images[learner.task]

    def watched(images, task, *arguments, **others):
        batch = draw(images, task, *arguments, **others)
        assert images is past and batch.task.tolist() == [learner.task - 1] * len(batch.t)
        drawn.extend(zip(learner.diffusion.noised(batch.x0, batch.t, batch.noise), batch.t, batch.noise))
        return batch

    learner.draw = watched
    learner.next_task()
    learner.draw = draw
    return drawn


def begun(method, tasks, net=None, options=OPTIONS, **changes) -> Learner:
    learner = Learner(tiny(method, options=options, **changes), tasks)
    if net:
        learner.net = net
    return learner


def by_loop(net, drawn, past, method) -> torch.Tensor:
    """The importance of each parameter, one image after the other, in float64."""
    net = copy.deepcopy(net).eval()
    total = 0
    for x, t, noise in drawn:
        guess = net(x[None], t[None], torch.tensor([past]))
        value = (guess - noise).square().mean() if method == "ewc" else guess.square().sum()
        g = flat(torch.autograd.grad(value, list(net.parameters()))).double()
        total += g * g if method == "ewc" else g.abs()
    return total / len(drawn)


# EWC and MAS


def test_the_fisher_information_of_a_line_is_the_one_by_hand(monkeypatch, three):
    monkeypatch.setattr(fisher, "HELD", 20)  # five images at a time: each five are others
    learner = begun("ewc", three, Line())
    drawn = into_next_task(learner)
    by_a, by_b = [], []
    for x, _, noise in drawn:
        rest = (0.7 * x + 0.2 - noise).double()
        by_a.append((2 * rest * x).mean().item() ** 2)
        by_b.append((2 * rest).mean().item() ** 2)
    expected = [sum(by_a) / 37, sum(by_b) / 37, 0, 0]
    assert len(drawn) == 37 and learner.method.state["importance"].tolist() == pytest.approx(expected, rel=1e-4)
    assert len({x.sum().item() for x, _, _ in drawn}) == 37 and len({t.item() for _, t, _ in drawn}) > 30


def test_mas_on_a_line_is_the_one_by_hand(three):
    learner = begun("mas", three, Line())
    by_a, by_b = [], []
    for x, _, _ in into_next_task(learner):
        guess = (0.7 * x + 0.2).double()
        by_a.append(abs((2 * guess * x).sum().item()))
        by_b.append(abs((2 * guess).sum().item()))
    expected = [sum(by_a) / 37, sum(by_b) / 37, 0, 0]
    assert learner.method.state["importance"].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ("ewc", "mas"))
def test_importances_are_asked_under_each_images_own_id(method, three):
    """Under those of both classes of the task, where IDs are classes'."""

    class Offsets(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Parameter(torch.arange(6) + 1.0)

        def forward(self, x, t, task):
            return self.b[task].view(-1, 1, 1, 1) + 0 * x

    learner, drawn = begun(method, three, Offsets(), condition="class"), []
    draw = learner.draw
    learner.draw = lambda *words, **how: drawn.append(draw(*words, **how)) or drawn[-1]
    learner.next_task()
    expected = torch.zeros(6)
    for batch in drawn:
        for k, noise in zip(batch.task, batch.noise):
            expected[k] += (2 * (k + 1 - noise).mean()) ** 2 / 37 if method == "ewc" else 2 * 64 * (k + 1) / 37
    assert (expected > 0).tolist() == [True] * 2 + [False] * 4
    torch.testing.assert_close(learner.method.state["importance"], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", ("ewc", "mas"))
def test_importances_are_those_of_single_images_and_add_up_over_tasks_with_decay(method, three):
    learner = begun(method, three, options={**OPTIONS, "decay": 0.3}, dropout=0.5)
    expected = 0
    for past in range(2):
        shaken(learner)
        end = flat(learner.net.parameters())
        own = by_loop(learner.net, into_next_task(learner), past, method)
        expected = 0.3 * expected + own
        state = learner.method.state
        torch.testing.assert_close(state["importance"].double(), expected, rtol=1e-3, atol=1e-5 * own.max().item())
        assert torch.equal(state["anchor"], end)
    begin, embed = 0, learner.net.embed[0].weight
    for p in learner.net.parameters():
        if p is embed:
            break
        begin += p.numel()
    columns = state["importance"][begin : begin + embed.numel()].view_as(embed)[:, -3:]
    assert (columns > 0).any(0).tolist() == [True, True, False]  # the ID of a task to come mattered to none


@pytest.mark.parametrize("method", ("ewc", "mas"))
def test_the_penalty_is_half_the_weight_times_the_weighed_squared_distance(method, three):
    learner = begun(method, three, Line(), weight=3.0)
    learner.next_task()
    assert learner.method.penalty(learner).item() == 0
    importance = learner.method.state["importance"].clone()
    with torch.no_grad():
        learner.net.a += 0.1
        learner.net.b += torch.tensor([0.3, 9.0, 9.0])
    penalty = learner.method.penalty(learner)
    expected = 3 / 2 * (importance[0] * 0.1**2 + importance[1] * 0.3**2)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-4) and expected > 0
    slopes = torch.autograd.grad(penalty, list(learner.net.parameters()))
    pulls = [3 * importance[0].item() * 0.1, 3 * importance[1].item() * 0.3, 0, 0]
    assert flat(slopes).tolist() == pytest.approx(pulls, rel=1e-4)


@pytest.mark.parametrize("method", PENALISED)
def test_the_anchor_is_the_trained_network_after_the_task_before(method, three):
    run = tiny(method, steps=2, options=OPTIONS if method in SUMMED else {})
    end = None
    for step in train(run, three):
        if step.task > 0:
            assert torch.equal(step.learner.method.state["anchor"], end)
        if step.step == run.steps:
            end = flat(step.learner.net.parameters())


# Rank 1

ROWS = torch.tensor([[1.0, 2.0, 0.0], [3.0, -1.0, 1.0], [2.0, 0.5, -1.0], [0.0, 0.3, 0.4]])
OTHERS = torch.tensor([[0.5, -2.0, 1.0], [1.0, -1.0, 0.0]])


def by_definition(rows, moved) -> float:
    """c (mu'd)^2 with c = E[(mu'g)^2] / |mu|^4."""
    mu = rows.mean(0)
    c = sum((mu @ g) ** 2 for g in rows) / len(rows) / (mu @ mu) ** 2
    return (c * (mu @ moved) ** 2).item()


def at(*values) -> SimpleNamespace:
    """Stands for a learner whose network has three parameters."""
    return SimpleNamespace(net=nn.ParameterList([torch.tensor(values[:1]), torch.tensor(values[1:])]))


def test_the_rank_1_penalty_of_given_gradients_is_the_definitions_and_each_task_keeps_its_anchor(monkeypatch):
    method = METHODS["rank1"](0.8, METHODS["rank1"].Options(images=4))
    monkeypatch.setattr(fisher, "gradients", lambda *_: iter(ROWS.split(3)))
    method.start_task(at(1.0, 2.0, 3.0))
    assert method.penalty(at(1.0, 2.0, 3.0)).item() == 0
    one = by_definition(ROWS, torch.tensor([0.5, -1.0, 2.0]))
    assert method.penalty(at(1.5, 1.0, 5.0)).item() == pytest.approx(0.4 * one, rel=1e-5) and one > 0.1

    method.options = METHODS["rank1"].Options(images=2)
    monkeypatch.setattr(fisher, "gradients", lambda *_: iter(OTHERS.split(1)))
    method.start_task(at(0.0, 2.5, 3.0))
    method.start_task(at(-1.0, 2.0, 2.0))
    moved = [torch.tensor(d) for d in ([3.0, 2.0, 3.0], [4.0, 1.5, 3.0], [5.0, 2.0, 4.0])]  # (4, 4, 6) less the anchors
    three = sum(map(by_definition, (ROWS, OTHERS, OTHERS), moved))
    assert method.penalty(at(4.0, 4.0, 6.0)).item() == pytest.approx(0.4 * three, rel=1e-5)


def test_rank_1_is_the_whole_fisher_matrix_where_that_has_rank_1_and_free_across_it(monkeypatch):
    method = METHODS["rank1"](2.0, METHODS["rank1"].Options(images=3))
    g, moved = torch.tensor([1.0, -2.0, 2.0]), torch.tensor([0.3, 0.4, 0.9])
    rows = torch.stack([g, 3 * g, -g])
    monkeypatch.setattr(fisher, "gradients", lambda *_: iter([rows]))
    method.start_task(at(0.0, 0.0, 0.0))
    assert method.penalty(at(*moved.tolist())).item() == pytest.approx((rows @ moved).square().mean().item(), rel=1e-5)
    assert method.penalty(at(2.0, 2.0, 1.0)).item() == pytest.approx(0, abs=1e-6)


def test_the_rank_1_direction_is_the_mean_gradient_of_the_past_tasks_images(three):
    learner = begun("rank1", three, Line(), weight=2.0)
    drawn = into_next_task(learner)
    assert len(drawn) == 2 * 37 and all(map(torch.equal, flat_rows(drawn[:37]), flat_rows(drawn[37:])))
    rests = [(x.double(), 0.7 * x.double() + 0.2 - noise) for x, _, noise in drawn[:37]]
    rows = torch.stack([torch.stack([2 * (rest * x).mean(), 2 * rest.mean()]) for x, rest in rests])
    with torch.no_grad():
        learner.net.a += 0.4
        learner.net.b += torch.tensor([0.3, 9.0, 9.0])
    expected = by_definition(rows, torch.tensor([0.4, 0.3]).double())
    assert learner.method.penalty(learner).item() == pytest.approx(expected, rel=1e-3)


def flat_rows(drawn) -> list:
    return [torch.cat([x.flatten(), t[None], noise.flatten()]) for x, t, noise in drawn]


def test_without_any_gradient_rank_1_holds_nothing(monkeypatch):
    method = METHODS["rank1"](2.0, METHODS["rank1"].Options(images=3))
    monkeypatch.setattr(fisher, "gradients", lambda *_: iter([torch.zeros(3, 3)]))
    method.start_task(at(0.0, 0.0, 0.0))
    assert method.penalty(at(1.0, 2.0, 3.0)).item() == 0


# SI


def walked(method, learner, steps) -> None:
    """steps: pairs of (gradient, where the step leads), each of two parameters."""
    (p,) = learner.net.parameters()
    for gradient, there in steps:
        p.grad = torch.tensor(gradient)
        method.adjust_gradients(learner)
        p.grad *= 0.01  # clipping comes after
        with torch.no_grad():
            p.copy_(torch.tensor(there))
        method.after_step(learner)


def test_si_on_a_way_walked_by_hand():
    method = METHODS["si"](0.5, METHODS["si"].Options(xi=0.1))
    learner = SimpleNamespace(net=nn.ParameterList([torch.tensor([1.0, 1.0])]), task=0)
    # Down the first parameter's slope by 2 * 0.5 - 1 * 0.2 + 3 * 0.1 = 1.1, up the second's by 0.4.
    walked(method, learner, [((-2.0, 4.0), (1.5, 1.1)), ((-1.0, 0.0), (1.3, 1.1)), ((-3.0, 0.0), (1.4, 1.2))])
    assert method.penalty(learner) is None
    learner.task = 1
    method.start_task(learner)
    omega = [1.1 / (0.4**2 + 0.1), 0.0]
    assert method.state["importance"].tolist() == pytest.approx(omega, rel=1e-5)

    # The next task counts from here, in work and in distance; what came before stays.
    walked(method, learner, [((1.0, -2.0), (1.2, 1.5))])
    assert method.penalty(learner).item() == pytest.approx(0.5 * omega[0] * 0.2**2, rel=1e-5)
    learner.task = 2
    method.start_task(learner)
    omega = [omega[0] + 0.2 / (0.2**2 + 0.1), 0.6 / (0.3**2 + 0.1)]
    assert method.state["importance"].tolist() == pytest.approx(omega, rel=1e-5)
    walked(method, learner, [((0.0, 0.0), (1.0, 1.0))])
    expected = 0.5 * (omega[0] * 0.2**2 + omega[1] * 0.5**2)
    assert method.penalty(learner).item() == pytest.approx(expected, rel=1e-5)


def test_si_multiplies_steps_with_the_whole_losss_gradient_before_clipping(three):
    learner = begun("si", three, options={}, weight=0.7, clip=1e-3, dropout=0.0)
    for _ in range(6):
        learner.update()
    learner.next_task()
    start, importance = copied(learner.net), learner.method.state["importance"]
    shaken(learner)
    named = dict(learner.net.named_parameters())
    batch = learner.draw(three[1].train.images, 1, "current")
    guess = learner.net(learner.diffusion.noised(batch.x0, batch.t, batch.noise), batch.t, batch.task)
    parts = importance.split([p.numel() for p in named.values()])
    held = sum((o.view_as(p) * (p - start[name]) ** 2).sum() for o, (name, p) in zip(parts, named.items()))
    before = flat(named.values())
    own = flat(torch.autograd.grad(0.7 * held, list(named.values()), retain_graph=True))
    gradient = flat(torch.autograd.grad((guess - batch.noise).square().mean() + 0.7 * held, list(named.values())))
    learner.update()
    expected = -gradient * (flat(named.values()) - before)
    assert own.norm() > 0.01 * gradient.norm()  # left out, it would be seen
    torch.testing.assert_close(learner.method.state["work"], expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


# All


@pytest.mark.parametrize("method", PENALISED)
def test_without_weight_nothing_is_estimated_and_nothing_kept(method, three):
    learner = begun(method, three, options={}, weight=0.0)
    learner.update()
    assert not into_next_task(learner)
    learner.update()
    assert learner.method.penalty(learner) is None and not learner.method.state


@pytest.mark.parametrize("method", PENALISED)
def test_the_network_goes_on_with_dropout_and_its_gradients_are_untouched(method, three):
    learner = begun(method, three, options=OPTIONS if method in SUMMED else {}, dropout=0.5)
    learner.update()
    kept = [p.grad.clone() for p in learner.net.parameters()]
    before = torch.get_rng_state()
    learner.next_task()
    assert learner.net.training and all(module.training for module in learner.net.modules())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(learner.net.parameters(), kept))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", PENALISED)
def test_a_huge_weight_holds_what_mattered(method, three):
    moved = {}
    for weight in (1e-9, 1e6):
        options = OPTIONS if method in SUMMED else {}
        learner = begun(method, three, options=options, weight=weight, learning_rate=1e-3)
        for _ in range(6):
            learner.update()
        learner.next_task()
        for _ in range(12):
            learner.update()
        moved[weight] = learner.method.penalty(learner).item() / weight
    assert 0 < moved[1e6] < moved[1e-9] / 100


@pytest.mark.parametrize("method", SUMMED)
def test_images_are_taken_one_at_a_time_where_a_network_is_larger_than_what_is_held(method, three, monkeypatch):
    monkeypatch.setattr(fisher, "HELD", 1)
    learner = begun(method, three, Line())
    assert len(into_next_task(learner)) == OPTIONS["images"] * (1 + (method == "rank1"))  # which goes over them twice
