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
from functools import partial
from pathlib import Path

from cldiff.results import FILES, WEIGHTS
from cldiff.study import runs

ROOT = Path(__file__).parents[1]
PAUSE = 13, 4  # seconds between two kills, at most: while there are runs to finish, and while figures are drawn


def copy(folder: Path) -> Path:
    """What `make paper` needs of this repository, without results."""
    for name in ("Makefile", "pyproject.toml", "notebooks", "cldiff", "figures"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy2(source, folder / name)
    for done in (folder / "figures").glob("*/*.ipynb"):
        done.unlink()
    for own in ("smoke", "digits"):  # of whoever made them here
        shutil.rmtree(folder / "figures" / own, ignore_errors=True)
    return folder


def make(folder: Path, profile: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.Popen(
        ["make", "paper", f"PROFILE={profile}", f"VENV={sys.prefix}", "CHECKPOINT=2"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def family(pid: int) -> list[int]:
    """The processes that descend from one, itself last, by /proc."""
    children = [int(p) for task in Path(f"/proc/{pid}/task").glob("*/children") for p in task.read_text().split()]
    return [p for child in children for p in family(child)] + [pid]


def kill_one(process: subprocess.Popen, choose: random.Random) -> str | None:
    """SIGKILL for a random kernel, a papermill, or make and all it started; or Ctrl-C for all. Returns which, or None."""
    kind = choose.choices(("ipykernel", "cldiff\0make", "make", "Ctrl-C"), (12, 6, 1, 1))[0]
    try:
        members = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in family(process.pid)}
        found = [pid for pid, line in members.items() if kind in line] if kind in ("ipykernel", "cldiff\0make") else []
        if found:
            os.kill(choose.choice(found), signal.SIGKILL)
        elif kind == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        elif kind == "make":
            for pid in members:
                os.kill(pid, signal.SIGKILL)
        else:  # none at this moment
            return None
        return kind
    except OSError:  # it ended meanwhile
        return None


def contents(folder: Path, profile: str) -> dict[str, bytes]:
    """Every result and every figure; result.json, a run's notebook and the paper hold times. What was being written
    when a kill came is hidden, and stays."""
    names = [f"results/{profile}/{run.name}/{name}" for run in runs(profile) for name in (*FILES[:-1], WEIGHTS)]
    drawn = sorted((folder / "figures" / profile).glob("[!.]*"))
    names += [str(p.relative_to(folder)) for p in drawn if p.stem != "paper"]
    return {name: (folder / name).read_bytes() for name in names}


def disturb(folder: Path, profile: str, kills: int, seed: int = 0, say=lambda text: None) -> tuple[dict[str, int], int]:
    """`make paper`, called again after each kill until it has finished; the figures anew if it finishes before the last
    kill. Returns how many processes of each kind were killed, and how many finished runs were lost."""
    choose, killed, lost, finished, start = random.Random(seed), {}, 0, set(), time.monotonic()
    process, before = make(folder, profile), 0  # kills before it
    while True:
        drawing = len(finished) == len(runs(profile))
        left = kills - sum(killed.values()) - (0 if drawing else max(1, kills // 10))  # a tenth is for the figures
        try:
            process.wait(choose.uniform(0, PAUSE[drawing]))
        except subprocess.TimeoutExpired:
            if left > 0 and (kind := kill_one(process, choose)):
                killed[kind] = killed.get(kind, 0) + 1
                say(f"{time.monotonic() - start:.0f} s: killed {killed}, {len(finished)} runs finished, {lost} lost")
        now = set((folder / "results" / profile).glob("*/result.json"))
        lost, finished = lost + len(finished - now), now
        if process.poll() is None:
            continue
        if process.returncode == 0 and sum(killed.values()) >= kills:
            return killed, lost
        if process.returncode == 0:
            shutil.rmtree(folder / "figures" / profile)
        elif sum(killed.values()) == before:
            raise RuntimeError("make failed although nothing was killed")
        process, before = make(folder, profile), sum(killed.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="digits")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    say, start = partial(print, file=sys.stderr, flush=True), time.monotonic()
    with tempfile.TemporaryDirectory() as quiet, tempfile.TemporaryDirectory() as noisy:
        if make(copy(Path(quiet)), words.profile).wait():
            sys.exit("error: the undisturbed run failed")
        say(f"undisturbed: {time.monotonic() - start:.0f} s")
        killed, lost = disturb(copy(Path(noisy)), words.profile, words.kills, words.seed, say)
        one, other = contents(Path(quiet), words.profile), contents(Path(noisy), words.profile)
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(
        f"{sum(killed.values())} kills ({killed}) in {time.monotonic() - start:.0f} s: {lost} results lost, "
        f"{len(different)} of {len(one)} files different {different[:5]}"
    )
    sys.exit(bool(lost or different))


if __name__ == "__main__":
    main()
