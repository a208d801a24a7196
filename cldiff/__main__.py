"""python -m cldiff: one command for each thing that is done outside of notebooks. Each loads only what it needs."""

import argparse
import logging
import math
import os
import re
import signal
import sys
from pathlib import Path

from . import __version__
from .errors import Problem, Spoken, one_line_a_minute


def seconds(text: str) -> float:
    """ "90s", "9m" or "2h" in seconds."""
    number, unit = text[:-1], text[-1:]
    if unit not in ("s", "m", "h") or not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", number) or not float(number):
        raise ValueError(f"budget {text!r}: expected a number and s, m or h, for example 9m")
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def list_runs(words: argparse.Namespace) -> None:
    """the profiles, or the runs of one of them, by name"""
    from .study import PROFILES, NotChosen, known_profile, runs

    lines = [f"{name:{max(map(len, PROFILES))}}  {profile.help}" for name, profile in PROFILES.items()]
    if words.profile is not None:
        profile, lines = known_profile(words.profile), []
        methods = dict.fromkeys(row.method for row in profile.rows)
        for start in (f"{dataset}-{method}-" for dataset in profile.datasets for method in methods):
            try:
                lines += [run.name for run in runs(words.profile, words.seeds, start)]
            except NotChosen as error:  # the others have names, and can be run
                lines.append(f"{start}...: {error}")
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # of `list | head`, which has read enough: the rest goes nowhere, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plan(words: argparse.Namespace) -> None:
    """write make's plan of a profile; results that cannot be read are moved away"""
    from .plan import jobs, set_aside_damaged, write_plan
    from .study import known_profile, planned, results_folder
    from .train import pick_device

    pick_device(words.device)
    asked = planned(words.profile, words.seeds)
    found = jobs(words.profile, asked, words.device, words.checkpoint)  # says what is wrong before moving things
    for notebook in (job["notebook"] for job in found.values() if "notebook" in job):
        if not Path(notebook).exists():
            raise Problem(
                f"no {notebook} in this folder: expected that of a clone of the repository; "
                f"`python -m cldiff run {words.profile}` needs no notebooks"
            )
    set_aside_damaged(asked, results_folder(words.profile), known_profile(words.profile).published)
    write_plan(words.profile, jobs(words.profile, asked, words.device, words.checkpoint))


def make(words: argparse.Namespace) -> None:
    """make one target of the plan: a first task, a run, a figure, the paper or its page"""
    if words.target.endswith(".html"):
        from .report.page import write_page

        return write_page(Path(words.target).with_suffix(".ipynb"), Path(words.target))
    from .plan import make_target

    make_target(words.profile, words.target)


def execute(words: argparse.Namespace) -> None:
    """execute a notebook that belongs to no profile, a tutorial or the bench; its widgets are left out"""
    from .report.execute import execute

    if not words.notebook.is_file():
        raise Problem(f"no notebook {words.notebook}: expected one of the folder notebooks")
    still = {"widgets": False} if "widgets" in words.notebook.read_text(encoding="utf-8") else {}  # a page has none
    execute(words.notebook, words.output, still)


def draw(words: argparse.Namespace) -> None:
    """draw a study's tables, figures and page as far as runs are there, or an experiment's notebook; make none"""
    from .plan import draw

    draw(words.profile)


def run(words: argparse.Namespace) -> None:
    """make the runs of a profile that are not there yet, one after the other or on a cluster, without Jupyter"""
    one_line_a_minute()
    from .plan import set_aside_damaged
    from .study import known_profile, planned, results_folder
    from .train import pick_device
    from .work import left, run_pending, without_inception

    pick_device("auto" if words.cluster else words.device)  # a cluster's workers may have what this machine lacks
    if words.cluster and words.budget is not None or words.shared and not words.cluster:
        raise ValueError("--budget is for one machine, --shared for --cluster: leave it out")
    budget = math.inf if words.budget is None else seconds(words.budget)
    asked = planned(words.profile, words.seeds, words.only)
    if not asked:
        raise ValueError(
            f"no run of {words.profile} starts with {words.only!r}: `python -m cldiff list {words.profile}` names "
            "them; a method of your own needs a row in cldiff/rows.py and its name in METHODS"
        )
    out, total = words.out or results_folder(words.profile), len(asked)
    how = {"device": words.device, "data": words.data, "checkpoint_seconds": words.checkpoint}
    set_aside_damaged(asked, out, known_profile(words.profile).published and not words.out)
    if words.cluster:
        from .cluster import run_on_dask

        failed = run_on_dask(words.cluster, asked, out, words.shared, **how)
        for name, why in failed.items():
            print(f"{name}: {why}", file=sys.stderr)
    else:
        failed = run_pending(asked, out, budget, **how)
    rest = left(asked, out)
    if failed:
        raise Problem(f"{len(failed)} of {total} runs failed, as said above, {rest - len(failed)} more are left")
    then = ": call again to continue" if rest else f", results are in {out}"
    print(f"{rest} of {total} runs are left{then}{without_inception(asked, out)}")


def accept(words: argparse.Namespace) -> None:
    """keep the weights that a finished sweep chooses, for the profiles that ask for them"""
    from .plan import choices
    from .study import keep_chosen

    for dataset, found in choices(words.profile).items():
        keep_chosen(words.profile, dataset, found)
        print(f"{dataset}: {', '.join(f'{method} {weight:g}' for method, weight in found.items())}")


def features(words: argparse.Namespace) -> None:
    """train the LeNet of a data set and keep it with the package"""
    from .features import LENETS, save_lenet, train_lenet
    from .files import make_folder
    from .tasks import DATASETS, load_tasks

    make_folder(LENETS)
    path = LENETS / f"{words.dataset}.pt"
    if path.exists():
        raise Problem(f"{path} is there already, and results name its SHA-256: delete it to train another one")
    tasks = load_tasks(words.dataset, words.data)
    accuracy = save_lenet(train_lenet(tasks, DATASETS[words.dataset].lenet_epochs), tasks, path)
    print(f"{path}: {accuracy:.2%} of the test images right")


def verify(words: argparse.Namespace) -> None:
    """draw fresh samples from published weights, compute their BPD again, and compare with the published scores"""
    from .train import pick_device
    from .verify import verify_all

    verify_all(words.results, words.data, words.only, pick_device(words.device))


def colab(words: argparse.Namespace) -> None:
    """give notebooks a set-up cell and README.md badges for Google Colab, with the address of the git remote origin"""
    from .report.colab import write_all

    write_all()


def readme(words: argparse.Namespace) -> None:
    """write the parts of README.md and docs/protocol.md that follow from results and code"""
    from .report.readme import write_all

    write_all()


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        sys.exit(f"error: {' '.join(message.split())}")  # one line, without the usage


def parser() -> Parser:
    top = Parser(prog="python -m cldiff", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(function, *arguments: str) -> Parser:
        one = commands.add_parser(
            function.__name__.removesuffix("_runs"), help=function.__doc__, description=function.__doc__
        )
        one.set_defaults(function=function)
        known = {
            "profile": dict(help="one that `python -m cldiff list` names"),
            "target": dict(help="a file of the plan"),
            "notebook": dict(type=Path, help="for example notebooks/tutorial_1.ipynb"),
            "output": dict(type=Path, help="the executed copy, for example figures/tutorials/tutorial_1.ipynb"),
            "dataset": dict(help="a name of cldiff.tasks.DATASETS"),
            "results": dict(type=Path, help="folder of results, for example results/paper-cpu"),
            "--seeds": dict(type=int, default=1, help="repetitions of each run (default 1)"),
            "--device": dict(default="auto", help="auto, cpu or cuda"),
            "--checkpoint": dict(type=int, default=300, help="seconds between two checkpoints (default 300)"),
            "--only": dict(default="", help="only the runs whose name starts so"),
            "--budget": dict(help="stop before this much time is over: 90s, 9m, 2h; called again, it continues"),
            "--out": dict(type=Path, help="folder of results (default results/PROFILE)"),
            "--cluster": dict(help="address of a Dask scheduler, or local: the runs go to its workers"),
            "--shared": dict(type=Path, help="folder that all workers of the cluster have, for checkpoints"),
            "--data": dict(default="data", help="folder of data sets (default data)"),
        }
        for name in arguments:
            one.add_argument(name, **known[name])
        return one

    command(list_runs, "--seeds").add_argument("profile", nargs="?", help="without one, all are listed")
    command(plan, "profile", "--seeds", "--device", "--checkpoint")
    command(make, "profile", "target")
    command(draw, "profile")
    command(execute, "notebook", "output")
    ways = ("--device", "--checkpoint", "--budget", "--out", "--data", "--cluster", "--shared")
    command(run, "profile", "--seeds", "--only", *ways)
    command(accept, "profile")
    command(features, "dataset", "--data")
    command(verify, "results", "--only", "--device", "--data")
    command(colab)
    command(readme)
    return top


def main() -> None:
    words = parser().parse_args()
    if words.function is make or getattr(words, "cluster", None):  # as Ctrl-C: a kernel, a cluster's runs end with this
        for number in (signal.SIGTERM, signal.SIGINT):  # which the shell of a job in the background has ignored
            signal.signal(number, signal.default_int_handler)
    try:
        words.function(words)
    except (Problem, ValueError, TypeError, KeyError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # complains at the end of the cell that nobody waits for any more
        sys.exit("stopped: the same command again continues from the last checkpoint")


if __name__ == "__main__":
    sys.stderr = Spoken(sys.stderr)
    main()
