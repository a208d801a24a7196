"""The GPU path on a machine without one: whole runs on a GPU that is pretended (pretended.py)."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import test_gpu
import torch
import torch.nn.functional as F
from conftest import OPTIONS, same, tiny, weights
from pretended import Generator, Mixed, Waits, gpu
from test_gpu import CASES, same_numbers  # noqa: F401

from cldiff import features
from cldiff.diffusion import Diffusion
from cldiff.features import INCEPTION
from cldiff.files import load_tensors
from cldiff.measure import Measurer
from cldiff.train import CHECKPOINT, train
from cldiff.verify import verify


def outcome(run, tasks, device="cpu", cache="data", start=None):
    """All that a run leaves: weights, scores, curves, samples."""
    measure = Measurer(run, tasks, cache, device)
    for step in train(run, tasks, device=device, start=start):
        measure(step)
    return weights(step.learner), step.learner.record


@pytest.fixture
def alike(within):
    """alike(run, tasks, caches, start): asserts that a run on a GPU is that on a CPU, and that no step waits. caches: of
    the one and of the other; start: the network to begin with."""

    def ask(run, tasks, caches=("data", "data"), start=None) -> None:
        expected, recorded = outcome(run, tasks, "cpu", caches[1], start)
        with gpu() as watched:
            within(lambda quiet: setattr(watched, "quiet", quiet))
            found, record = outcome(run, tasks, "cuda", caches[0], start)
        assert watched.forks >= 4  # dropout draws from the GPU's global generator, in each step
        assert same(found, expected)
        assert all(map(torch.equal, record.pop("samples"), recorded.pop("samples")))
        assert [made["machine"]["gpu"] for made in record.pop("provenance") + recorded.pop("provenance")] == [
            "a pretended GPU",
            None,
        ]
        assert record.pop("means") == recorded.pop("means")
        for name, rows in recorded.items():  # LAPACK rounds by where in memory a matrix lies
            pd.testing.assert_frame_equal(pd.DataFrame(record[name]), pd.DataFrame(rows), rtol=1e-12, atol=1e-12)

    return ask


@pytest.mark.parametrize("method, condition", CASES)
def test_a_run_on_a_gpu_is_the_run_on_a_cpu_and_no_step_waits(method, condition, three, alike):
    alike(tiny(method, steps=2, condition=condition, options=OPTIONS.get(method, {})), three[:2])


def test_so_is_a_run_that_begins_with_a_network(three, alike, begun):
    alike(tiny("replay", steps=2, start=tiny().name), three[:2], start=begun)


def test_so_is_a_run_with_inception(three, alike, stand_in, tmp_path, monkeypatch):
    compute, places = features.inception_features, set()
    monkeypatch.setattr(
        features,
        "inception_features",
        lambda net, images: (places.update(p.device.type for p in net.parameters()), compute(net, images))[1],
    )
    caches = tmp_path / "gpu", tmp_path / "cpu"  # the features of real images are computed on both
    for cache in caches:
        cache.mkdir()
        shutil.copy(stand_in / INCEPTION, cache)
    few = [
        replace(task, **{name: getattr(task, name)[torch.arange(20)] for name in ("train", "validation", "test")})
        for task in three[:2]
    ]
    alike(tiny(steps=2, inception=True), few, caches)
    kept, expected = (load_tensors(next(cache.glob("features-*.pt"))) for cache in caches)
    assert all(map(torch.equal, kept["test"], expected["test"])) and places == {"cpu", "cuda"}


def test_training_in_half_precision_is_that_of_a_cpu(three):
    run = tiny("replay", steps=2, precision="bfloat16")
    expected, _ = outcome(run, three[:2])
    with gpu():
        found, _ = outcome(run, three[:2], "cuda")
    assert same(found, expected)


@pytest.mark.parametrize("method", ("replay", "self_tuned", "si", "lora", "separate"))
def test_a_run_that_continues_from_a_file_has_all_its_tensors_on_the_gpu(method, three, tmp_path):
    run, folder = tiny(method, steps=3), tmp_path / "run"
    with gpu():
        for step in train(run, three[:2], device="cuda"):
            expected = weights(step.learner)
        for step in train(run, three[:2], folder, "cuda", checkpoint_seconds=0):
            if step.total == 5:
                break
        assert (folder / CHECKPOINT).exists()
        steps = list(train(run, three[:2], folder, "cuda"))
        assert len(steps) == 2 and same(weights(steps[-1].learner), expected)


def test_weights_are_verified_on_the_gpu(digits, tmp_path):
    """Of a run that was measured on a CPU, whose noise is another: a bound's error is that of the noise."""
    run = tiny(steps=2, samples=16, sample_steps=2)
    measure = Measurer(run, digits)
    for step in train(run, digits):
        measure(step)
    measure.save(tmp_path / run.name, step.learner)
    expected = verify(tmp_path / run.name)
    with gpu():
        found = verify(tmp_path / run.name, device="cuda")
    shown = ["task", "metric", "samples", "published"]
    pd.testing.assert_frame_equal(found[shown], expected[shown])
    pd.testing.assert_series_equal(found.fresh, expected.fresh, rtol=1e-6)
    bits = found.metric == "bpd"
    assert (found.error[bits] > 2 * expected.error[bits]).all()


# The GPU that is pretended


WAITS = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "tolist": lambda x: x.tolist(),
    "index by a mask": lambda x: x[x > 0],
    "set by a mask": lambda x: x.__setitem__(x > 0, x[:1]),
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x),
    "repeats": lambda x: x.repeat_interleave(x.long()),
    "number to the GPU": lambda x: torch.tensor(3, device="cuda"),
    "numbers to the GPU": lambda x: torch.ones(3).to("cuda"),
    "copy_": lambda x: x.copy_(torch.ones(3)),
    "set one": lambda x: x.__setitem__(0, 4.0),
}
MIXED = {
    "sum": lambda x: x + torch.ones(3),
    "cat": lambda x: torch.cat([x, torch.ones(3)]),
    "index": lambda x: x[torch.tensor([0])],
    "index of a CPU tensor": lambda x: torch.ones(3)[x.long()],
    "network": lambda x: F.linear(x, torch.ones(2, 3)),
    "in place": lambda x: torch.ones(3).add_(x),
    "generator of the CPU": lambda x: torch.randn(3, device="cuda", generator=Generator()),
    "generator of the GPU": lambda x: torch.randn(3, generator=Generator("cuda")),
    "multinomial": lambda x: torch.multinomial(x, 2, True, generator=Generator()),
}
QUIET = {
    "number": lambda x: x * 2 + torch.tensor(1.0),
    "view": lambda x: x[:2].view(2, 1),
    "like": lambda x: torch.full_like(x, 3) + x.new_zeros(3),
    "factory": lambda x: torch.arange(3, device=x.device) + torch.rand(3, device="cuda", generator=Generator("cuda")),
    "index": lambda x: x[x.long().clamp(max=2)],
    "set": lambda x: (x.__setitem__(slice(1), 4.0), x)[1],
    "where": lambda x: torch.where(x > 0, x, 0).masked_fill(x > 2, 0),
    "one hot": lambda x: F.one_hot(x.long(), 4),
    "dtype": lambda x: x.to(torch.float64).to("cuda"),
    "repeats": lambda x: x.repeat_interleave(4),
    "gradient": lambda x: torch.autograd.grad((w := torch.ones_like(x).requires_grad_()).mul(x).sum(), w)[0],
}


@pytest.mark.parametrize("words, error", [(w, e) for ways, e in ((WAITS, Waits), (MIXED, Mixed)) for w in ways.items()],
                         ids=lambda x: x[0] if isinstance(x, tuple) else "")  # fmt: skip
def test_the_pretended_gpu_notices(words, error):
    with gpu() as watched:
        x = torch.ones(3, device="cuda")
        watched.quiet = True
        with pytest.raises(error):
            words[1](x)
        watched.quiet = False
        if error is Waits:  # where it is not forbidden, it goes on
            words[1](x)


@pytest.mark.parametrize("words", QUIET)
def test_the_pretended_gpu_lets_pass_what_a_gpu_does_by_itself(words):
    with gpu() as watched:
        x = torch.ones(3, device="cuda")
        watched.quiet = True
        assert QUIET[words](x).device.type == x.device.type == "cuda" and torch.ones(3).device.type == "cpu"
        watched.quiet = False
        assert x.cpu().device.type == "cpu"
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", (0.0, 0.05))
@pytest.mark.parametrize("method", ("finetune", "lwf", "separate"))
def test_what_is_asked_of_a_real_gpu_is_right_of_a_right_one_and_wrong_of_a_wrong_one(
    method, wrong, three, monkeypatch, request
):
    page = lambda title, **found: None  # noqa: E731
    noised = Diffusion.noised
    monkeypatch.setattr(
        Diffusion, "noised", lambda self, *words: noised(self, *words) + wrong * (self.device.type == "cuda")
    )
    with gpu():
        request.getfixturevalue("same_numbers")
        fails = pytest.raises(AssertionError) if wrong else nullcontext()
        with fails:
            test_gpu.test_a_step_and_a_new_task_are_those_of_a_cpu(
                method, "task", three, torch.device("cuda"), None, page
            )
        if method == "finetune":
            with fails:
                test_gpu.test_samples_bounds_losses_and_scores_are_those_of_a_cpu(
                    three, torch.device("cuda"), None, page
                )


def test_what_is_asked_of_a_real_gpu_about_features_and_a_beginning_is_right_of_a_right_one(three, stand_in, begun):
    with gpu():
        test_gpu.test_features_are_those_of_a_cpu(three, torch.device("cuda"), stand_in, lambda title, **found: None)
        test_gpu.test_a_network_to_begin_with_is_the_saved_one(three, torch.device("cuda"), begun)
