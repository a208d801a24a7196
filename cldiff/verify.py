"""Published weights against published scores: `python -m cldiff.verify results/PROFILE` draws fresh samples with each
weights.pt and asks whether their FID and task accuracy are those of scores.csv, within sampling error."""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from . import metrics
from .features import FeatureError, load_lenet, real_features
from .learner import Learner
from .runs import WEIGHTS, ResultError, Run, read_result
from .tasks import DataError, load_tasks, to_uint8
from .unet import load_unet

DRAWN = 1_024  # fresh samples for each task, at most
LIMIT = 4  # standard errors; chance goes beyond them once in 16,000 comparisons


def verify(folder: Path, data: str | Path = "data", drawn: int = DRAWN) -> pd.DataFrame:
    """One row for each task and metric: published, fresh, standard error of their difference, and its size in units of that.

    FID is compared at the same number of samples, on which its bias depends; its error is that of resampled samples, for
    both sides. The error of accuracy is binomial. Raises ResultError or ValueError for damaged files.
    """
    result = read_result(folder)
    run = Run(**result["run"])
    lenet, tasks = load_lenet(run.dataset), load_tasks(run.dataset, data)
    if result["sha256"]["lenet"] != lenet.sha256:
        raise ResultError(f"{folder}: measured with another LeNet than this version's")
    learner = Learner(dataclasses.replace(run, compiled=False), tasks)
    net = load_unet(folder / WEIGHTS)
    if net.arguments != learner.ema.arguments:
        raise ResultError(f"{folder / WEIGHTS}: a network of {net.arguments}, expected {learner.ema.arguments}")
    learner.ema.load_state_dict(net.state_dict())
    real = real_features(lenet, tasks, data)["train"]
    scores = pd.read_csv(folder / "scores.csv")
    scores = scores[(scores.after_task == len(tasks)) & (scores.extractor == lenet.name)]
    n = max(size for size in metrics.sample_sizes(run.samples) if size <= drawn)
    rows = []
    for task in tasks:
        features, classes = lenet.extract(to_uint8(learner.sample(task.index, n, run.sample_steps, run.eta, "fresh")))
        of_task = scores[scores.eval_task == task.index + 1].set_index("metric")
        by_n = of_task.loc[["fid_by_n"]]
        replicates = [metrics.fid(features[pick], real[task.index]) for pick in metrics.resampled(n)]
        found = {"fid": (by_n.value[by_n.n == n].item(), metrics.fid(features, real[task.index]),
                         np.sqrt(2) * np.std(replicates, ddof=1))}
        published, fresh = of_task.value["accuracy"], metrics.task_accuracy(classes, task.classes)
        share = (published * run.samples + fresh * n + 1) / (run.samples + n + 2)  # one more of each: never an error of 0
        found["accuracy"] = published, fresh, np.sqrt(share * (1 - share) * (1 / run.samples + 1 / n))
        rows += [{"task": task.index + 1, "metric": metric, "samples": n, "published": published, "fresh": fresh,
                  "error": error, "z": (fresh - published) / error} for metric, (published, fresh, error) in found.items()]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cldiff.verify", description=__doc__)
    parser.add_argument("results", type=Path, help="folder of results, for example results/small")
    parser.add_argument("--data", default="data", help="folder of data sets (default data)")
    words = parser.parse_args()
    folders = sorted(path.parent for path in words.results.glob(f"*/{WEIGHTS}"))
    if not folders:
        sys.exit(f"error: no {WEIGHTS} in the folders of {words.results}: expected a profile with published weights")
    largest = 0.0
    try:
        for folder in folders:
            table = verify(folder, words.data)
            print(f"{folder.name}\n{table.round(3).to_string(index=False)}\n", flush=True)
            largest = max(largest, table.z.abs().max())
    except (ValueError, OSError, DataError, FeatureError, ResultError) as error:
        sys.exit(f"error: {error}")
    if not largest <= LIMIT:
        sys.exit(f"error: fresh samples differ from the published scores by {largest:.1f} standard errors, more than {LIMIT}")
    print(f"every difference is at most {largest:.1f} standard errors ({LIMIT} are allowed)")


if __name__ == "__main__":
    main()
