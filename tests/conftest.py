import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

from cldiff import load_tasks
from cldiff.diffusion import Diffusion
from cldiff.features import INCEPTION, LeNet
from cldiff.learner import Learner
from cldiff.methods import METHODS
from cldiff.results import WEIGHTS
from cldiff.run import Run
from cldiff.tasks import DATASETS, Split
from cldiff.train import pick_device, train
from cldiff.unet import save_unet

torch.set_num_threads(1)

DATA = Path(__file__).parents[1] / "data"
RAW = {"mnist": DATA / "MNIST" / "raw", "fashion_mnist": DATA / "FashionMNIST" / "raw"}

TINY = dict(
    steps=4,
    batch=8,
    learning_rate=5e-3,
    channels=8,
    multipliers=(1,),
    blocks=1,
    attention=4,
    buffer=5,
    pool=6,
    pool_steps=2,
    samples=16,
    sample_steps=2,
    bound_terms=4,
    bound_images=8,
    curve_every=2,
    curve_images=8,
    early=50,
    late=300,
)


OPTIONS = {  # of methods, for runs of seconds: few images, and in each step what happens in some
    **dict.fromkeys(("ewc", "mas", "rank1", "rank1_distillation"), {"images": 2}),
    "self_tuned": {"every": 1},
}
PAGE = []  # lines of what was measured, shown at the end


def need(dataset: str) -> None:
    """Skips the test where the data folder of this clone does not hold a data set."""
    for part in set(DATASETS[dataset].parts or [dataset]) & RAW.keys():
        if not all((RAW[part] / n).exists() or (RAW[part] / f"{n}.gz").exists() for n in DATASETS[part].sha256):
            pytest.skip(f"{RAW[part]} does not hold the data set")


def pytest_addoption(parser):
    parser.addoption("--device", help="cpu or cuda, for test_gpu.py")


def pytest_configure(config):
    if name := config.getoption("--device"):
        try:
            pick_device(name)
        except (ValueError, RuntimeError) as error:
            raise pytest.UsageError(str(error)) from None


def pytest_terminal_summary(terminalreporter):
    for line in PAGE:
        terminalreporter.write_line(line)


@pytest.fixture
def page():
    """page(title, name=number, ...): a line for the page of what was measured."""
    return lambda title, **found: PAGE.append(f"{title} {', '.join(f'{k} {v:.1e}' for k, v in found.items())}")


@pytest.fixture
def within(monkeypatch):
    """within(tell): from now on tell(True) is called where a step begins, and sampling, the bound, losses or features;
    tell(False) at its end. But not at a task's first step, in which methods gather what they need."""

    def watch(tell):
        deep = []

        def hold(owner, name, when=lambda self: True):
            real = getattr(owner, name)

            def held(self, *words, **named):
                deep.append(bool(deep and deep[-1]) or when(self))
                tell(deep[-1])
                try:
                    return real(self, *words, **named)
                finally:
                    deep.pop()
                    tell(bool(deep and deep[-1]))

            monkeypatch.setattr(owner, name, held)

        hold(Learner, "update", lambda learner: learner.step > 0)
        hold(Learner, "sample")
        hold(Diffusion, "bounds")
        hold(Diffusion, "losses")
        hold(LeNet, "features")

    return watch


def tiny(method="finetune", **changes) -> Run:
    """A Run of seconds. `steps` may be given alone: the curves then have a point at the end of each task. Gradients of
    single images are of 64 images."""
    if "steps" in changes:
        changes = {"curve_every": changes["steps"], **changes}
    if method in METHODS and "images" in METHODS[method].Options.names():
        changes["options"] = {"images": 64, **changes.get("options", {})}
    return Run(**{**TINY, "method": method, **changes})


def copied(net) -> dict:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def weights(learner) -> dict:
    """A copy of the network and of its average, by name."""
    return {
        f"{part} {name}": value for part in ("net", "ema") for name, value in copied(getattr(learner, part)).items()
    }


def same(one: dict, other: dict) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def weights_after_tasks(run, tasks, folder=None) -> list[dict]:
    return [weights(step.learner) for step in train(run, tasks, folder) if step.step == run.steps]


def with_noise_held_out(tasks: list) -> list:
    """The same training images; validation and test images are noise."""
    noise = torch.Generator().manual_seed(0)

    def ruined(split: Split) -> Split:
        return Split(torch.randint(256, split.images.shape, generator=noise, dtype=torch.uint8), split.labels)

    return [dataclasses.replace(task, validation=ruined(task.validation), test=ruined(task.test)) for task in tasks]


def without_code(notebooks: Iterable[Path]) -> None:
    """Leaves of notebooks their parameters: what they draw takes seconds, and is tested elsewhere."""
    for path in notebooks:
        book = nbformat.read(path, 4)
        book.cells = [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]
        nbformat.write(book, path)


def make_job(folder: Path, job: dict, **environment) -> subprocess.CompletedProcess:
    """`python -m cldiff make` of a plan in this folder that has one target, of this job."""
    plan = folder / "results" / "any" / "jobs.json"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_text(json.dumps({"target": {"kind": "run", **job}}))
    return subprocess.run(
        [sys.executable, "-m", "cldiff", "make", "any", "target"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="session")
def digits():
    return load_tasks("digits")


@pytest.fixture(scope="session")
def three(digits):
    """The first three tasks: the shortest sequence with a past of more than one task."""
    return digits[:3]


@pytest.fixture(scope="session")
def trained(three):
    """trained(method, **changes): the weights after each of three tasks. Trained once for all tests, not to be changed."""
    return lru_cache(lambda method, **changes: weights_after_tasks(tiny(method, **{"steps": 2, **changes}), three))


@pytest.fixture
def begun(three, tmp_path) -> bytes:
    """The content of weights.pt of a run of two tasks that is called tiny().name."""
    one = Learner(tiny(), three[:2])
    save_unet(tmp_path / WEIGHTS, one.ema, one.arguments)
    return (tmp_path / WEIGHTS).read_bytes()


class StandIn(nn.Module):
    """As NVIDIA's TorchScript: `layers` takes images of 299 pixels scaled to about [-1, 1] and returns 2,048 features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 2048), nn.ReLU())

    def forward(self, x, return_features: bool = False):
        return self.layers(x)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A folder with the stand-in where Inception's weights go."""
    folder = tmp_path_factory.mktemp("inception")
    with torch.random.fork_rng():
        torch.jit.script(StandIn().eval()).save(str(folder / INCEPTION))
    return folder


@pytest.fixture
def start():
    """start(words): a process that ends with the test, whatever becomes of it."""
    processes = []

    def begin(words: list[str], **how) -> subprocess.Popen:
        processes.append(subprocess.Popen(words, text=True, **how))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def documented(words: str, page: str = "docs/extending.md") -> str:
    """The code of a page in which these words stand."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.S) if words in code)
    return block
