"""Every run and every figure of every profile, listed once. `python -m cldiff.grid PROFILE` prints the runs,
`python -m cldiff.grid run PROFILE` makes those that are pending, without Jupyter."""

import argparse
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import Timeout

from .files import claim, write_atomically
from .runs import ResultError, Run, read_result

# The rows of the tables: a name of METHODS and, where the row is not at the method's default, its weight.
ROWS = (
    ("finetune", None),
    ("l2", None),
    ("replay", 1.0),
    ("replay", 0.01),
    ("generative", 1.0),
)
# The rows of a sweep: what a method's weight does, looked at on validation images.
SWEEP = tuple((method, weight) for method in ("l2", "replay") for weight in (0.0, 0.001, 0.01, 0.1, 1.0, 10.0))
TABLES = {"mnist": "table_1", "fashion_mnist": "table_2", "digits": "table_1"}
FIGURES = ("figure_1", "figure_2", "figure_matrices", "figure_timesteps", "figure_samples", "figure_strip", "table_protocols",
           "findings")
PAPER = "paper.ipynb"  # made when all of them are there


@dataclass(frozen=True)
class Profile:
    datasets: tuple[str, ...]
    settings: dict = field(default_factory=dict)  # what differs from Run's defaults
    rows: tuple[tuple[str, float | None], ...] = ROWS
    sweep: str | None = None  # the profile that chose the weight of L2; None: the method's default


_TINY = dict(channels=16, dropout=0.0, multipliers=[1, 2], blocks=1, attention=4, buffer=20, early=50, late=300)
_DIGITS = dict(_TINY, steps=200, batch=32, learning_rate=4e-3, pool=200, pool_steps=10, samples=256,
               sample_steps=10, bound_terms=20, curve_every=40)
_SMALL = dict(channels=16, blocks=1, dropout=0.0, steps=1_000, batch=32, learning_rate=2e-3, pool=500, pool_steps=10,
              samples=512, sample_steps=10, bound_terms=20, bound_images=250, curve_every=250, curve_images=100)
PROFILES = {
    "smoke": Profile(("digits",), dict(
        _TINY, steps=4, batch=8, channels=8, pool=8, pool_steps=2, samples=16, sample_steps=2, bound_terms=4,
        bound_images=8, curve_every=2, curve_images=8)),
    "digits": Profile(("digits",), _DIGITS, sweep="digits-sweep"),
    "digits-long": Profile(("digits",), dict(_DIGITS, steps=1_000, curve_every=200), sweep="digits-sweep"),
    "small": Profile(("mnist", "fashion_mnist"), _SMALL, sweep="small-sweep"),
    "paper-cpu": Profile(("mnist", "fashion_mnist"), dict(  # the study's length where there is no GPU: hours for each run
        patch=2, channels=24, multipliers=[1, 2], blocks=1, attention=7, dropout=0.0, batch=32, learning_rate=1e-3, pool=2_000,
        pool_steps=20, samples=1_024, sample_steps=20, bound_terms=20, bound_images=10_000, curve_images=100)),
    "paper": Profile(("mnist", "fashion_mnist"), dict(channels=64, precision="bfloat16", inception=True, bound_terms=100,
                                                      bound_images=10_000), sweep="small-sweep"),  # all test images
    "digits-sweep": Profile(("digits",), _DIGITS, rows=SWEEP),
    "small-sweep": Profile(("mnist", "fashion_mnist"), dict(  # L2 alone, a quarter of the steps, little measured but FID
        _SMALL, steps=250, samples=256, bound_terms=10, bound_images=50, curve_images=20), rows=SWEEP[:6]),
}


def chosen(sweep: str | None, dataset: str) -> dict[str, float]:
    """The weight of each method that a finished sweep chose, by the rule in sweep.ipynb; {} where there is none yet."""
    path = Path(__file__).parents[1] / "figures" / str(sweep) / f"chosen-{dataset}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def runs(profile: str, seeds: int = 1) -> list[Run]:
    """Every run of a profile. Raises ValueError for an unknown one."""
    if profile not in PROFILES:
        raise ValueError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: expected at least 1")
    p = PROFILES[profile]
    return [Run(dataset=dataset, method=method, weight=chosen(p.sweep, dataset).get(method) if weight is None else weight,
                seed=seed, **p.settings)
            for dataset in p.datasets for seed in range(seeds) for method, weight in p.rows]


def planned(profile: str, seeds: int) -> list[Run]:
    """The runs in the order in which they are made: a data set and seed after the other, and in each the long ones (replay,
    the last rows) before the short ones, so that no core waits at the end."""
    found = runs(profile, seeds)
    datasets = list(dict.fromkeys(run.dataset for run in found))
    return sorted(reversed(found), key=lambda run: (datasets.index(run.dataset), run.seed))


def jobs(profile: str, seeds: int = 1, device: str = "auto", checkpoint: int = 300) -> dict[str, dict]:
    """What each target of make is made from: {target: {notebook, output, parameters}}, runs first."""
    if checkpoint < 1:
        raise ValueError(f"checkpoint={checkpoint}: expected at least 1 second")
    found = {}
    for run in planned(profile, seeds):
        folder = f"results/{profile}/{run.name}"
        found[f"{folder}/result.json"] = {
            "notebook": "notebooks/run.ipynb", "output": f"{folder}/run.ipynb",
            "parameters": {**dataclasses.asdict(run), "results": f"../results/{profile}", "device": device,
                           "checkpoint_seconds": checkpoint}}
    folders = {"results": f"../results/{profile}", "figures": f"../figures/{profile}"}
    for number, dataset in enumerate(PROFILES[profile].datasets):
        table = TABLES[dataset]
        for name in (table, *FIGURES) if PROFILES[profile].rows is ROWS else ("sweep",):
            own = {"name": f"{name}-{dataset}"} if number and name != table else {}  # beside the first one's
            target = f"figures/{profile}/{own.get('name', name)}.ipynb"
            found[target] = {"notebook": f"notebooks/{name}.ipynb", "output": target,
                             "parameters": {"dataset": dataset, **folders, **own}}
    if PROFILES[profile].rows is ROWS:
        target = f"figures/{profile}/{PAPER}"
        found[target] = {"notebook": f"notebooks/{PAPER}", "output": target,
                         "parameters": {"datasets": list(PROFILES[profile].datasets), **folders}}
    return found


def set_aside_damaged(profile: str, seeds: int = 1) -> None:
    """Moves away the folder of each run whose results cannot be read, and names it: the run will be done again."""
    for run in runs(profile, seeds):
        folder = Path("results", profile, run.name)
        try:
            if (folder / "result.json").exists():
                read_result(folder)
        except ResultError as error:
            aside = next(p for k in range(1, 10_000) if not (p := folder.parent / "damaged" / f"{run.name}-{k}").exists())
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)
            print(f"{error}; moved to {aside}, the run is done again", file=sys.stderr)


def write_plan(profile: str, found: dict[str, dict]) -> None:
    """results/PROFILE/targets.mk for make and jobs.json for cldiff.execute, which then need not load torch to know."""
    folder = Path("results", profile)
    write_atomically(folder / "jobs.json", lambda p: p.write_text(json.dumps(found, indent=1)))
    kinds = {"RUNS": [t for t in found if t.startswith("results/")], "PAPER": [t for t in found if t.endswith(f"/{PAPER}")]}
    kinds["FIGURES"] = [t for t in found if t not in kinds["RUNS"] + kinds["PAPER"]]
    lines = [f"{name} := {' '.join(targets)}\n" for name, targets in kinds.items()]
    write_atomically(folder / "targets.mk", lambda p: p.write_text("".join(lines)))


def run_pending(profile: str, seeds: int, out: Path, device: str, data: str, budget: float = math.inf) -> int:
    """Trains, measures and saves the runs of a profile that are not in `out`, one after the other, as run.ipynb does.

    Stops before `budget` seconds are over, and on SIGTERM or Ctrl-C, with a checkpoint to continue from. Returns how many
    runs are left. Runs that another process works on are left to it.
    """
    from .measure import Measurer
    from .tasks import load_tasks
    from .train import pick_device
    end, asked = time.monotonic() + budget, []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.append(True))
    over = lambda margin: bool(asked) or time.monotonic() + margin > end  # noqa: E731
    pending = [run for run in planned(profile, seeds) if not (out / run.name / "result.json").exists()]
    for run in pending:
        folder = out / run.name
        try:
            lock = claim(folder, wait=False)
        except Timeout:
            continue
        with lock:
            if (folder / "result.json").exists():
                continue
            tasks = load_tasks(run.dataset, data)
            measure = Measurer(run, tasks, data, pick_device(device))
            if measure.missing:
                print(measure.missing, file=sys.stderr)
            if not _finish(run, tasks, measure, folder, over) or over(0):
                break
    return left(profile, seeds, out)


def _finish(run: Run, tasks: list, measure, folder: Path, over: Callable[[float], bool]) -> bool:
    """Trains, measures and saves one run; False if it had to stop, with a checkpoint, as the time is over before the next step."""
    from tqdm import tqdm

    from .train import train
    longest, started = {}, None  # seconds of a step by kind: without and with measuring
    try:
        with tqdm(total=len(tasks) * run.steps, unit="step", desc=f"{run.dataset}, {run.label}") as bar:
            for step in train(run, tasks, folder, measure.device, cancelled=lambda: over(0)):
                measure(step)
                bar.update(step.total - bar.n)
                kind, coming = ((n % run.curve_every == 0, n == run.steps) for n in (step.step, step.step + 1))
                if started:  # the first step of a call waits for others, and compiles
                    longest[kind] = max(longest.get(kind, 0) / 2, time.monotonic() - started)
                started = time.monotonic()
                # What this call has not measured yet takes no longer than all that was measured before it.
                most = longest.get(coming, step.learner.seconds["measure"] if any(coming) else 0)
                if over(5 + 2 * most) and step.total < len(tasks) * run.steps:
                    step.learner.save(step.learner.checkpoint)
                    return False
    except Timeout:  # while another process trained the first task
        return False
    measure.save(folder, step.learner)
    return True


def left(profile: str, seeds: int, out: Path) -> int:
    return sum(not (out / run.name / "result.json").exists() for run in runs(profile, seeds))


def seconds(text: str) -> float:
    """"90s", "9m" or "2h" in seconds."""
    number, unit = text[:-1], text[-1:]
    if unit not in ("s", "m", "h") or not number.replace(".", "", 1).isdigit() or not float(number):
        raise ValueError(f"budget {text!r}: expected a number and s, m or h, for example 9m")
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def main() -> None:
    making = sys.argv[1:2] == ["run"]
    parser = argparse.ArgumentParser(prog="python -m cldiff.grid", description=__doc__)
    parser.add_argument("profile", help=f"one of {', '.join(PROFILES)}")
    parser.add_argument("--seeds", type=int, default=1, help="repetitions of each run (default 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    if making:
        parser.add_argument("--budget", help="stop before this much time is over: 90s, 9m, 2h; called again, it continues")
        parser.add_argument("--out", type=Path, help="folder of results (default results/PROFILE)")
        parser.add_argument("--data", default="data", help="folder of data sets (default data)")
    else:
        parser.add_argument("--checkpoint", type=int, default=300, help="seconds between two checkpoints (default 300)")
        parser.add_argument("--plan", action="store_true", help="move results away that cannot be read, write make's plan")
    parser.error = lambda message: sys.exit(f"error: {' '.join(message.split())}")  # one line, without the usage
    words = parser.parse_args(sys.argv[1 + making:])
    from .features import FeatureError
    from .learner import TrainingError
    from .tasks import DataError
    from .train import pick_device
    try:
        pick_device(words.device)
        found = jobs(words.profile, words.seeds, words.device, *([] if making else [words.checkpoint]))
        if making:
            rest = run_pending(words.profile, words.seeds, words.out or Path("results", words.profile), words.device,
                               words.data, seconds(words.budget) if words.budget else math.inf)
            print(f"{rest} of {len(runs(words.profile, words.seeds))} runs are left" + (": call again to continue" if rest else ""))
            return
    except (ValueError, OSError, DataError, FeatureError, ResultError, TrainingError) as error:
        sys.exit(f"error: {error}")
    if words.plan:
        set_aside_damaged(words.profile, words.seeds)
        write_plan(words.profile, found)
    else:
        print("\n".join(target for target in found if target.startswith("results/")))


if __name__ == "__main__":
    main()
