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
HALF = 0.001  # of BPD: the most that half precision of the weights changed in six networks
LIMIT = 4  # standard errors; chance goes beyond them once in 16,000 comparisons


def verify(folder: Path, data: str | Path = "data", drawn: int = DRAWN) -> pd.DataFrame:
    """One row for each task and metric: published, fresh, standard error of their difference, and its size in units of
    that.

    FID is compared at the same number of samples, on which its bias depends, against training images and, where as many
    are drawn as for the tables, against test images; its error is that of resampled samples, for both sides. The error
    of accuracy is binomial. BPD is computed again, of the same images in the same random numbers. Raises ResultError or
    ValueError for damaged files, and where the FID of the tables is not that of its own samples.
    """
    result = read_result(folder)
    run = Run(**result["run"])
    lenet, tasks = load_lenet(run.dataset), load_tasks(run.dataset, data, **run.sequence)
    if result["sha256"]["lenet"] != lenet.sha256:
        raise ResultError(f"{folder}: measured with another LeNet than this version's")
    saved = load_weights(folder, result)
    learner = Learner(dataclasses.replace(run, compiled=False), tasks)
    try:
        learner.ema.load_state_dict(saved["parameters"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ResultError(
            f"{folder / WEIGHTS}: not the network of this run ({str(error).splitlines()[-1].strip()})"
        ) from None
    real = real_features(lenet, tasks, data)
    scores = pd.read_csv(folder / "scores.csv")
    scores = scores[scores.after_task == len(tasks)]
    bounds = scores[scores.metric == "bpd"].set_index("eval_task").value
    scores = scores[scores.extractor == lenet.name]
    n = max(size for size in sample_sizes(run.samples) if size <= drawn)
    rows = []  # task, metric, samples, published, fresh, standard error of their difference
    for number, task in enumerate(tasks, start=1):
        features, classes = lenet.extract(to_uint8(learner.sample(task.index, n, run.sample_steps, run.eta, "fresh")))
        of_task = scores[scores.eval_task == number]
        by_n = of_task[of_task.metric == "fid_by_n"].set_index("n").value
        in_tables = of_task[of_task.metric == "fid"].set_index("split").value
        if in_tables["train"] != by_n[run.samples]:
            raise ResultError(
                f"{folder}: two values of the FID of task {number} in scores.csv, {in_tables['train']:g} and, "
                f"by number of samples, {by_n[run.samples]:g}: it was edited"
            )
        compared = {
            "fid": ("train", by_n[n]),
            **({"fid, test": ("test", in_tables["test"])} if n == run.samples else {}),
        }
        for metric, (split, published) in compared.items():
            of = real[split][task.index]
            replicates = [fid(features[pick], of) for pick in resampled(n)]
            rows.append((number, metric, n, published, fid(features, of), np.sqrt(2) * np.std(replicates, ddof=1)))
        published = of_task[of_task.metric == "accuracy"].value.item()
        fresh = task_accuracy(classes, task.classes)
        share = (published * run.samples + fresh * n + 1) / (run.samples + n + 2)  # one more of each: no error is 0
        error = np.sqrt(share * (1 - share) * (1 / run.samples + 1 / n))
        rows.append((number, "accuracy", n, published, fresh, error))
    learner.task, learner.step = len(tasks) - 1, run.steps  # where it was measured: the same random numbers
    for number, task in enumerate(tasks, start=1):
        bits = torch.cat([METRICS["bpd"].value(part) for part in predictors(learner, task)])
        rows.append((number, "bpd", len(bits), bounds.get(number, np.nan), bits.mean().item(), HALF))
    table = pd.DataFrame(rows, columns=["task", "metric", "samples", "published", "fresh", "error"])
    table["z"] = (table.fresh - table.published) / table.error
    if (blank := table[table.z.isna()]).size:
        row = blank.iloc[0]
        raise ResultError(
            f"{folder}: the {row.metric} of task {row.task} cannot be compared: published {row.published}, fresh "
            f"{row.fresh}"
        )
    return table


def verify_all(results: Path, data: str | Path = "data", only: str = "") -> None:
    """Verifies every run with published weights, or those whose name starts with `only`, and prints what was found.
    Raises Problem if there is none, or if a difference is beyond LIMIT."""
    folders = sorted(path.parent for path in results.glob(f"*/{WEIGHTS}") if path.parent.name.startswith(only))
    if not results.is_dir():
        raise Problem(f"{results}: no such folder; expected one of results, for example results/small")
    if not folders:
        those = f"whose name starts with {only!r}" if only else f"of {results}"
        raise Problem(f"no {WEIGHTS} in the folders {those}: expected results with published weights")
    largest = 0.0
    for folder in folders:
        table = verify(folder, data)
        print(f"{folder.name}\n{table.round(3).to_string(index=False)}\n", flush=True)
        # Tasks are drawn apart: what is a little too good in each of them adds up.
        sums = table.groupby("metric").z.agg(lambda z: z.sum() / len(z) ** 0.5)
        largest = max(largest, table.z.abs().max(), sums.abs().max())
    if not largest <= LIMIT:
        raise Problem(
            f"fresh samples differ from the published scores by {largest:.1f} standard errors, more than {LIMIT}, in "
            "one task or over all"
        )
    print(f"every difference, of a task and over all, is at most {largest:.1f} standard errors ({LIMIT} are allowed)")
