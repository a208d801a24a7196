"""Joint training, one network for each task, A-GEM, distillation, learning without forgetting, model averaging, LoRA."""

import copy
import dataclasses

import pytest
import torch
from conftest import copied, same, tiny
from torch import nn
from torch._dynamo.utils import counters

from cldiff.learner import Learner
from cldiff.methods import METHODS
from cldiff.tasks import to_uint8
from cldiff.train import train
from cldiff.unet import UNet


def pixels(images) -> list[bytes]:
    """What tells one image from another: no two of the digits are the same."""
    return [image.numpy().tobytes() for image in images]


def moved(net, size=0.05) -> None:
    """Away from the zeros of a new last layer, and from where the task began."""
    with torch.no_grad():
        for p in net.parameters():
            p += size * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))


def at_task(run, tasks, index) -> Learner:
    """A learner at the start of a task whose average and network differ, without training before."""
    learner = Learner(run, tasks)
    for k in range(index):
        moved(learner.net, 0.05 / (k + 1))
        moved(learner.ema, 0.04 / (k + 1))
        learner.next_task()
    return learner


# Joint training


def test_joint_training_draws_the_images_of_all_tasks_so_far_and_of_no_other_as_often_as_there_are(three):
    learner = Learner(tiny("joint", batch=4000), three)
    known = [set(pixels(task.train.images)) for task in three]
    for seen in (1, 2, 3):
        current = learner.draw(learner.images[learner.task], learner.task, "current")
        batch = learner.method.batch(learner, current)
        assert len(batch.t) == 4000 and torch.equal(batch.target, batch.noise)
        assert torch.allclose(batch.share, torch.tensor(1 / 4000))
        for image, task in zip(pixels(to_uint8(batch.x0)), batch.task.tolist()):
            assert image in known[task]
        counts = torch.bincount(batch.task, minlength=3)
        sizes = torch.tensor([len(task.train) if k < seen else 0 for k, task in enumerate(three)])
        share = sizes / sizes.sum()
        spread = (4000 * share * (1 - share)).sqrt()
        assert ((counts - 4000 * share).abs() <= 4 * spread).all()
        assert len({*pixels(to_uint8(batch.x0))}) > 0.99 * sizes.sum()  # e^-7 or less of them are left out
        assert not learner.method.state  # checkpoints do not hold the data set
        if seen < 3:
            learner.next_task()


def test_joint_training_draws_by_the_number_of_images_not_of_tasks(three):
    short = [dataclasses.replace(three[0], train=three[0].train[torch.arange(10)]), three[1]]
    learner = Learner(tiny("joint", batch=2000), short)
    learner.next_task()
    batch = learner.method.batch(learner, learner.draw(learner.images[1], 1, "current"))
    share = 10 / (10 + len(three[1].train))
    assert (batch.task == 0).float().mean().item() == pytest.approx(share, abs=0.02)


def test_joint_training_has_another_batch_in_each_step(three):
    learner = at_task(tiny("joint"), three, 1)
    current = learner.draw(learner.images[1], 1, "current")
    first = learner.method.batch(learner, current)
    learner.update()
    second = learner.method.batch(learner, current)
    assert not torch.equal(first.x0, second.x0) and not torch.equal(first.t, second.t)
    assert not torch.equal(first.noise, second.noise)


# One network for each task


def ends(run, tasks, folder=None):
    """The learner at the end of each task, for the loop to look at."""
    return (step.learner for step in train(run, tasks, folder) if step.step == run.steps)


def of_task(net, k) -> dict:
    return copied(net.nets[k])


def test_each_network_is_finetuning_of_a_new_network_on_its_task_alone(three):
    run = tiny("separate", steps=3)
    start = Learner(run, three)
    for learner in ends(run, three):
        found = learner
    for k in range(3):
        alone = Learner(tiny("finetune", steps=3), three)
        for net in (alone.net, alone.ema):
            net.load_state_dict(of_task(start.net, k))
        alone.task = k
        for _ in range(3):
            alone.update()
        assert same(of_task(found.ema, k), copied(alone.ema))
        if k == 2:  # the others were set to their average
            assert same(of_task(found.net, k), copied(alone.net))
        assert not same(copied(alone.ema), copied(alone.net))


def test_networks_from_the_previous_ones_are_those_of_finetuning(three):
    changes = dict(steps=3)
    pairs = zip(ends(tiny("separate", options={"start": "previous"}, **changes), three), ends(tiny(**changes), three))
    for k, (ours, finetuned) in enumerate(pairs):
        assert same(of_task(ours.net, k), copied(finetuned.net))
        assert same(of_task(ours.ema, k), copied(finetuned.ema))


@pytest.mark.parametrize("start", ("scratch", "previous"))
def test_networks_and_averages_of_other_tasks_do_not_move(start, three):
    before = None
    for k, learner in enumerate(ends(tiny("separate", steps=2, options={"start": start}), three)):
        if before:
            for other in range(3):
                same_net, same_ema = (
                    same(of_task(getattr(learner, p), other), before[p][other]) for p in ("net", "ema")
                )
                assert same_ema == (other != k)
                if other != k - 1:  # that was set to its average
                    assert same_net == (other != k)
                else:
                    assert same(of_task(learner.net, other), of_task(learner.ema, other))
        before = {p: [of_task(getattr(learner, p), other) for other in range(3)] for p in ("net", "ema")}
        moving = {name for name, p in learner.net.named_parameters() if p.grad is not None}
        assert moving == {name for name in copied(learner.net) if name.startswith(f"nets.{k}.")}


def test_the_networks_are_as_many_as_tasks_and_all_different_and_the_first_is_the_one_of_other_methods(three):
    ours, other = Learner(tiny("separate"), three), Learner(tiny("separate", seed=1), three)
    assert len(ours.net.nets) == 3
    assert same(of_task(ours.net, 0), copied(Learner(tiny(), three).net))
    kernels = [net.nets[k].first.weight for net in (ours.net, other.net) for k in range(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(kernels) for b in kernels[:i])
    assert same(copied(ours.net), copied(Learner(tiny("separate"), three).net))


def test_each_example_of_a_mixed_batch_goes_through_the_network_of_its_task(three):
    learner = Learner(tiny("separate"), three)
    moved(learner.net)
    net = learner.net.eval()
    x = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t, task = torch.arange(7) * 100, torch.tensor([2, 0, 0, 1, 2, 0, 2])
    found = net(x, t, task)
    for i in range(7):
        one = net.nets[int(task[i])](x[i : i + 1], t[i : i + 1], task[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], one, rtol=1e-4, atol=1e-5)
    parts = net(x[task == 2], t[task == 2], task[task == 2])
    assert torch.equal(parts, net.nets[2](x[task == 2], t[task == 2], task[task == 2]))


# A-GEM


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def pass_of(learner, x0, t, noise, task):
    return learner.net(learner.diffusion.noised(x0, t, noise), t, task)


def two_losses(learner):
    """Of the current batch, and of images of the buffers in the same noise, as calls: the network changes."""
    now = learner.draw(learner.images[learner.task], learner.task, "current")
    old = learner.draw(learner.method.state["images"], learner.method.state["task"], "replay")
    return (
        lambda: (pass_of(learner, now.x0, now.t, now.noise, now.task) - now.noise).square().mean(),
        lambda: (pass_of(learner, old.x0, now.t, now.noise, old.task) - now.noise).square().mean(),
    )


def at_odds(tasks) -> Learner:
    """Near an optimum of the sum of the losses of the coming step: their gradients point against each other."""
    learner = at_task(tiny("agem", dropout=0.0, clip=1e9), tasks, 2)
    own, past = two_losses(learner)
    for kind, steps in ((torch.optim.Adam, 60), (torch.optim.SGD, 40)):  # which settles where Adam jumps about
        optimizer = kind(learner.net.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            (own() + past()).backward()
            optimizer.step()
    return learner


def gradient(loss, net) -> torch.Tensor:
    return flat(torch.autograd.grad(loss(), list(net.parameters())))


@pytest.fixture(scope="module")
def odds(three):
    return at_odds(three)


def test_agem_takes_the_part_against_the_buffers_out_of_the_gradient(odds):
    learner = copy.deepcopy(odds)
    own, past = (gradient(loss, learner.net) for loss in two_losses(learner))
    dot = (own @ past).item()
    assert dot < -0.5 * own.norm().item() * past.norm().item()
    expected = own - dot / (past @ past).item() * past
    learner.update()
    found = flat(p.grad for p in learner.net.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6 + 1e-4 * expected.abs().max().item())
    assert abs(found @ past) < 1e-3 * abs(dot) and found.norm() < own.norm()


def adjusted(learner, gradients) -> torch.Tensor:
    """What is left of these gradients. The network is not moved."""
    learner.method.batch(learner, learner.draw(learner.images[learner.task], learner.task, "current"))
    for p, g in zip(learner.net.parameters(), gradients):
        p.grad = g.clone()
    before = copied(learner.net)
    learner.method.adjust_gradients(learner)
    assert same(before, copied(learner.net))
    return [p.grad for p in learner.net.parameters()]


def test_agem_projects_given_gradients_that_disagree_and_no_others(odds):
    learner = copy.deepcopy(odds)
    _, past = two_losses(learner)
    reference = torch.autograd.grad(past(), list(learner.net.parameters()))
    generator = torch.Generator().manual_seed(0)
    other = [r.norm() * torch.randn(r.shape, generator=generator) / r.numel() ** 0.5 for r in reference]
    r = flat(reference)
    for sign in (-1, 1):
        given = [o + sign * x for o, x in zip(other, reference)]
        found, dot = adjusted(learner, given), flat(given) @ r
        assert dot.sign() == sign
        if sign == 1:
            assert all(map(torch.equal, found, given))
        else:
            expected = flat(given) - dot / r.square().sum() * r
            torch.testing.assert_close(flat(found), expected, rtol=1e-4, atol=1e-6)
            assert abs(flat(found) @ r) < 1e-4 * abs(dot)


def test_agem_leaves_gradients_where_those_of_the_buffers_are_zero(odds):
    learner = copy.deepcopy(odds)
    learner.loss = lambda batch: sum((0 * p).sum() for p in learner.net.parameters())
    given = [torch.ones_like(p) for p in learner.net.parameters()]
    assert all(map(torch.equal, adjusted(learner, given), given))


def test_agem_asks_other_images_of_the_buffers_in_each_step(odds):
    learner, given = copy.deepcopy(odds), []
    learner.loss = lambda batch, loss=learner.loss: given.append(batch) or loss(batch)
    for _ in range(2):
        learner.update()
    _, old, _, other = given
    assert old.task.max() < learner.task and not torch.equal(old.x0, other.x0)


def test_agem_projects_in_the_second_task_too(three):
    learner = at_task(tiny("agem", dropout=0.0), three, 1)
    _, past = two_losses(learner)
    against = [-g for g in torch.autograd.grad(past(), list(learner.net.parameters()))]
    assert flat(adjusted(learner, against)).norm() < 1e-4 * flat(against).norm()


def test_agem_is_finetuning_as_long_as_the_gradients_agree_and_parts_where_they_do_not(three, odds):
    """In the first steps of a network they do: the same noise is to be predicted."""
    ours, finetuned = at_task(tiny("agem"), three, 1), at_task(tiny("finetune"), three, 1)
    for learner in (ours, finetuned):
        learner.update()
    assert same(copied(ours.net), copied(finetuned.net))
    ours, finetuned = copy.deepcopy(odds), copy.deepcopy(odds)
    finetuned.method = METHODS["finetune"]()
    for learner in (ours, finetuned):
        learner.update()
    assert not same(copied(ours.net), copied(finetuned.net))


# Generative distillation


def named_gradients(loss, net) -> dict:
    return dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters()))))


def close_gradients(learner, expected) -> None:
    for name, p in learner.net.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("index", (1, 2))
@pytest.mark.parametrize("shared", (True, False))
@pytest.mark.parametrize("method", ("generative_distillation", "generative"))
def test_the_gradient_of_generative_methods_is_that_of_the_written_loss(method, shared, index, three):
    options = {"shared": shared}
    learner = Learner(tiny(method, weight=0.3, options=options, dropout=0.0, clip=1e9), three)
    for k in range(index):
        moved(learner.net, 0.05 / (k + 1))
        moved(learner.ema, 0.02 / (k + 1))
        before = copy.deepcopy(learner.ema)
        learner.next_task()
    moved(learner.net, 0.03)
    moved(learner.ema, 0.3)  # the average of the current task is nobody's teacher
    state = learner.method.state
    now = learner.draw(three[index].train.images, index, "current")
    old = learner.draw(state["images"], state["task"], "replay")
    assert set(old.task.tolist()) == set(range(index))
    k, total = index + 1 if shared else 1, 0
    for x0, t, noise, task in zip(now.x0, now.t, now.noise, now.task):
        guess = pass_of(learner, x0[None], t[None], noise[None], task[None])
        total = total + (guess - noise).square().mean() / 8 / k
    for x0, t, noise, task in zip(old.x0, old.t, old.noise, old.task):
        guess = pass_of(learner, x0[None], t[None], noise[None], task[None])
        with torch.no_grad():
            said = before(learner.diffusion.noised(x0[None], t[None], noise[None]), t[None], task[None])
        assert (said - noise).abs().max() > 0.1  # not what the noise was
        target = said if method == "generative_distillation" else noise
        total = total + 0.3 * (1 - 1 / k if shared else 1) * (guess - target).square().mean() / 8
    expected = named_gradients(total, learner.net)
    kept = copied(learner.ema)
    loss = learner.update()
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    close_gradients(learner, expected)
    assert not same(kept, copied(learner.ema))  # it is still averaged


def test_the_teacher_and_the_pool_are_of_the_average_from_before_the_task_and_stay(three):
    run, averaged, plain = tiny("generative_distillation", steps=3, learning_rate=2e-2), None, None
    for step in train(run, three):
        learner, state = step.learner, step.learner.method.state
        if step.task > 0:
            assert state["task"].tolist() == [task for task in range(step.task) for _ in range(run.pool)]
            found = {
                name.removeprefix("teacher."): value for name, value in state.items() if name.startswith("teacher.")
            }
            assert same(found, averaged) and not same(found, plain) and not same(found, copied(learner.ema))
        else:
            assert not state
        if step.step == run.steps:
            averaged, plain = copied(learner.ema), copied(learner.net)


def test_the_teacher_has_no_dropout_and_keeps_no_gradients(three):
    learner = at_task(tiny("generative_distillation", dropout=0.9), three, 1)
    current = learner.draw(learner.images[1], 1, "current")
    one, other = (learner.method.batch(learner, current) for _ in range(2))
    assert torch.equal(one.target, other.target) and not one.target.requires_grad
    assert not learner.ema.training and all(p.grad is None for p in learner.ema.parameters())


def test_distillation_with_rank_1_ewc_is_the_sum_of_both(three):
    few = {"images": 20}
    pair, distilled, held = (
        at_task(tiny(method, weight=weight, options=options), three, 2)
        for method, weight, options in (
            ("rank1_distillation", 40.0, few),
            ("generative_distillation", 1.0, {}),
            ("rank1", 40.0, few),
        )
    )
    for learner in (pair, distilled, held):
        moved(learner.net)
    current = distilled.draw(three[2].train.images, 2, "current")
    ours, theirs = pair.method.batch(pair, current), distilled.method.batch(distilled, current)
    assert len(ours.t) == 2 * len(current.t)
    assert all(torch.equal(getattr(ours, f.name), getattr(theirs, f.name)) for f in dataclasses.fields(ours))
    assert distilled.method.penalty(distilled) is None and held.method.batch(held, current) is current
    assert torch.equal(pair.method.penalty(pair), held.method.penalty(held)) and pair.method.penalty(pair) > 0
    none = at_task(tiny("rank1_distillation", weight=40.0, options={**few, "distillation": 0.0}), three, 2)
    assert none.method.state.keys() == held.method.state.keys()  # no pools are drawn, no teacher is kept
    weaker = at_task(tiny("rank1_distillation", options={**few, "distillation": 0.5}), three, 2)
    n = len(current.t)
    assert torch.equal(weaker.method.batch(weaker, current).share[n:], 0.5 * ours.share[n:])


# Learning without forgetting


def test_learning_without_forgetting_asks_for_the_old_predictions_on_the_new_images_under_old_ids(three):
    learner = Learner(tiny("lwf", weight=0.3, dropout=0.0, clip=1e9, batch=16), three)
    for k in range(2):
        moved(learner.net, 0.05 / (k + 1))
        moved(learner.ema, 0.3 / (k + 1))
        before = copy.deepcopy(learner.ema)
        learner.next_task()
    moved(learner.net, 0.03)
    moved(learner.ema, 0.3)
    now = learner.draw(three[2].train.images, 2, "current")
    both = learner.method.batch(learner, now)
    assert torch.equal(both.task[:16], now.task) and torch.equal(both.target[:16], now.noise)
    past = both.task[16:]
    assert len(past) == 16 and set(past.tolist()) == {0, 1}
    total = 0
    for x0, t, noise, old in zip(now.x0, now.t, now.noise, past):
        own = pass_of(learner, x0[None], t[None], noise[None], torch.tensor([2]))
        guess = pass_of(learner, x0[None], t[None], noise[None], old[None])
        x_t = learner.diffusion.noised(x0[None], t[None], noise[None])
        said, other = (before(x_t, t[None], task).detach() for task in (old[None], torch.tensor([2])))
        assert (said - noise).abs().max() > 0.1 and (said - other).abs().max() > 1e-3
        total = total + ((own - noise).square().mean() + 0.3 * (guess - said).square().mean()) / 16
    expected = named_gradients(total, learner.net)
    assert learner.update().item() == pytest.approx(total.item(), rel=1e-4)
    close_gradients(learner, expected)


def test_learning_without_forgetting_draws_each_past_task_equally_often_anew_in_each_step(three):
    learner = at_task(tiny("lwf", batch=1000), three, 2)
    ids = []
    for learner.step in range(2):
        current = learner.draw(learner.images[2], 2, "current")
        ids.append(learner.method.batch(learner, current).task[1000:])
        assert torch.bincount(ids[-1], minlength=3).tolist() == pytest.approx([500, 500, 0], abs=65)
    assert not torch.equal(*ids)
    assert not any(images in learner.method.state for images in ("images", "task"))  # nothing but the teacher is kept


# Model averaging


@pytest.mark.parametrize("old", [0.0, 0.3, 1.0])
def test_model_averaging_measures_the_mixture_of_the_networks_before_and_after_a_task_and_goes_on_from_it(old, three):
    learner = Learner(tiny("averaging", steps=3, options={"old": old}), three)
    for _ in range(3):
        learner.update()
    for _ in three[1:]:
        before = copied(learner.ema)
        learner.next_task()
        twin = copy.deepcopy(learner)
        twin.method = METHODS["finetune"]()
        for _ in range(3):
            assert same(copied(learner.net), copied(twin.net)) and same(copied(learner.ema), copied(twin.ema))
            learner.update(), twin.update()
        found = copied(learner.ema)
        for name, average in copied(twin.ema).items():
            assert torch.allclose(found[name], old * before[name] + (1 - old) * average, atol=1e-6)
        assert same(copied(learner.net), found)
        assert not same(before, copied(twin.ema))


# LoRA


def layers(net) -> dict:
    """The matrices and kernels of a U-Net, by name."""
    return {f"{name}.weight": m for name, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


def dense(ours, k, tasks) -> UNet:
    """A plain U-Net with the weights that task k has in ours."""
    plain = UNet(**Learner(tiny("lora"), tasks).arguments).eval()
    plain.load_state_dict({name: value for name, value in copied(ours.net).items()})
    rank = ours.A[0].shape[1]
    with torch.no_grad():
        for name, layer in layers(plain).items() if k > 0 else ():
            place = ours.names.index(name)
            for r in range(rank):
                change = torch.outer(ours.B[place][k - 1][:, r], ours.A[place][k - 1][r]) / rank
                rows, inputs, *places = layer.weight.shape
                layer.weight += change.reshape(rows, *places, inputs).movedim(-1, 1)
    return plain


def inputs(n=7):
    x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(n) * 100, torch.tensor([2, 0, 0, 1, 2, 0, 2])[:n]


def random_changes(tasks, **changes) -> Learner:
    """A learner of a later task, every parameter of which is away from zero."""
    learner = at_task(tiny("lora", dropout=0.0, clip=1e9, **changes), tasks, 2)
    moved(learner.net, 0.2)
    return learner


def test_lora_adapts_every_matrix_and_kernel_by_changes_that_start_at_nothing(three):
    learner, other = Learner(tiny("lora", dropout=0.0), three), Learner(tiny("finetune", dropout=0.0), three)
    net = learner.net
    assert set(net.names) == set(layers(other.net)) and "embed.0.weight" in net.names
    for name, A, B in zip(net.names, net.A, net.B):
        rows, *columns = other.net.get_parameter(name).shape
        assert B.shape == (2, rows, 8) and not B.any()
        assert A.shape == (2, 8, torch.Size(columns).numel()) and A.unique().numel() > 0.9 * A.numel()
    moved(net.net)
    moved(other.net)
    x, t, _ = inputs()
    for k in range(3):
        task = torch.full_like(t, k)
        assert torch.equal(net(x, t, task), other.net(x, t, task)) and net(x, t, task).any()


def test_lora_is_finetuning_in_the_first_task(three):
    ours, finetuned = Learner(tiny("lora"), three), Learner(tiny("finetune"), three)
    for learner in (ours, finetuned):
        for _ in range(3):
            learner.update()
    assert same(copied(ours.net.net), copied(finetuned.net)) and same(copied(ours.ema.net), copied(finetuned.ema))
    assert not any(B.any() for B in ours.net.B)


@pytest.mark.parametrize("rank", (1, 3))
def test_the_network_of_a_task_has_the_weights_w_plus_ba_over_r(rank, three):
    net = random_changes(three, options={"rank": rank}).net.eval()
    x, t, mixed = inputs()
    found = [dense(net, k, three) for k in range(3)]
    for k in range(3):
        task = torch.full_like(t, k)
        torch.testing.assert_close(net(x, t, task), found[k](x, t, task), rtol=1e-4, atol=1e-4)
    assert (found[1](x, t, t * 0 + 1) - found[0](x, t, t * 0 + 1)).abs().max() > 0.1
    parts = torch.cat([found[int(k)](x[i : i + 1], t[i : i + 1], mixed[i : i + 1]) for i, k in enumerate(mixed)])
    torch.testing.assert_close(net(x, t, mixed), parts, rtol=1e-4, atol=1e-4)


def test_the_gradients_of_lora_are_those_of_the_dense_weights_by_the_chain_rule(three):
    learner = random_changes(three, options={"rank": 3})
    net, plain = learner.net, dense(learner.net, 2, three)
    now = learner.draw(learner.images[2], 2, "current")
    guess = plain(learner.diffusion.noised(now.x0, now.t, now.noise), now.t, now.task)
    (guess - now.noise).square().mean().backward()
    before = copied(net)
    learner.update()
    for place, name in enumerate(net.names):
        G = plain.get_parameter(name).grad.movedim(1, -1).flatten(1)
        A, B = before[f"A.{place}"][1], before[f"B.{place}"][1]
        for p, expected in ((net.A[place], B.T @ G / 3), (net.B[place], G @ A.T / 3)):
            torch.testing.assert_close(p.grad[1], expected, rtol=1e-3, atol=1e-5, msg=name)
            assert not p.grad[0].any()
    assert all(p.grad is None for p in net.net.parameters())


def test_after_the_first_task_lora_moves_the_current_change_alone_and_old_tasks_give_what_they_gave(three):
    x, t, _ = inputs()
    given, kept = [], {}
    for k, learner in enumerate(ends(tiny("lora", steps=3), three)):
        for part in ("net", "ema"):
            now = copied(getattr(learner, part))
            for name, value in now.items() if k > 0 else ():
                if name.startswith("net."):
                    assert torch.equal(value, kept["ema"][name])  # of the first task, averaged
                else:
                    stays = [torch.equal(value[i], kept["ema"][name][i]) for i in range(2)]
                    assert stays == [i != k - 1 for i in range(2)]
        kept = {part: copied(getattr(learner, part)) for part in ("net", "ema")}
        outputs = [learner.model(task)(x, t) for task in range(k + 1)]
        assert all(map(torch.equal, given, outputs))
        given = outputs
    assert not torch.equal(given[1], dense(learner.ema, 0, three)(x, t, torch.full_like(t, 1)))


@pytest.mark.parametrize("task", (0, 1))
def test_a_lora_run_that_continues_within_a_task_knows_what_is_frozen(task, three):
    whole = at_task(tiny("lora"), three, task)
    moved(whole.net)
    whole.update()
    again = Learner(tiny("lora"), three)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    start = copied(again.net)
    for learner in (whole, again):
        learner.update()
    assert same(copied(whole.net), copied(again.net)) and same(copied(whole.ema), copied(again.ema))
    for name, value in copied(again.net).items():
        assert torch.equal(value, start[name]) == (name.startswith("net.") == (task == 1)), name


@pytest.mark.parametrize(
    "method, number", (("separate", 2), pytest.param("lora", 4, marks=pytest.mark.slow), ("agem", 2))
)
def test_compiled_as_many_graphs_are_enough_for_any_number_of_tasks(method, number, three, monkeypatch):
    """For a step and for the average: with LoRA two each, of the first task and of later ones."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda net, mode, dynamic: compiler(net, backend="aot_eager", dynamic=dynamic)
    )
    torch._dynamo.reset()
    counters["stats"].clear()
    run = tiny(method, steps=1, compiled=True, dropout=0.0)
    for step in train(run, three):
        step.learner.sample(step.task, 3, 2, 0.0, "samples")
    assert counters["stats"]["unique_graphs"] == number
    *_, eager = train(dataclasses.replace(run, compiled=False), three)
    for name, value in copied(step.learner.net).items():
        torch.testing.assert_close(value, copied(eager.learner.net)[name], rtol=1e-3, atol=1e-4)


def test_the_changes_of_lora_begin_uniform_about_zero_as_wide_as_the_layer_has_inputs(three):
    for A in Learner(tiny("lora"), three).net.A:
        shares = A * A.shape[-1] ** 0.5
        assert -1 <= shares.min() < -0.7 and 0.7 < shares.max() <= 1
