"""Finished runs beside the paper's protocol, a line for each of its parameters: `make check-paper PROFILE=...`."""

import argparse
import csv
import sys
from operator import attrgetter
from pathlib import Path

import pandas as pd

from cldiff.errors import Problem
from cldiff.report.readme import form
from cldiff.results import read_result
from cldiff.run import Run
from cldiff.stats import average, result_matrix
from cldiff.tasks import sequence

TARGETS = Path(__file__).with_name("targets.csv").read_text(encoding="utf-8")
ROWS = {row["name"]: row for row in csv.DictReader(TARGETS.splitlines()) if row["check"] == "results"}
FLOOR = "fid_floor_over_finetuning"
COMPUTED = {  # where a run's own value would say nothing, or there is none
    "tasks": lambda run: len(sequence(run.dataset, **run.sequence)),
    "start": lambda run: run.start or "none",
    "warm_up": lambda run: 0,
    "ema": lambda run: min(run.ema, run.steps / (run.steps + 9)),
}
HEADS = ("parameter", "", "the paper", "these runs")


def values(name: str, runs: list[Run]) -> list[str]:
    """What the runs have, each value once; of "weight/METHOD" the runs of that method."""
    parameter, _, method = name.partition("/")
    value = COMPUTED.get(parameter, attrgetter(parameter))
    return [form(found) for found in sorted({value(run) for run in runs if method in ("", run.method)})]


def line(row: dict, runs: list[Run]) -> tuple[str, ...]:
    """Several values are equal if all of the paper's are there and no others."""
    found, stated = values(row["name"], runs), row["value"].split(" / ")
    same = "not stated" if row["relation"] == "not stated" else "equal" if set(found) == set(stated) else "differs"
    return row["name"], same, row["value"], " / ".join(found) or "none"


def floor(folders: list[Path]) -> list[float]:
    """The FID of real images in each run's scores, of its average FID."""
    found = []
    for scores in (pd.read_csv(folder / "scores.csv") for folder in folders):
        real = scores.query("metric == 'fid_floor' and split == 'train' and extractor == 'lenet'").value.mean()
        found.append(real / average(result_matrix(scores, "fid", "train")))
    return found


def page(results: Path) -> str:
    """Raises Problem where there is no finished run, or a damaged one."""
    folders = sorted(path.parent for path in results.glob("*/result.json"))
    if not folders:
        raise Problem(f"no finished run in {results}: `make paper PROFILE=...` makes them")
    runs = [Run(**read_result(folder)["run"]) for folder in folders]
    table = [HEADS, *(line(row, runs) for name, row in ROWS.items() if name != FLOOR)]
    widths = [max(map(len, column)) for column in zip(*table)]
    shares, most = floor([f for f, run in zip(folders, runs) if run.method == "finetune"]), ROWS[FLOOR]["value"]
    return "\n".join(
        [
            f"{results}: {len(runs)} finished runs. By our reading the paper trains as Ho et al. 2020 do; "
            "sources: tests/targets.csv",
            "",
            *("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in table),
            "",
            f"FID of real images: up to {max(shares):.2g} of finetuning's average, "
            f"{'within' if max(shares) <= float(most) else 'beyond'} the {most} that is asked here"
            if shares
            else "FID of real images: no run of finetuning to compare it with",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/check_paper.py", description=__doc__)
    parser.add_argument("results", type=Path, help="folder of results, for example results/paper-cpu")
    parser.error = lambda message: sys.exit(f"error: {message}")
    try:
        print(page(parser.parse_args().results))
    except Problem as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
