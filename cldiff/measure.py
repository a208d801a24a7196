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
from .features import FeatureError, load_inception, load_lenet, real_features
from .files import file_sha256, write_atomically
from .learner import Learner, before
from .methods.replay import buffer
from .runs import FILES, PROTOCOL, TABLES, WEIGHTS, ResultError, Run
from .tasks import Task, data_sha256, to_uint8
from .train import CHECKPOINT, Step, one_line_errors
from .unet import UNet, save_unet

SHOWN = 10  # samples of each task that samples.png shows


class Measurer:
    """Called after each step of train(): adds points to the curves of task 1 and, after each task, a row to the
    result matrices. Draws no random number that training sees.

    cache: the folder of Inception's weights. `missing` says in one line what could not be had, or is None.
    """

    def __init__(self, run: Run, tasks: list[Task], cache: str | Path = "data", device: str | torch.device = "cpu"):
        self.run, self.tasks, self.device, self.missing = run, tasks, device, None
        self.extractors = [load_lenet(run.dataset, device)]
        if run.inception:
            try:
                self.extractors.append(load_inception(cache, device))
            except FeatureError as error:
                self.missing = str(error)
        self.real = {extractor.name: real_features(extractor, tasks, cache) for extractor in self.extractors}
        self.fitted = {name: {split: [metrics.Gaussian.of(features) for features in parts] for split, parts in splits.items()}
                       for name, splits in self.real.items()}

    def __call__(self, step: Step) -> None:
        start = time.perf_counter()
        with one_line_errors(self.run, self.device):
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
        learner.curves.append({**row, "split": "validation", "bpd": bits["bpd"].mean().item()})

    def _scores(self, learner: Learner) -> None:
        """Row j of the result matrices: every task so far under the model after task j."""
        run, after, shown = self.run, learner.task, []
        last = after == len(self.tasks) - 1
        for task in self.tasks[: after + 1]:
            row = {"after_task": after + 1, "eval_task": task.index + 1}
            samples = to_uint8(learner.sample(task.index, run.samples, run.sample_steps, run.eta, "samples")).cpu()
            shown.append(samples[:SHOWN])
            replicates = {}
            for extractor in self.extractors:
                features, classes = extractor.extract(samples)
                drawn = {**row, "extractor": extractor.name, "n": len(samples), "sampler": run.sampler}
                fitted, real = metrics.Gaussian.of(features), self.fitted[extractor.name]["train"][task.index]
                for split, parts in self.real[extractor.name].items():
                    values = {"fid": metrics.fid(fitted, self.fitted[extractor.name][split][task.index]),
                              **metrics.distances(features, parts[task.index])}
                    learner.scores += [{**drawn, "metric": metric, "split": split, "value": value}
                                       for metric, value in values.items()]
                if last:
                    learner.scores += [{**drawn, "metric": "fid_by_n", "split": "train", "n": n,
                                        "value": metrics.fid(features[:n], real)}
                                       for n in metrics.sample_sizes(len(samples))]
                if classes is None:
                    continue
                for metric, wanted in (("accuracy", task), ("taken_for_current", self.tasks[after])):
                    learner.scores.append({**drawn, "metric": metric, "split": None,
                                           "value": metrics.task_accuracy(classes, wanted.classes)})
                if last or task.index == after:  # what average and forgetting are made of
                    picks = metrics.resampled(len(samples))
                    replicates["fid"] = [metrics.fid(features[pick], real) for pick in picks]
                    replicates["accuracy"] = [metrics.task_accuracy(classes[pick], task.classes) for pick in picks]
            images = task.test.images[: run.bound_images].to(self.device)
            bits = metrics.bits_per_dim(learner.diffusion, learner.model(task.index), images, run.bound_terms,
                                        learner.generator(f"bound {task.index}"), tuple(metrics.BOUNDS))
            for metric, values in bits.items():
                variance, clip = metrics.BOUNDS[metric]
                how = f"terms{run.bound_terms}-{variance}-{'clipped' if clip else 'unclipped'}"
                learner.scores.append({**row, "metric": metric, "split": "test", "value": values.mean().item(),
                                       "extractor": None, "n": len(images), "sampler": how})
            if last or task.index == after:
                replicates["bpd"] = bits["bpd"].cpu()[metrics.resampled(len(images))].mean(1).tolist()
            learner.bootstrap += [{**row, "metric": metric, **{f"replicate{k}": v for k, v in enumerate(values)}}
                                  for metric, values in replicates.items()]
        learner.samples.append(torch.stack(shown))  # (tasks so far, SHOWN, C, H, W)

    def floors(self) -> list[dict]:
        """The FID of real images: what 0 looks like at these numbers of images. Against "train" the training images of
        a task are split into two parts of n; against "test", n training images stand for the samples."""
        rows = []
        for extractor, splits in self.real.items():
            for index, train in enumerate(splits["train"]):
                row = {"after_task": None, "eval_task": index + 1, "extractor": extractor, "sampler": None}
                half = min(self.run.samples, len(train) // 2)
                rows += [{**row, "metric": metric, "split": "train", "n": n, "value": metrics.fid_floor(train, n)}
                         for metric, sizes in (("fid_floor", [half]), ("fid_floor_by_n", metrics.sample_sizes(half)))
                         for n in sizes]
                some = train[: self.run.samples]
                rows.append({**row, "metric": "fid_floor", "split": "test", "n": len(some),
                             "value": metrics.fid(some, splits["test"][index])})
        return rows

    def save(self, folder: Path | str, learner: Learner) -> None:
        """Writes the folder of a finished run."""
        tables = {"scores.csv": learner.scores + self.floors(), "curves.csv": learner.curves, "bootstrap.csv": learner.bootstrap}
        save_result(Path(folder), self.run, learner.ema, tables, mosaic(learner.samples), learner.seconds,
                    {"data": data_sha256(self.run.dataset), **{e.name: e.sha256 for e in self.extractors}},
                    torch.device(self.device), {e.name: e.accuracy for e in self.extractors if e.accuracy})


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


def save_result(folder: Path, run: Run, net: UNet, tables: dict[str, list[dict]], samples: Image.Image, seconds: dict,
                sha256: dict, device: torch.device = torch.device("cpu"), accuracy: dict | None = None) -> None:
    """Writes the folder of a finished run, result.json last. Raises ResultError if there is a finished one."""
    if (folder / "result.json").exists():
        raise ResultError(f"{folder} holds a finished run: delete it to do the run again")
    for name, columns in TABLES.items():
        # With pandas' own types integers stay integers beside missing values.
        table = pd.DataFrame(tables[name], columns=columns).convert_dtypes()
        write_atomically(folder / name, partial(table.to_csv, index=False))
    write_atomically(folder / "samples.png", samples.save)
    save_unet(folder / WEIGHTS, net)
    result = {"protocol": PROTOCOL, "run": dataclasses.asdict(run), "seconds": seconds, **provenance(device),
              "accuracy": accuracy or {},  # of the extractors' classifiers, on test images
              "sha256": {**sha256, **{name: file_sha256(folder / name) for name in FILES[:-1]}}}
    write_atomically(folder / "result.json", lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    for path in (folder / CHECKPOINT, before(folder / CHECKPOINT), *folder.glob(".*-*")):  # and what a kill left half-written
        path.unlink(missing_ok=True)
