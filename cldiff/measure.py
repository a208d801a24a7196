"""What is measured during a run, and when."""

import dataclasses
import json
import os
import platform
import subprocess
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from . import metrics
from .features import load_lenet
from .methods.replay import buffer
from .runs import COLUMNS, CURVES, FILES, PROTOCOL, ResultError, Run, file_sha256, write_atomically
from .tasks import Task, data_sha256, to_uint8
from .train import Learner, Step

SHOWN = 10  # samples of each task that samples.png shows


class Measurer:
    """Called after each step of train(): adds points to the curves of task 1 and, after each task, a row to the
    result matrices. Draws no random number that training sees."""

    def __init__(self, run: Run, tasks: list[Task], cache: str | Path = "data", device: str | torch.device = "cpu"):
        self.run, self.tasks, self.device = run, tasks, device
        self.lenet = load_lenet(run.dataset, tasks, cache, device)

    def __call__(self, step: Step) -> None:
        start = time.perf_counter()
        if step.step % self.run.curve_every == 0:
            self._curves(step)
        if step.step == self.run.steps:
            self._scores(step.learner)
        step.learner.seconds["measure"] += time.perf_counter() - start

    def _curves(self, step: Step) -> None:
        """Task 1 under the current weights: the loss by timestep on validation images and on those of the buffer, the
        bound on validation images. The same images and the same noise at every point."""
        learner, run = step.learner, self.run
        model = learner.model(0)
        same = {"task": 0, "step": 0}
        row = {"step": step.total, "task": step.task + 1, "eval_task": 1, "timestep": None, "loss": None, "bpd": None}
        splits = {"validation": self.tasks[0].validation.images, "buffer": buffer(learner, 0).images}
        for split, images in splits.items():
            images = images[: run.curve_images].to(self.device)
            losses = metrics.losses_by_timestep(learner.diffusion, model, images, run.curve_timesteps,
                                                learner.generator(f"losses {split}", **same))
            learner.curves += [{**row, "split": split, "timestep": t, "loss": loss}
                               for t, loss in zip(run.curve_timesteps, losses)]
        images = splits["validation"][: run.curve_images].to(self.device)
        bits = metrics.bits_per_dim(learner.diffusion, model, images, run.bound_terms, learner.generator("bound", **same))
        learner.curves.append({**row, "split": "validation", "bpd": bits})

    def _scores(self, learner: Learner) -> None:
        """Row j of the result matrices: every task so far under the model after task j."""
        run, after = self.run, learner.task
        shown = []
        for task in self.tasks[: after + 1]:
            row = {"after_task": after + 1, "eval_task": task.index + 1}
            samples = to_uint8(learner.sample(task.index, run.samples, run.sample_steps, run.eta, "samples")).cpu()
            shown.append(samples[:SHOWN])
            drawn = {**row, "extractor": self.lenet.name, "n": len(samples), "sampler": run.sampler}
            features, classes = self.lenet.extract(samples)
            for split, real in self.lenet.real.items():
                learner.scores.append({**drawn, "metric": "fid", "split": split,
                                       "value": metrics.fid(features, real[task.index])})
            for metric, wanted in (("accuracy", task), ("taken_for_current", self.tasks[after])):
                learner.scores.append({**drawn, "metric": metric, "split": None,
                                       "value": metrics.task_accuracy(classes, wanted.classes)})
            images = task.test.images[: run.bound_images].to(self.device)
            bits = metrics.bits_per_dim(learner.diffusion, learner.model(task.index), images, run.bound_terms,
                                        learner.generator(f"bound {task.index}"))
            learner.scores.append({**row, "metric": "bpd", "split": "test", "value": bits, "extractor": None,
                                   "n": len(images), "sampler": f"terms{run.bound_terms}"})
        learner.samples.append(torch.stack(shown))  # (tasks so far, SHOWN, C, H, W)

    def save(self, folder: Path | str, learner: Learner) -> None:
        """Writes the folder of a finished run."""
        floors = [{"after_task": None, "eval_task": task.index + 1, "metric": "fid_floor", "split": "train",
                   "extractor": self.lenet.name, "n": min(self.run.samples, len(task.train) // 2), "sampler": None,
                   "value": metrics.fid_floor(self.lenet.real["train"][task.index], self.run.samples)} for task in self.tasks]
        save_result(Path(folder), self.run, learner.scores + floors, learner.curves, mosaic(learner.samples),
                    learner.seconds, {"data": data_sha256(self.run.dataset), "lenet": self.lenet.sha256},
                    torch.device(self.device))


def mosaic(samples: list[Tensor]) -> Image.Image:
    """One row of pictures after each task, one block of columns for each task ID; white where there is none yet."""
    tasks, (_, shown, _, height, width) = len(samples), samples[-1].shape
    sheet = torch.full((tasks, tasks, shown, height, width), 255, dtype=torch.uint8)
    for after, row in enumerate(samples):
        sheet[after, : after + 1] = row[:, :, 0]
    return Image.fromarray(sheet.permute(0, 3, 1, 2, 4).reshape(tasks * height, tasks * shown * width).numpy())


def provenance(device: torch.device) -> dict:
    """The machine, the versions and the commit that a result was made with."""
    models = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")] \
        if os.path.exists("/proc/cpuinfo") else []
    git = lambda *words: subprocess.run(  # noqa: E731
        ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True)
    head = git("rev-parse", "--verify", "HEAD")
    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no").stdout else ""
    return {
        "machine": {"cpu": models[0] if models else platform.processor() or platform.machine(),
                    "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
                    "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(),
                     **{name: version(name) for name in ("torch", "torchvision", "numpy", "scipy")}},
        "commit": head.stdout.strip() + changed if head.returncode == 0 else None,
    }


def save_result(folder: Path, run: Run, scores: list[dict], curves: list[dict], samples: Image.Image, seconds: dict,
                sha256: dict, device: torch.device = torch.device("cpu")) -> None:
    """Writes the folder of a finished run, result.json last. Raises ResultError if there is a finished one."""
    if (folder / "result.json").exists():
        raise ResultError(f"{folder} holds a finished run: delete it to do the run again")
    # With pandas' own types integers stay integers beside missing values.
    table = lambda rows, columns: partial(pd.DataFrame(rows, columns=columns).convert_dtypes().to_csv, index=False)  # noqa: E731
    write_atomically(folder / "scores.csv", table(scores, COLUMNS))
    write_atomically(folder / "curves.csv", table(curves, CURVES))
    write_atomically(folder / "samples.png", samples.save)
    result = {"protocol": PROTOCOL, "run": dataclasses.asdict(run), "seconds": seconds, **provenance(device),
              "sha256": {**sha256, **{name: file_sha256(folder / name) for name in FILES[:-1]}}}
    write_atomically(folder / "result.json", lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
