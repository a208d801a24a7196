"""What `make paper` makes of a profile, and from what: every target once, first tasks, then runs, then figures, then
the paper; and what a sweep chooses for others."""

import dataclasses
import json
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

from filelock import Timeout

from .errors import Problem
from .files import claim, locked, write_atomically
from .run import Run
from .study import PROFILES, known_profile, planned, results_folder, runs

PAPER = "paper.ipynb"  # made when all figures are there


def finished(profile: str) -> list[Run]:
    """The runs of a profile that are there; of a study's those of the data sets that have finetuning: nothing is
    compared without. Raises ResultError where there is no such run, or a damaged one, and Problem for an experiment of
    which a row lacks, as its notebook shows all of them."""
    from .results import ResultError, read_result

    p, folder = known_profile(profile), results_folder(profile)
    if not folder.parent.is_dir():
        raise ResultError(f"no folder {folder.parent.absolute()}: expected to be called in a clone")
    found = [Run(**read_result(path.parent)["run"]) for path in sorted(folder.glob("*/result.json"))]
    if not p.has_paper:
        there = {run.name for run in found}
        asked = runs(profile)
        if lacking := [run.name for run in asked if run.name not in there]:
            raise Problem(
                f"{folder} lacks {len(lacking)} of {len(asked)} runs, {lacking[0]} first, and the notebook needs every "
                f"row: `python -m cldiff run {profile}` makes them"
            )
        return found
    datasets = {run.dataset for run in found if run.method == "finetune"} & p.datasets.keys()
    if not (found := [run for run in found if run.dataset in datasets]):
        raise ResultError(f"no finished run of finetuning in {folder}: `make paper PROFILE={profile}` makes them")
    return found


def jobs(profile: str, asked: list[Run] | None = None, device: str = "auto", checkpoint: int = 300) -> dict[str, dict]:
    """What each target of make is made from: {target: {"kind", ...}}, for the runs of a seed, or these.

    kind "first_task": {run, folder, device, checkpoint_seconds}, needed by the runs that name it in "after"; kinds
    "run", "figure" and "paper": {notebook, output, parameters}. Of runs that are there no first task is asked for.
    """
    from .train import CHECKPOINT, first_task_path

    if checkpoint < 1:
        raise ValueError(f"checkpoint={checkpoint}: expected at least 1 second")
    p, first, found, results = known_profile(profile), {}, {}, results_folder(profile)
    asked = planned(profile) if asked is None else asked
    for run in asked:
        folder = results / run.name
        values = {"results": f"../{results}", "device": device, "checkpoint_seconds": checkpoint}
        job = {
            "kind": "run",
            "notebook": "notebooks/run.ipynb",
            "output": f"{folder}/run.ipynb",
            "parameters": {**dataclasses.asdict(run), **values},
        }
        if not (folder / "result.json").exists() and not (folder / CHECKPOINT).exists():
            job["after"] = str(first_task_path(run, folder))
            first.setdefault(
                job["after"],
                {
                    "kind": "first_task",
                    "run": dataclasses.asdict(run),
                    "folder": str(folder),
                    "device": device,
                    "checkpoint_seconds": checkpoint,
                },
            )
        found[f"{folder}/result.json"] = job
    folders = {"results": f"../{results}", "figures": f"../figures/{profile}"}
    datasets = [name for name in p.datasets if name in {run.dataset for run in asked}]
    for dataset in datasets:
        for name in p.figures:
            target = f"figures/{profile}/{name}-{dataset}.ipynb"
            found[target] = {
                "kind": "figure",
                "notebook": f"notebooks/{name}.ipynb",
                "output": target,
                "parameters": {"dataset": dataset, **folders},
            }
    if p.has_paper:
        target = f"figures/{profile}/{PAPER}"
        found[target] = {
            "kind": "paper",
            "notebook": f"notebooks/{PAPER}",
            "output": target,
            "parameters": {"datasets": datasets, **folders},
        }
    return {**first, **found}


def set_aside_damaged(asked: list[Run], out: Path, published: bool) -> None:
    """Moves away the folder in `out` of each run whose results cannot be read, and names it: the run will be made anew.
    Raises ResultError instead where the results are published ones, which git brings back."""
    from .results import ResultError, read_result

    for run in asked:
        folder = out / run.name
        try:
            if (folder / "result.json").exists():
                read_result(folder)
        except ResultError as error:
            if published:
                raise ResultError(
                    f"{error}; `git checkout -- {folder}` brings it back where it was published; to do the run again, "
                    "delete the folder"
                ) from None
            with suppress(Timeout), claim(folder, wait=False):  # another process has found it too, and makes it anew
                if (folder / "result.json").exists():
                    aside = next(p for k in count(1) if not (p := out / "damaged" / f"{run.name}-{k}").exists())
                    aside.parent.mkdir(exist_ok=True)
                    folder.rename(aside)
                    print(f"{error}; moved to {aside}, the run is done again", file=sys.stderr)


def write_plan(profile: str, found: dict[str, dict]) -> None:
    """results/PROFILE/jobs.json for make_target, which then need not load torch to know, and targets.mk for make."""
    folder = Path("results", profile)
    path, every = folder / "jobs.json", found
    with locked(folder / "locks" / "plan.lock"):  # a make that is at work by an earlier plan finds its targets
        with suppress(OSError, ValueError, TypeError):
            every = {**json.loads(path.read_text()), **found}
        write_atomically(path, lambda p: p.write_text(json.dumps(every, indent=1)))
    lines = []
    for name, kind in (("FIRST_TASKS", "first_task"), ("RUNS", "run"), ("FIGURES", "figure"), ("PAPER", "paper")):
        lines.append(f"{name} := {' '.join(t for t, job in found.items() if job['kind'] == kind)}\n")
    # Their existence is what runs wait for, not their time.
    lines += [f"{target}: | {job['after']}\n" for target, job in found.items() if "after" in job]
    write_atomically(folder / "targets.mk", lambda p: p.write_text("".join(lines)))


def draw(profile: str) -> None:
    """Executes the notebooks of a profile's figures, and a study's paper, on the runs that are there; makes none."""
    from .report.execute import execute
    from .report.page import write_page

    for target, job in jobs(profile, finished(profile)).items():
        if job["kind"] in ("figure", "paper"):
            print(f"draw    {target}", flush=True)
            execute(job["notebook"], target, job["parameters"])
    if job["kind"] == "paper":
        write_page(Path(target), Path(target).with_suffix(".html"))


def make_target(profile: str, target: str) -> None:
    """Makes one target of the plan. Raises Problem if it is not in it."""
    path = Path("results", profile, "jobs.json")
    if not path.exists():
        raise Problem(f"{path} is missing: `python -m cldiff plan {profile}` writes it")
    found = json.loads(path.read_text())
    if target not in found:
        raise Problem(f"{target} is not in the plan of {profile}: `make paper PROFILE={profile}` makes what is")
    job = found[target]
    if job["kind"] == "first_task":
        from .work import make_run, progress_bar

        run = Run(**job["run"])
        words = {"device": job["device"], "checkpoint_seconds": job["checkpoint_seconds"]}
        with progress_bar(f"{run.dataset}, first task", tasks=1) as progress:
            make_run(run, Path(job["folder"]), progress=progress, first_task_only=True, **words)
    else:
        from .report.execute import execute

        execute(job["notebook"], job["output"], job["parameters"])


def choices(sweep: str) -> dict[str, dict[str, float]]:
    """The weights that a sweep chooses, {data set: {method: weight}}, of the methods whose trials are there: others may
    be swept another day. Raises ValueError for a profile that is no sweep, Problem for a method with some trials only,
    or with other seeds for other weights."""
    from .results import load_scores
    from .stats import best_weights

    if sweep not in (sweeps := {p.sweep for p in PROFILES.values() if p.sweep}):
        raise ValueError(f"{sweep!r} is no sweep; known: {', '.join(sorted(sweeps))}")
    folder, asked = results_folder(sweep), [run for run in runs(sweep) if run.weight]  # finetuning is no trial
    there = [run for run in asked if (folder / run.name / "result.json").exists()]
    begun = {(run.dataset, run.method) for run in there}
    if wanting := [run for run in asked if run not in there and (not there or (run.dataset, run.method) in begun)]:
        only = f" --only {wanting[0].dataset}-{wanting[0].method}-" if there else ""
        raise Problem(
            f"{folder} lacks {len(wanting)} of the trials, {wanting[0].name} first: `python -m cldiff run "
            f"{sweep}{only}` makes them"
        )
    chosen = {}
    for dataset in dict.fromkeys(run.dataset for run in there):
        scores = load_scores(folder, dataset)
        seeds = scores.groupby(["method", "weight"]).seed.unique().map(frozenset).groupby("method").nunique()
        if (seeds > 1).any():
            raise Problem(
                f"{folder}: weights of {seeds.idxmax()} on {dataset} have different seeds: make the others too"
            )
        chosen[dataset] = best_weights(scores)
    return chosen
