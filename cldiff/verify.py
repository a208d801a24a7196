"""Published weights against published scores: fresh samples are drawn with each weights.pt, and their FID and task
accuracy asked whether they are those of scores.csv, within sampling error; bits per dimension are computed again."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from .errors import Problem
from .features import load_lenet, real_features
from .lazy import torch
from .learner import Learner
from .measure import predictors
from .metrics import METRICS, fid, resampled, sample_sizes, task_accuracy
from .results import WEIGHTS, ResultError, load_weights, read_result
from .run import Run
from .tasks import load_tasks, to_uint8

DRAWN = 1_024  # fresh samples for each task, at most
HALF = 0.001  # of BPD: the most that half precision of the weights changed in thirteen networks
LIMIT = 4  # standard errors; chance goes beyond them once in 16,000 comparisons


def verify(
    folder: Path, data: str | Path = "data", drawn: int = DRAWN, device: "str | torch.device" = "cpu"
) -> pd.DataFrame:
    """One row for each task and metric: published, fresh, standard error of their difference, and its size in units of
    that.

    FID is compared at the same number of samples, on which its bias depends, against training images and, where as many
    are drawn as for the tables, against test images; its error is that of resampled samples, for both sides. The error
    of accuracy is binomial. BPD is computed again, of the same images and, where neither it nor this is measured on a
    GPU, whose random numbers are others, of the same noise. Raises ResultError or ValueError for damaged or edited
    files.
    """
    result = read_result(folder)
    run = Run(**result["run"])
    lenet, tasks = load_lenet(run.dataset, device), load_tasks(run.dataset, data, **run.sequence)
    if result["sha256"]["lenet"] != lenet.sha256:
        raise ResultError(f"{folder}: measured with another LeNet than this version's")
    saved = load_weights(folder, result)
    learner = Learner(dataclasses.replace(run, compiled=False), tasks, device)
    try:
        learner.ema.load_state_dict(saved["parameters"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ResultError(
            f"{folder / WEIGHTS}: not the network of this run ({str(error).splitlines()[-1].strip()})"
        ) from None
    real = real_features(lenet, tasks, data)
    scores = pd.read_csv(folder / "scores.csv")
    scores = scores[(scores.after_task == len(tasks)) & (scores.extractor.isna() | (scores.extractor == lenet.name))]

    def published(metric: str, number: int, **where) -> float:
        chosen = (scores[["metric", "eval_task", *where]] == [metric, number, *where.values()]).all(axis=1)
        if chosen.sum() != 1 or not np.isfinite(value := scores.value[chosen].item()):
            words = " ".join(f"{name}={of}" for name, of in where.items())
            raise ResultError(
                f"{folder}: scores.csv has no {metric} of task {number} {words}".rstrip() + ", or several"
            )
        return value

    n = max(size for size in sample_sizes(run.samples) if size <= drawn)
    known = []  # of each task; before samples are drawn, which takes minutes
    for number in range(1, len(tasks) + 1):
        all_samples = published("fid_by_n", number, n=run.samples)
        if (in_tables := published("fid", number, split="train")) != all_samples:
            raise ResultError(
                f"{folder}: two values of the FID of task {number} in scores.csv, {in_tables:g} and, by number of "
                f"samples, {all_samples:g}: it was edited"
            )
        known.append(
            {
                "fid": published("fid_by_n", number, n=n),
                "fid, test": published("fid", number, split="test"),
                "accuracy": published("accuracy", number),
                "bpd": published("bpd", number),
            }
        )
    rows = []  # task, metric, samples, published, fresh, error
    for number, (task, values) in enumerate(zip(tasks, known), start=1):
        features, classes = lenet.extract(to_uint8(learner.sample(task.index, n, run.sample_steps, run.eta, "fresh")))
        for metric, split in {"fid": "train", **({"fid, test": "test"} if n == run.samples else {})}.items():
            of = real[split][task.index]
            replicates = [fid(features[pick], of) for pick in resampled(n)]
            error = np.sqrt(2) * np.std(replicates, ddof=1)
            rows.append((number, metric, n, values[metric], fid(features, of), error))
        value, fresh = values["accuracy"], task_accuracy(classes, task.classes)
        share = (value * run.samples + fresh * n + 1) / (run.samples + n + 2)  # one more of each: no error is 0
        rows.append((number, "accuracy", n, value, fresh, np.sqrt(share * (1 - share) * (1 / run.samples + 1 / n))))
    learner.task, learner.step = len(tasks) - 1, run.steps  # where it was measured
    other_noise = learner.device.type != "cpu" or result.get("machine", {}).get("gpu")
    for number, (task, values) in enumerate(zip(tasks, known), start=1):
        bits = torch.cat([METRICS["bpd"].value(part) for part in predictors(learner, task)])
        error = bits.std().item() * np.sqrt(2 / len(bits)) if other_noise else HALF
        rows.append((number, "bpd", len(bits), values["bpd"], bits.mean().item(), error))
    table = pd.DataFrame(rows, columns=["task", "metric", "samples", "published", "fresh", "error"])
    return table.assign(z=(table.fresh - table.published) / table.error)


def largest(table: pd.DataFrame) -> tuple[float, str]:
    """The largest |z|, of a task or of a metric over all of them, and whose it is. Samples are drawn apart for each
    task, so that what is a little too good in all adds up; the BPD of all have the same rounded weights."""
    table = table.assign(z=table.z.fillna(np.inf))  # of a network whose numbers are none
    found = [(abs(row.z), f"{row.metric} of task {row.task}") for row in table.itertuples()]
    for metric, z in table[table.metric != "bpd"].groupby("metric").z:
        found.append((abs(z.sum()) / len(z) ** 0.5, f"{metric} over all tasks"))
    return max(found)


def verify_all(results: Path, data: str | Path = "data", only: str = "", device: "str | torch.device" = "cpu") -> None:
    """Verifies every run with published weights, or those whose name starts with `only`, and prints what was found.
    Raises Problem if there is none, or if a difference is beyond LIMIT."""
    if not results.is_dir():
        raise Problem(f"{results}: no such folder; expected one of results, for example results/paper-cpu")
    folders = sorted(path.parent for path in results.glob(f"*/{WEIGHTS}") if path.parent.name.startswith(only))
    if only and not any(results.glob(f"{only}*/result.json")):
        raise Problem(f"no finished run in {results} whose name starts with {only!r}")
    if not folders:
        those = f"whose name starts with {only!r}" if only else f"of {results}"
        raise Problem(f"no {WEIGHTS} in the folders {those}: expected results with published weights")
    most = []
    for folder in folders:
        table = verify(folder, data, device=device)
        print(f"{folder.name}\n{table.round(3).to_string(index=False)}\n", flush=True)
        most.append((*largest(table), folder))
    finished = [path.parent for path in results.glob("*/result.json") if path.parent.name.startswith(only)]
    if bare := sum(not (folder / WEIGHTS).exists() for folder in finished):
        print(f"{bare} of {len(finished)} runs have no {WEIGHTS} here, and were not verified")
    z, whose, folder = max(most)
    if not z <= LIMIT:
        raise Problem(
            f"{folder}: the published {whose} differs from the fresh one by {z:.1f} standard errors, more than {LIMIT}"
        )
    print(f"every difference, of a task and over all, is at most {z:.1f} standard errors ({LIMIT} are allowed)")
