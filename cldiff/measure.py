"""What is measured during a run, and when."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import Problem, located_errors
from .features import FeatureError, load_inception, load_lenet, real_features
from .learner import Learner
from .methods.replay import buffer
from .metrics import (
    METRICS,
    NEIGHBOURS,
    AgainstKept,
    AgainstReal,
    Drawn,
    OfClasses,
    OfImages,
    Predictor,
    Real,
    fid,
    fid_floor,
    losses_by_timestep,
    metrics_of,
    resampled,
    sample_sizes,
)
from .results import COLUMNS, provenance, save_result
from .run import Run
from .tasks import Task, data_sha256, to_model, to_uint8
from .train import CHECKPOINT, Step, one_line_errors

RECORDED = ("scores", "curves", "bootstrap", "samples")  # what is added to a learner's record
SHOWN = 10  # samples of each task that samples.png shows


def predictors(learner: Learner, task: Task) -> list[Predictor]:
    """Of the test images of a task, for each ID: what metrics of the kind OfImages are computed from. The random
    numbers are those of the step that the learner is at."""
    run, generator = learner.run, learner.generator(f"bound {task.index}")
    return [
        Predictor(learner.diffusion, learner.model(number), images.to(learner.device), run.bound_terms, generator)
        for number, images in learner.ids.parts(task.index, task.test[: run.bound_images])
    ]


class Measurer:
    """Called after each step of train(): adds points to the curves of task 1 and, after each task, a row to the
    result matrices. Draws no random number that training sees.

    cache: the folder of Inception's weights and of its features of real images. `missing` says in one line what could
    not be had, or is None.
    """

    def __init__(self, run: Run, tasks: list[Task], cache: str | Path = "data", device: str | torch.device = "cpu"):
        self.run, self.tasks, self.device, self.missing = run, tasks, device, None
        self.made = provenance(torch.device(device))  # of the code that is loaded now, not when the run is over
        self.extractors = [load_lenet(run.dataset, device)]
        if run.inception:
            try:
                self.extractors.append(load_inception(cache, device))
            except FeatureError as error:
                self.missing = str(error)
        self.real = {
            extractor.name: {
                split: [Real(features) for features in parts]
                for split, parts in real_features(extractor, tasks, cache).items()
            }
            for extractor in self.extractors
        }
        self.means = {e.name: e.sha256 for e in self.extractors} | dict.fromkeys(METRICS, "")  # kept in checkpoints
        fewest = min(len(real.features) for of in self.real.values() for parts in of.values() for real in parts)
        if fewest <= NEIGHBOURS:
            raise Problem(
                f"{run.dataset}: a task has {fewest} images in one of its splits, expected more than {NEIGHBOURS}: "
                f"precision and recall ask for {NEIGHBOURS} neighbours"
            )

    def __call__(self, step: Step) -> None:
        start = time.perf_counter()
        for name in RECORDED:
            step.learner.record.setdefault(name, [])
        then = step.learner.record.setdefault("means", self.means)
        if changed := sorted(name for name in then.keys() | self.means if then.get(name) != self.means.get(name)):
            raise Problem(
                f"{self.run.name}: {', '.join(changed)} came, went or changed since its first task was measured: put "
                f"that back, or remove its {CHECKPOINT} and first_task/{self.run.first_task_name}.pt to begin anew"
            )
        if self.made not in (made := step.learner.record.setdefault("provenance", [])):
            if made and made[-1]["commit"] != self.made["commit"]:
                then, now = (of["commit"] or "no commit" for of in (made[-1], self.made))
                print(f"goes on with the code of {now} from a checkpoint of {then}: both are kept", file=sys.stderr)
            made.append(self.made)
        with one_line_errors(self.run, self.device), located_errors():
            if step.step % self.run.curve_every == 0:
                self._curves(step)
            if step.step == self.run.steps:
                self._scores(step.learner)
        step.learner.seconds["measure"] += time.perf_counter() - start

    def _curves(self, step: Step) -> None:
        """Task 1 under the current weights: the loss by timestep on validation images and on those of the buffer, the
        bound on validation images. The same images and the same noise at every point."""
        learner, run, curves = step.learner, self.run, step.learner.record["curves"]
        same = {"task": 0, "step": 0}
        row = {"step": step.total, "task": step.task + 1, "eval_task": 1, "timestep": None, "loss": None, "bpd": None}
        validation, kept = self.tasks[0].validation[: run.curve_images], buffer(learner, 0)[: run.curve_images]
        for split, images in (("validation", validation), ("buffer", kept)):
            generator, losses = learner.generator(f"losses {split}", **same), 0
            for number, part in learner.ids.parts(0, images):
                found = losses_by_timestep(
                    learner.diffusion, learner.model(number), part.to(self.device), run.curve_timesteps, generator
                )
                losses = losses + len(part) / len(images) * np.array(found)
            curves += [
                {**row, "split": split, "timestep": t, "loss": loss}
                for t, loss in zip(run.curve_timesteps, losses.tolist())
            ]
        generator, terms = learner.generator("bound", **same), run.bound_terms
        bits = [
            learner.diffusion.bits_per_dim(
                learner.model(number), to_model(part.to(self.device)), generator=generator, terms=terms
            )[0]
            for number, part in learner.ids.parts(0, validation)
        ]
        curves.append({**row, "split": "validation", "bpd": torch.cat(bits).mean().item()})

    def _scores(self, learner: Learner) -> None:
        """Row j of the result matrices: every task so far under the model after task j."""
        run, after, shown = self.run, learner.task, []
        last = after == len(self.tasks) - 1
        for task in self.tasks[: after + 1]:
            row = {"after_task": after + 1, "eval_task": task.index + 1}
            samples = to_uint8(learner.sample(task.index, run.samples, run.sample_steps, run.eta, "samples")).cpu()
            shown.append(samples[:SHOWN])
            replicates = {}
            counted = last or task.index == after  # what average and forgetting are made of
            for extractor in self.extractors:
                drawn = Drawn(*extractor.extract(samples), task, self.tasks[after])
                self._of_samples(learner, drawn, extractor.name, row, last)
                if drawn.classes is not None and counted:
                    replicates |= self._resampled(drawn, extractor.name)
            kept, n = buffer(learner, task.index).images, len(samples)
            for name, metric in metrics_of(AgainstKept).items() if len(kept) > 1 else ():
                value = metric.value(samples, kept)
                learner.record["scores"] += [score(name, value, metric.split, n=n, sampler=run.sampler, **row)]
                if metric.headline and counted:
                    replicates[name] = [float(metric.value(samples[pick], kept)) for pick in resampled(n)]
            replicates |= self._of_images(learner, task, row)
            if counted:
                learner.record["bootstrap"] += [
                    {**row, "metric": metric, **{f"replicate{k}": v for k, v in enumerate(values)}}
                    for metric, values in replicates.items()
                ]
        learner.record["samples"].append(torch.stack(shown))  # (tasks so far, SHOWN, C, H, W)

    def _of_samples(self, learner: Learner, drawn: Drawn, extractor: str, row: dict, last: bool) -> None:
        """The metrics of samples for one task ID in the eyes of one extractor."""
        n, scores, real = len(drawn.features), learner.record["scores"], self.real[extractor]
        row = {**row, "extractor": extractor, "sampler": self.run.sampler}
        for split, parts in real.items():
            scores += [
                score(name, metric.value(drawn, parts[drawn.task.index]), split, n=n, **row)
                for name, metric in metrics_of(AgainstReal).items()
            ]
        if last:
            train = real["train"][drawn.task.index].gaussian
            scores += [
                score("fid_by_n", fid(drawn.features[:size], train), "train", n=size, **row) for size in sample_sizes(n)
            ]
        if drawn.classes is not None:
            scores += [score(name, m.value(drawn), None, n=n, **row) for name, m in metrics_of(OfClasses).items()]

    def _resampled(self, drawn: Drawn, extractor: str) -> dict[str, list[float]]:
        """Replicates of the headline metrics of samples."""
        again, real = [drawn.resampled(pick) for pick in resampled(len(drawn.features))], self.real[extractor]
        against, of_classes = (metrics_of(kind, headline=True).items() for kind in (AgainstReal, OfClasses))
        values = {name: [m.value(d, real[m.split][drawn.task.index]) for d in again] for name, m in against}
        values |= {name: [m.value(d) for d in again] for name, m in of_classes}
        return {name: list(map(float, of)) for name, of in values.items()}

    def _of_images(self, learner: Learner, task: Task, row: dict) -> dict[str, list[float]]:
        """The metrics of test images; returns replicates of the headline ones."""
        metrics, seen = metrics_of(OfImages), predictors(learner, task)
        values = {name: torch.cat([metric.value(part).cpu() for part in seen]) for name, metric in metrics.items()}
        terms = f"terms{self.run.bound_terms}"
        learner.record["scores"] += [
            score(name, v.mean().item(), "test", n=len(v), sampler=f"{terms}{metrics[name].how}", **row)
            for name, v in values.items()
        ]
        picks = resampled(len(values["bpd"]))
        return {name: values[name][picks].mean(1).tolist() for name in metrics_of(OfImages, headline=True)}

    def floors(self) -> list[dict]:
        """The FID of real images: what 0 looks like at these numbers of images. Against "train" the training images of
        a task are split into two parts of n; against "test", n training images stand for the samples."""
        rows = []
        for extractor, splits in self.real.items():
            for index, train in enumerate(splits["train"]):
                row = {"after_task": None, "eval_task": index + 1, "extractor": extractor}
                half = min(self.run.samples, len(train.features) // 2)
                rows += [
                    score(metric, fid_floor(train.features, n), "train", n=n, **row)
                    for metric, sizes in (("fid_floor", [half]), ("fid_floor_by_n", sample_sizes(half)))
                    for n in sizes
                ]
                some = train.features[: self.run.samples]
                rows.append(score("fid_floor", fid(some, splits["test"][index].gaussian), "test", n=len(some), **row))
        return rows

    def save(self, folder: Path | str, learner: Learner) -> None:
        """Writes the folder of a finished run."""
        record = learner.record
        tables = {f"{name}.csv": record[name] for name in ("curves", "bootstrap")}
        tables["scores.csv"] = record["scores"] + self.floors()
        with located_errors():
            held = learner.method.held(learner)
        facts = {
            "seconds": learner.seconds,
            **self.made,
            "earlier": [made for made in record["provenance"] if made != self.made],  # of a run that went on elsewhere
            "accuracy": {e.name: e.accuracy for e in self.extractors if e.accuracy},
            "held": held,
            "sha256": {"data": data_sha256(self.run.dataset), **learner.begun}
            | {e.name: e.sha256 for e in self.extractors},
        }
        save_result(Path(folder), self.run, learner.ema, learner.arguments, tables, mosaic(record["samples"]), facts)


def score(
    metric: str,
    value: float,
    split: str | None,
    *,
    after_task: int | None,
    eval_task: int,
    n: int,
    extractor: str | None = None,
    sampler: str | None = None,
) -> dict:
    """A row of scores.csv. value: any number; a float is what checkpoints can hold."""
    return dict(zip(COLUMNS, (after_task, eval_task, metric, float(value), split, extractor, n, sampler)))


def mosaic(samples: list[Tensor]) -> Image.Image:
    """One row of pictures after each task, one block of columns for each task ID; white where there is none yet.

    samples: uint8 (tasks so far, n, C, H, W) after each task, grey (C = 1) or RGB (C = 3).
    """
    tasks, (_, shown, colours, height, width) = len(samples), samples[-1].shape
    sheet = torch.full((tasks, tasks, shown, colours, height, width), 255, dtype=torch.uint8)
    for after, row in enumerate(samples):
        sheet[after, : after + 1] = row
    sheet = sheet.permute(0, 4, 1, 2, 5, 3).reshape(tasks * height, tasks * shown * width, colours).numpy()
    return Image.fromarray(sheet[..., 0] if colours == 1 else sheet)
