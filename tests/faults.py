"""Kills processes of `make paper` at random moments and compares what comes out with an undisturbed run, bit for bit.

`python tests/faults.py [--profile digits] [--kills 100]`: a new folder for each, progress on stderr, exit code 1 if
anything was lost or differs.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cldiff.grid import jobs, runs
from cldiff.runs import FILES

ROOT = Path(__file__).parents[1]
PAUSE = 4, 14  # seconds between two kills


def copy(folder: Path) -> Path:
    """What `make paper` needs of this repository, without results."""
    for name in ("Makefile", "pyproject.toml", "notebooks", "cldiff", "figures"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy2(source, folder / name)
    for done in (folder / "figures").glob("*/*.ipynb"):
        done.unlink()
    return folder


def make(folder: Path, profile: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.Popen(["make", "paper", f"PROFILE={profile}", f"VENV={sys.prefix}", "CHECKPOINT=5"], cwd=folder,
                            env={**environment, "PYTHONPATH": str(folder)}, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)


def family(pid: int) -> list[int]:
    """The processes that descend from one, itself last, by /proc."""
    children = [int(p) for task in Path(f"/proc/{pid}/task").glob("*/children") for p in task.read_text().split()]
    return [p for child in children for p in family(child)] + [pid]


def kill_one(process: subprocess.Popen, choose: random.Random) -> str | None:
    """SIGKILL for a random process that does the work: a kernel, papermill, or make and all it started."""
    try:
        members = family(process.pid)
        victim = choose.choice(members)
        name = Path(f"/proc/{victim}/cmdline").read_text().replace("\0", " ")
        for pid in (members if "make" in name.split(" ")[0] else family(victim)):
            os.kill(pid, signal.SIGKILL)
        return next((kind for kind in ("ipykernel", "cldiff.execute", "cldiff.grid", "make") if kind in name), "other")
    except (OSError, ProcessLookupError):  # it ended meanwhile
        return None


def contents(folder: Path, profile: str) -> dict[str, bytes]:
    """Every result and every figure; result.json and a run's notebook hold times."""
    names = [f"results/{profile}/{run.name}/{name}" for run in runs(profile) for name in FILES[:-1]]
    names += [str(p.relative_to(folder)) for p in sorted((folder / "figures" / profile).iterdir())]
    return {name: (folder / name).read_bytes() for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="digits")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    choose, start, killed, lost = random.Random(words.seed), time.monotonic(), {}, 0
    with tempfile.TemporaryDirectory() as quiet, tempfile.TemporaryDirectory() as noisy:
        if make(copy(Path(quiet)), words.profile).wait():
            sys.exit("error: the undisturbed run failed")
        say(f"undisturbed: {time.monotonic() - start:.0f} s")
        targets, finished = [t for t in jobs(words.profile)], set()
        process = make(copy(Path(noisy)), words.profile)
        while True:
            pause = choose.uniform(*PAUSE) if sum(killed.values()) < words.kills else None
            try:
                process.wait(pause)
            except subprocess.TimeoutExpired:
                if kind := kill_one(process, choose):
                    killed[kind] = killed.get(kind, 0) + 1
            now = {target for target in targets if target.startswith("results/") and (Path(noisy) / target).exists()}
            lost += len(finished - now)
            finished = now
            if process.poll() is not None:
                if process.returncode == 0 and sum(killed.values()) >= words.kills:
                    break
                if process.returncode == 0:  # finished before the last kill: again from the start
                    shutil.rmtree(Path(noisy) / "results")
                    copy_again = Path(noisy) / "figures" / words.profile
                    shutil.rmtree(copy_again, ignore_errors=True)
                    finished = set()
                process = make(Path(noisy), words.profile)
            if sum(killed.values()) % 10 == 0:
                say(f"{time.monotonic() - start:.0f} s: {killed}, {len(finished)} runs finished")
        one, other = contents(Path(quiet), words.profile), contents(Path(noisy), words.profile)
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(f"{sum(killed.values())} kills ({killed}) in {time.monotonic() - start:.0f} s: {lost} results lost, "
          f"{len(different)} of {len(one)} files different {different[:5]}")
    sys.exit(bool(lost or different))


if __name__ == "__main__":
    main()
