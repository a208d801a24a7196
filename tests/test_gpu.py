"""What can be asked of a real GPU alone, and of a CPU in its place: `make test DEVICE=cuda` (or cpu). Ends with a page of
what was measured. test_device.py asks what needs no GPU."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bench import Cldiff
from conftest import OPTIONS, tiny, weights
from gpu_day import on_paper
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cldiff.features import load_inception, load_lenet
from cldiff.files import tensors
from cldiff.learner import Learner, TrainingError
from cldiff.measure import RECORDED, Measurer
from cldiff.methods import METHODS
from cldiff.results import WEIGHTS
from cldiff.run import Run
from cldiff.study import runs
from cldiff.train import CHECKPOINT, Step, train

TESTS = Path(__file__).parent
NET = dict(channels=32, multipliers=(1, 2), dropout=0.0, batch=32)
CASES = [  # methods, and whose ID the network is given; of classes where IDs are made in another way
    *((method, "task") for method in METHODS),
    *((method, "class") for method in ("replay", "generative", "lwf", "joint")),
]
# A T4 knows no bfloat16, and is refused it.
HALF = "float32" if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0) else "bfloat16"
CLOSE = 1e-2  # the norm of a difference, of the norm: rounding stays far below, a wrong number above


@pytest.fixture(scope="module")
def device(request) -> torch.device:
    name = request.config.getoption("--device")
    return torch.device(name) if name else pytest.skip("make test DEVICE=cuda asks for these")


class DrawnOnCpu(TorchFunctionMode):
    """A generator of the CPU draws for the GPU: both have the same random numbers."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is None:
            return func(*args, **kwargs)
        device = kwargs.get("device") or next((x.device for x in args if isinstance(x, Tensor)), "cpu")
        args = [x.cpu() if isinstance(x, Tensor) else x for x in args]
        return func(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(device)


@pytest.fixture
def same_numbers(monkeypatch):
    generator = Learner.generator
    monkeypatch.setattr(Learner, "generator", lambda *words, **named: generator(*words, **{**named, "device": "cpu"}))
    with DrawnOnCpu():
        yield


def apart(one, other) -> float:
    """The norm of the difference of two lists of tensors, of the norm of the first; 0 of none."""
    a, b = (torch.cat([torch.zeros(1), *(x.detach().flatten().cpu() for x in xs)]).double() for xs in (one, other))
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


def pair(run, tasks, device, start=None) -> tuple[Learner, Learner]:
    """On the CPU and on the device, after two steps on the CPU, in the same state."""
    one, other = Learner(run, tasks, start=start), Learner(run, tasks, device, start)
    assert apart(weights(one).values(), weights(other).values()) == 0
    for _ in range(2):
        one.update()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    return one, other


@pytest.mark.parametrize("method, condition", CASES)
def test_a_step_and_a_new_task_are_those_of_a_cpu(method, condition, three, device, same_numbers, page):
    run = tiny(method, steps=3, **NET, condition=condition, options=OPTIONS.get(method, {}))
    one, other = pair(run, three[:2], device)
    for learner in (one, other):
        learner.next_task()
    states = zip(one.method.state.values(), other.method.state.values(), strict=True)
    state = max((apart([a], [b]) for a, b in states), default=0.0)  # of each alone: images are as large as all the rest
    one.update()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    losses = [learner.update() for learner in (one, other)]
    gradients = [[p.grad for p in learner.net.parameters() if p.grad is not None] for learner in (one, other)]
    found = {"loss": apart(losses[:1], losses[1:]), "gradient": apart(*gradients), "state": state}
    page(f"{method}, given the {condition}: off the CPU's by", **found)
    assert max(found.values()) < CLOSE


def test_a_network_to_begin_with_is_the_saved_one(three, device, begun):
    learner = Learner(tiny(start=tiny().name), three[:2], device, begun)
    saved, found = tensors(begun, Path(WEIGHTS))["parameters"], learner.net.state_dict()
    assert all(torch.equal(found[name].cpu(), values.float()) for name, values in saved.items())


def test_features_are_those_of_a_cpu(three, device, stand_in, page):
    """Of Inception's stand-in: whose weights it has is nothing to the path."""
    images, found = three[0].test.images[:20], {}
    for load in (partial(load_lenet, "digits"), partial(load_inception, stand_in)):
        one, other = (load(device=place) for place in ("cpu", device))
        found[one.name] = apart([one.extract(images)[0]], [other.extract(images)[0]])
    page("features: off the CPU's by", **found)
    assert max(found.values()) < CLOSE


def test_samples_bounds_losses_and_scores_are_those_of_a_cpu(three, device, same_numbers, page):
    run = tiny("finetune", steps=40, **NET, samples=64, sample_steps=10, bound_terms=50, learning_rate=2e-3)
    one, other = Learner(run, three[:2]), Learner(run, three[:2], device)
    while one.step < run.steps:
        one.update()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for learner in (one, other):
        Measurer(run, three[:2], device=learner.device)(Step(0, run.steps, torch.zeros(()), learner))
    scores, curves, _, samples = (list(zip(one.record[name], other.record[name])) for name in RECORDED)
    found = {"samples": apart(*(zip(*((a.float(), b.float()) for a, b in samples))))}
    for a, b in scores + curves:
        name = a.get("metric") or ("loss" if a["bpd"] is None else "bpd of curves")
        a, b = (x["value"] if "value" in x else x["loss"] if x["bpd"] is None else x["bpd"] for x in (a, b))
        if name in ("fid", "bpd", "bpd_unclipped", "bpd_fixedsmall", "loss", "bpd of curves"):
            found[name] = max(found.get(name, 0), abs(a - b) / abs(a))
    page("off the CPU's by", **found)
    assert len(found) == 7 and max(found.values()) < CLOSE


def test_half_precision_is_near_float32(three, device, page):
    if HALF == "float32":
        pytest.skip("this GPU has no bfloat16")
    whole, half = (Learner(tiny(steps=4, **NET, precision=p), three, device) for p in ("float32", "bfloat16"))
    for _ in range(2):  # in the first step the last layer is zero, and the loss that of no network
        whole.update()
    half.load_state_dict(copy.deepcopy(whole.state_dict()))
    losses = [learner.update() for learner in (whole, half)]
    gradients = [[p.grad for p in learner.net.parameters()] for learner in (whole, half)]
    found = {"loss": apart(losses[:1], losses[1:]), "gradient": apart(*gradients)}
    page("bfloat16, off float32 by", **found)
    assert 0 < found["loss"] < 0.01 and 0 < found["gradient"] < 0.1


def test_a_step_takes_the_memory_that_was_predicted(device, page):
    if device.type == "cpu":
        pytest.skip("torch counts the memory of a GPU alone")
    run = replace(runs("paper")[0], precision=HALF)
    learner = Cldiff(replace(run, batch=2 * run.batch), device).learner
    learner.update()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    learner.update()
    taken = (torch.cuda.max_memory_allocated() - before) / on_paper(run, 2 * run.batch)[1]
    page("memory of a step of profile paper, of what was predicted:", share=taken)
    assert 0.8 < taken < 2


@pytest.mark.parametrize("method, condition", CASES)
def test_no_step_waits_for_the_gpu(method, condition, three, device, within):
    if device.type == "cpu":
        pytest.skip("nobody waits for a CPU; test_device.py pretends a GPU")
    within(lambda quiet: torch.cuda.set_sync_debug_mode("error" if quiet else "default"))
    run = tiny(method, steps=2, condition=condition, options=OPTIONS.get(method, {}))
    measure = Measurer(run, three[:2], device=device)
    for step in train(run, three[:2], device=device):
        measure(step)


def test_training_leaves_the_generators_of_the_device_as_they_were(three, device):
    def states():
        return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])

    before = states()
    for _ in train(tiny(steps=2, dropout=0.5), three[:2], device=device):
        assert all(map(torch.equal, before, states()))


@pytest.mark.parametrize("method", ("replay", "lora"))
def test_compiled_is_eager(method, three, device, page):
    torch._dynamo.reset()
    net = NET if method == "replay" else {**NET, "multipliers": (1,)}  # LoRA has two graphs for one of the others
    eager, compiled = (
        Learner(tiny(method, steps=3, **net, compiled=compiled), three[:2], device) for compiled in (False, True)
    )
    found = {}
    for learner in (eager, compiled):
        learner.losses = []
        for task in range(2):
            learner.losses += [learner.update().clone() for _ in range(3)]
            learner.drawn = learner.sample(task, 5, 3, 0.0, "a")
            if task == 0:
                learner.next_task()
    found = {"losses": apart(eager.losses, compiled.losses), "samples": apart([eager.drawn], [compiled.drawn])}
    page(f"compiled {method}, off eager by", **found)
    assert max(found.values()) < 5 * CLOSE


def test_too_little_memory_is_one_line_and_costs_the_next_run_nothing(three, device):
    with pytest.raises(
        TrainingError, match=rf"^out of memory on {device}: fewer JOBS, or lower batch={2**40}, [^\n]*$"
    ):
        next(train(tiny(batch=2**40), three, device=device))
    assert len(list(train(tiny(steps=2), three[:2], device=device))) == 4


# Processes

METHODS_KILLED = ("replay", "generative")
RUN = """import json, sys
from cldiff import Run, make_run
run, folder, device, every = sys.argv[1:]
assert make_run(Run(**json.loads(run)), folder, device=device, checkpoint_seconds=float(every))
"""


def short(method: str) -> Run:
    return tiny(method, steps=40, tasks=3, multipliers=(1, 2), deterministic=True, precision=HALF)


def started(start, method, folder, device, every="300"):
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    words = json.dumps(asdict(short(method))), str(folder), device.type, every
    return start([sys.executable, "-c", RUN, *words], env=environment)


def tables(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("scores.csv", "curves.csv", "bootstrap.csv", "samples.png")]


@pytest.fixture(scope="module")
def undisturbed(device, tmp_path_factory):
    """Tables of a run of each of two methods, one after the other."""
    found = {}
    for method in METHODS_KILLED:
        folder = tmp_path_factory.mktemp(method) / short(method).name
        started(subprocess.run, method, folder, device).check_returncode()
        found[method] = tables(folder)
    return found


@pytest.mark.parametrize("method", METHODS_KILLED)
def test_a_killed_run_continues_to_the_same_bits_where_deterministic(
    method, undisturbed, device, start, tmp_path, page
):
    folder, killed = tmp_path / short(method).name, time.monotonic()
    process = started(start, method, folder, device, "0")
    while not (folder / CHECKPOINT).exists():  # within the second task
        assert process.poll() is None and time.monotonic() - killed < 240
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "result.json").exists()
    assert started(start, method, folder, device).wait() == 0
    assert tables(folder) == undisturbed[method]


def test_two_runs_share_the_device(undisturbed, device, start, tmp_path):
    processes = {m: started(start, m, tmp_path / m / short(m).name, device) for m in undisturbed}
    assert [process.wait() for process in processes.values()] == [0, 0]
    for method, expected in undisturbed.items():
        assert tables(tmp_path / method / short(method).name) == expected
