"""Time to quality: how long it takes until samples are good, beside diffusers and lucidrains' denoising-diffusion-pytorch.

`python tests/bench_quality.py` trains the three on the first task of MNIST, turn by turn in one process, until the
LeNet-FID of their samples is below three times that of as many real images, or until the minutes of each are over, and
writes results/bench/quality/<machine>.json, which notebooks/bench.ipynb draws. Ours is the network of paper-cpu. That
of diffusers has as many parameters, in its own blocks, whose first level works on every pixel; that of lucidrains is as
in his README, with the two halvings that 28 pixels allow. Loss, images, batch, Adam and its learning rate, which was
chosen for ours, are the same; averages are those that each comes with.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import bench
import torch
from torch import Tensor

from cldiff.features import load_lenet
from cldiff.learner import Learner
from cldiff.metrics import Gaussian, fid, fid_floor
from cldiff.results import provenance
from cldiff.run import Run
from cldiff.study import runs
from cldiff.tasks import Task, load_tasks, to_uint8

GOOD = 3  # times the FID of real images
PAUSE = 0.15  # of the seconds trained, from one look at samples to the next; looks take no longer than training


class Cldiff:
    """Our own, as a run calls it."""

    def __init__(self, run: Run, tasks: list[Task]):
        self.learner = Learner(run, tasks)
        self.net = self.learner.net

    def train(self, n: int) -> None:
        self.learner.update()

    def sample(self, n: int) -> Tensor:
        run = self.learner.run
        return self.learner.sample(0, n, run.sample_steps, run.eta, "samples")


def diffusers(run: Run, tasks: list[Task]) -> bench.Peer:
    """Its widths and blocks are ours, at 28x28 pixels: the same number of parameters within a percent."""
    return bench.Diffusers(replace(run, patch=1, attention=14), "cpu")


def lucidrains(run: Run, tasks: list[Task]) -> bench.Peer:
    return bench.Lucidrains(replace(run, channels=64, multipliers=(1, 2, 4)), "cpu")


WHO = {"cldiff": Cldiff, "diffusers": diffusers, "lucidrains": lucidrains}


def until_good(run: Run, tasks: list[Task], budget: float, first: float) -> dict:
    """What is written to the file, but for the machine: for each library its parameters, whether it became good, and of
    each look the seconds trained, the steps and the FID. budget: seconds of training, at most; first: until the first
    look."""
    lenet, images = load_lenet(run.dataset), tasks[0].train.images
    features, _ = lenet.extract(images)
    real, floor = Gaussian.of(features), fid_floor(features, run.samples)
    found = {
        "samples": run.samples,
        "batch": run.batch,
        "floor": floor,
        "good": GOOD * floor,
        "who": {},
    }
    libraries = {}
    for who, make in WHO.items():
        torch.manual_seed(run.seed)
        try:
            libraries[who] = make(run, tasks)
        except ImportError as error:
            bench.say(f"{who} left out: {error}")
            continue
        libraries[who].images = images
        parameters = sum(p.numel() for p in libraries[who].net.parameters())
        found["who"][who] = {"parameters": parameters, "looks": [], "reached": False}
    spent, steps, goals = (dict.fromkeys(libraries, start) for start in (0.0, 0, min(first, budget)))
    while left := [who for who in libraries if not found["who"][who]["reached"] and spent[who] < budget]:
        who = min(left, key=spent.get)
        library, own = libraries[who], found["who"][who]
        library.net.train()
        while spent[who] < goals[who]:
            start = time.perf_counter()
            library.train(run.batch)
            spent[who] += time.perf_counter() - start
            steps[who] += 1
        start = time.perf_counter()
        seen, _ = lenet.extract(to_uint8(library.sample(run.samples)))
        value = fid(seen, real)
        own["looks"].append({"seconds": spent[who], "steps": steps[who], "fid": value})
        own["reached"] = value < found["good"]
        bench.say(f"{who}: {spent[who]:.0f} s, {steps[who]:,} steps, FID {value:.1f} (good: {found['good']:.1f})")
        goals[who] = min(budget, spent[who] + max(spent[who] * PAUSE, time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/bench_quality.py", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15, help="of training, for each library (default 15)")
    parser.add_argument("--samples", type=int, default=256, help="of each look (default 256)")
    parser.add_argument("--out", type=Path, default=Path("results/bench/quality"), help="folder")
    parser.error = lambda message: sys.exit(f"error: {message}")
    words = parser.parse_args()
    try:
        run = replace(runs("paper-cpu", only="mnist-finetune")[0], samples=words.samples)
        words.out.mkdir(parents=True, exist_ok=True)
        report = {**provenance(torch.device("cpu")), **until_good(run, load_tasks(run.dataset), 60 * words.minutes, 60)}
        print(bench.save(report, words.out))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {str(error).partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
