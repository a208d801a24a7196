"""The folder of a finished run: what stands in it, written whole or not at all, read back as tidy tables."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from .errors import Problem
from .files import file_sha256, is_whole, load_tensors, write_atomically
from .lazy import torch
from .rows import Row
from .run import PROTOCOL, Run
from .study import labels_of

if TYPE_CHECKING:
    from torch import nn

COLUMNS = ("after_task", "eval_task", "metric", "value", "split", "extractor", "n", "sampler")
CURVES = ("step", "task", "eval_task", "split", "timestep", "loss", "bpd")
TABLES = {"scores.csv": COLUMNS, "curves.csv": CURVES, "bootstrap.csv": None}  # files and their columns
FILES = (*TABLES, "samples.png", "result.json")  # the last is written last
GIT = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # of the caller's repository: set by hooks
WEIGHTS = "weights.pt"  # of the averaged network after the last task, beside them; published for some runs only


class ResultError(Problem):
    """A result folder that cannot be used; the message names it and says why."""


def read_result(folder: Path) -> dict:
    """result.json of a finished run. Raises ResultError if it, or a file that it vouches for, is not whole."""
    try:
        result = json.loads((folder / "result.json").read_text())
        if result["protocol"] != PROTOCOL:
            raise ResultError(f"{folder}: protocol {result['protocol']}, this version writes {PROTOCOL}")
        for name in FILES[:-1]:
            if not is_whole(folder / name, result["sha256"][name]):
                raise ResultError(f"{folder}: {name} is not the file that was written")
        try:
            name = Run(**result["run"]).name
        except (TypeError, ValueError) as error:
            raise ResultError(f"{folder}: not a run of this version ({error})") from None
        if name != folder.name:
            raise ResultError(
                f"{folder}: its parameters are those of {name}: rename it to that or, where its method has a newer "
                "version, delete it and make it anew"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultError(f"{folder}: cut short or damaged ({type(error).__name__}: {error})") from None
    return result


def load_weights(folder: Path, result: dict) -> dict:
    """weights.pt of a finished run: {"arguments": of its U-Net, "parameters": by name}. result: of read_result().
    Raises ValueError if the file is damaged, ResultError if it is not the one that was written."""
    saved = load_tensors(folder / WEIGHTS)
    if WEIGHTS in result["sha256"] and not is_whole(folder / WEIGHTS, result["sha256"][WEIGHTS]):
        raise ResultError(f"{folder}: {WEIGHTS} is not the file that was written")
    return saved


def find_start(run: Run, folder: Path) -> bytes | None:
    """The content of weights.pt of the run that this one, of this folder, starts from: of any profile beside its own,
    or in the folder results; None where it starts anew. Raises ResultError if it cannot be had or is not whole."""
    if not run.start:
        return None
    places = folder.parent.parent, Path("results")
    found = [path for results in places for path in sorted(results.glob(f"*/{run.start}/{WEIGHTS}"))]
    if not found:
        raise ResultError(
            f"start={run.start}: {places[0]}/*/{run.start}/{WEIGHTS} is missing, and from {places[1]} too; expected a "
            "finished run, whose network this one starts from"
        )
    damage = []
    for path in found:
        try:
            load_weights(path.parent, read_result(path.parent))
            return path.read_bytes()
        except (ValueError, ResultError) as error:
            damage.append(str(error))
    raise ResultError(damage[0])


def load_results(
    results: str | Path, dataset: str | None = None, rows: tuple[Row, ...] | None = None, **settings
) -> dict[Path, dict]:
    """result.json of every finished run in a folder of results, by run folder: of one data set or of all, of these
    rows or of all, with these settings (parameters of Run, by name) or any.

    Raises ValueError for an unknown setting, ResultError if there is no such run, or if two runs of a data set differ
    in more than method, weight, options and seed: their numbers do not belong into one table.
    """
    if not Path(results).is_dir():
        raise ResultError(f"no folder {Path(results).absolute()}: expected one of results, as results/paper-cpu")
    try:
        found = {path.parent: read_result(path.parent) for path in sorted(Path(results).glob("*/result.json"))}
    except ResultError as error:
        raise ResultError(f"{error}; a published result comes back by `git checkout`, another by a new run") from None
    wanted = None if rows is None else labels_of(rows)
    if unknown := ", ".join(settings.keys() - Run.names()):
        raise ValueError(f"unknown setting {unknown}: expected parameters of Run")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}

    def asked(run: Run) -> bool:
        return (
            dataset in (None, run.dataset)
            and (wanted is None or run.label in wanted)
            and all(getattr(run, name) == value for name, value in settings.items())
        )

    found = {path: r for path, r in found.items() if asked(Run(**r["run"]))}
    if not found:
        of = (f" on {dataset}" if dataset else "") + "".join(f" with {k}={v}" for k, v in settings.items())
        raise ResultError(f"no finished run{of} in {results}: `make paper PROFILE=...` makes them")
    first: dict[str, tuple[Path, dict]] = {}
    for path, result in found.items():
        run = {k: v for k, v in vars(Run(**result["run"])).items() if k not in ("method", "weight", "options", "seed")}
        run |= {f"SHA-256 of {k}": v for k, v in result["sha256"].items() if k not in (*FILES, WEIGHTS)}
        other_path, other = first.setdefault(run["dataset"], (path, run))
        for key in run:
            if run[key] != other.get(key, run[key]):  # Inception may have been missing for one of them
                one = f"ask for those of one, {key}={other[key]!r}" if key in Run.names() else "move one of them away"
                raise ResultError(
                    f"{path.name} has {key}={run[key]}, {other_path.name} has {key}={other[key]}: "
                    f"results of different protocols; {one}"
                )
    return found


def _load(file: str, *words, **settings) -> pd.DataFrame:
    frames = []
    for path, result in load_results(*words, **settings).items():
        run = Run(**result["run"])
        frames.append(
            pd.read_csv(path / file).assign(
                run=path.name, dataset=run.dataset, method=run.method, weight=run.weight, seed=run.seed, label=run.label
            )
        )
    return pd.concat(frames, ignore_index=True)


def load_scores(
    results: str | Path, dataset: str | None = None, rows: tuple[Row, ...] | None = None, **settings
) -> pd.DataFrame:
    """A tidy table of every score: scores.csv of each run, with run, dataset, method, weight, seed and label; of which
    runs, and errors: see load_results."""
    return _load("scores.csv", results, dataset, rows, **settings)


def load_bootstrap(
    results: str | Path, dataset: str | None = None, rows: tuple[Row, ...] | None = None, **settings
) -> pd.DataFrame:
    """As load_scores(), of bootstrap.csv: columns replicate0, replicate1, ... are scores of resampled images."""
    return _load("bootstrap.csv", results, dataset, rows, **settings)


def load_curves(
    results: str | Path, dataset: str | None = None, rows: tuple[Row, ...] | None = None, **settings
) -> pd.DataFrame:
    """As load_scores(), of curves.csv: losses and bounds of task 1 during training."""
    return _load("curves.csv", results, dataset, rows, **settings)


@lru_cache(maxsize=1)  # asked for when a run begins: it is that of the code that was loaded then
def provenance(device: torch.device) -> dict:
    """The machine, the versions and the commit that a result was made with; no_commit: why there is none."""
    info = Path("/proc/cpuinfo").read_bytes().decode(errors="replace") if os.path.exists("/proc/cpuinfo") else ""
    models = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    found, why = commit()
    return {
        "machine": {
            "cpu": models[0] if models else platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "torchvision", "numpy", "scipy")},
        },
        "commit": found,
        **({} if found else {"no_commit": why}),
    }


def _version(name: str) -> str | None:
    with suppress(PackageNotFoundError):  # built by hand, as on some clusters and boards
        return version(name)


def commit() -> tuple[str | None, str]:
    """The commit of this code, or None and why it is not known."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            env={name: value for name, value in os.environ.items() if name not in GIT} | {"LC_ALL": "C"},
        )
        if done.returncode:  # "dubious ownership" of another user's clone; the folder is nobody's business
            raise OSError(done.stderr.partition("\n")[0].partition(" at '")[0].partition(": ")[2] or "git failed")
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed copy may lie in another repository
        changed = " with changes" if git("status", "--porcelain", "--untracked-files=no", ".") else ""  # of the package
        return git("rev-parse", "--verify", "HEAD") + changed, ""
    except FileNotFoundError:
        return None, "no git on PATH"
    except (OSError, subprocess.SubprocessError) as error:
        return None, str(error)


def save_result(
    folder: Path,
    run: Run,
    net: nn.Module,
    arguments: dict,
    tables: dict[str, list[dict]],
    samples: Image.Image,
    facts: dict,
) -> None:
    """Writes the folder of a finished run, result.json last. Raises ResultError if there is a finished one.

    net: the average, of a U-Net with these arguments; tables: the rows of each of TABLES; facts: what result.json says
    beside the run, with "sha256" of what the numbers depend on, by name, to which those of the files are added.
    """
    from .unet import save_unet

    if (folder / "result.json").exists():
        raise ResultError(f"{folder} holds a finished run: delete it to do the run again")
    for name, columns in TABLES.items():
        # With pandas' own types integers stay integers beside missing values.
        table = pd.DataFrame(tables[name], columns=columns).convert_dtypes()
        write_atomically(folder / name, partial(table.to_csv, index=False))
    write_atomically(folder / "samples.png", samples.save)
    save_unet(folder / WEIGHTS, net, arguments)
    result = {
        "protocol": PROTOCOL,
        "run": dataclasses.asdict(run),
        **facts,
        "sha256": {**facts["sha256"], **{name: file_sha256(folder / name) for name in (*FILES[:-1], WEIGHTS)}},
    }
    write_atomically(folder / "result.json", lambda p: p.write_text(json.dumps(result, indent=1) + "\n"))
    for path in folder.glob(".*-*"):  # what a kill left half-written
        path.unlink(missing_ok=True)
