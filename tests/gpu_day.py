"""The first hours with a GPU: `make gpu-day BUDGET=4h`. Tests, speed, what Table 1 will take, and then its runs.

Each part leaves a file that git keeps, and is not repeated where that is there: called again, after the machine was
taken away, it goes on. A part may take a quarter of the budget that is left, so that the runs have about two fifths of
it: the rates then take fewer steps, another part is ended and left out. A part that fails does not end the day, but
without the tests nothing is trained. `--predict` says what is known without a GPU, and measures nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from bench import SIZES, TASKS, Cldiff, machine_name, say, seconds, table_seconds
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cldiff.__main__ import seconds as parsed
from cldiff.files import write_atomically
from cldiff.results import provenance
from cldiff.run import Run
from cldiff.study import planned, results_folder, runs
from cldiff.train import check_precision, pick_device
from cldiff.unet import UNet

OUT = Path("results/bench")
RATED = 1_000  # steps of each method, at most
PART = 0.25  # of the budget that is left, that a part may take
SHARE = 0.3  # of the peak, that so small a U-Net may reach
PEAK = {  # FLOP/s of dense products of data sheets: in training, and where torch takes float32 (TF32 in convolutions)
    "T4": (8.1e12, 8.1e12),  # its tensor cores know no bfloat16
    "A100": (312e12, 156e12),
    "H100": (989e12, 494e12),
}


# What is known without a GPU.


def on_paper(run: Run, images: int, device: str = "cuda") -> tuple[float, int]:
    """FLOPs of an image in a forward pass, two for a multiplication and an addition, and bytes that a step of so many
    images keeps for its backward pass in the run's precision: by the rules of the device, on tensors without numbers."""
    size, kept = SIZES[run.dataset][0], {}
    net = UNet.of(run, size, TASKS, 1).to(memory_format=torch.channels_last)

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    half = torch.is_autocast_enabled(device)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in net.modules():
            for name, p in module._parameters.items():
                there = torch.empty_strided(p.shape, p.stride(), device=device)
                module._parameters[name] = torch.nn.Parameter(there)
        x = torch.empty(images, 1, size, size, device=device)
        number = torch.empty(images, dtype=torch.long, device=device)
        try:  # not torch.autocast, which asks for a driver
            torch.set_autocast_enabled(device, run.precision == "bfloat16")
            torch.set_autocast_dtype(device, torch.bfloat16)
            with FlopCounterMode(display=False) as flops, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                net(x, number, number).float().square().sum()
        finally:
            torch.set_autocast_enabled(device, half)
        for p in net.parameters():
            kept.pop(p.untyped_storage()._cdata, None)
    return flops.get_total_flops() / images, sum(storage.nbytes() for storage in kept.values())


def table_flops(run: Run) -> dict[str, float]:
    """Of a table of one data set and seed by phase, without LeNet and Inception: its seconds at one FLOP a second."""
    image, _ = on_paper(run, 2)
    rate = {"train": 1 / (3 * image), "sample": 1 / (image * run.sample_steps), "bpd": 1 / (image * run.bound_terms)}
    return {phase: found for phase, found in table_seconds(run, {**rate, "fid": 0.0}).items() if found}


def predict(profile: str) -> str:
    run = runs(profile)[0]
    phases, images = table_flops(run), 2 * run.batch  # with replay
    total, (_, kept) = sum(phases.values()), on_paper(run, images)
    shares = ", ".join(f"{phase} {part / total:.0%}" for phase, part in phases.items())
    lines = [
        f"{profile}, a table of one data set and seed: {total:.2g} FLOP ({shares})",
        f"a step of {images} images keeps {kept / 1e9:.1f} GB in {run.precision}",
    ]
    for name, (half, single) in PEAK.items():
        hours = (phases["train"] / half + (total - phases["train"]) / single) / SHARE / 3600
        lines.append(f"{name}: {hours:.1f} hours at {SHARE:.0%} of its peak")
    return "\n".join(lines)


# What is measured. Each part writes its file whole, or none, and takes no more than so many seconds.


def ended(command: list[str], most: float, **how) -> tuple[int, str | None]:
    """Exit code and stdout of a command. After so many seconds it is killed, with all that it started, which would
    keep the GPU: raises subprocess.TimeoutExpired."""
    with subprocess.Popen(command, start_new_session=True, text=True, **how) as process:
        try:
            out, _ = process.communicate(timeout=most)
        except BaseException:  # Ctrl-C does not reach another session
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out


def tests(words: argparse.Namespace, path: Path, most: float) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "--no-header", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    with tempfile.TemporaryFile("w+") as log:
        try:
            code, _ = ended([*command, "--device", words.device], most, stdout=log)
        finally:  # of tests that were ended, too
            log.seek(0)
            print(out := log.read(), flush=True)
    if code:
        raise RuntimeError(
            "the tests fail on this GPU: what it would train is not to be trusted before they are mended"
        )
    write_atomically(path, lambda p: p.write_text(out))


def bench(words: argparse.Namespace, path: Path, most: float) -> None:
    command = [sys.executable, "tests/bench.py", "--device", words.device, "--profile", words.profile]
    code, _ = ended([*command, "--out", str(path.parent)], most)
    if code:
        raise RuntimeError("tests/bench.py failed, as said above")


def rates(words: argparse.Namespace, path: Path, most: float) -> None:
    """Of each row of the table, in its second task: first all as the profile has them, then, on a GPU, compiled. Each
    has an equal share of the time that is left, but for five steps, and for what comes before (pools, compiling), which
    takes what it takes."""
    device, rows, end = torch.device(words.device), [], time.monotonic() + most
    table = [run for run in runs(words.profile) if run.dataset == runs(words.profile)[0].dataset]
    asked = [(run, best) for best in (False, True)[: 1 + (device.type == "cuda")] for run in table]
    for number, (run, best) in enumerate(asked):
        if best and time.monotonic() > end:
            say("compiled: left out, too little of the time is left")
            break
        work = partial(Cldiff(run, device, past=1, best=best).train, run.batch)
        seconds(work, 5, device)
        fit = (end - time.monotonic()) / (len(asked) - number) / seconds(work, 5, device)
        steps = min(RATED, max(5, int(fit)))
        rows.append({"row": run.label, "compiled": best, "steps": steps, "seconds": seconds(work, steps, device)})
        short = f" ({steps:,} steps instead of {RATED:,}: more do not fit)" if steps < RATED else ""
        say(f"{run.label}{', compiled' * best}: {rows[-1]['seconds'] * 1e3:.1f} ms a step{short}")
        del work  # with its network, before the next one
    write_atomically(path, lambda p: pd.DataFrame(rows).to_csv(p, index=False))


PARTS: dict[
    str, tuple[Callable, str]
] = {  # what is done, and what it leaves in results/bench, after the machine's name
    "tests": (tests, "-tests.txt"),
    "rates": (rates, "-rates.csv"),
    "bench": (bench, ".json"),
}


def hours(profile: str, name: str) -> float:
    """Of a table of one data set and seed, from what the parts measured: without Inception, KID, precision, recall."""
    run, rows = runs(profile)[0], pd.read_csv(OUT / f"{name}-rates.csv")
    step = rows[~rows.compiled].seconds
    rows = json.loads((OUT / f"{name}.json").read_text())["rows"]
    phases = table_seconds(
        run, {r["job"]: r["value"] for r in rows if r["who"] == "cldiff" and r["profile"] == profile}
    )
    phases["train"] = run.steps * (step[0] + (TASKS - 1) * step.sum())  # the rows share the first task
    return sum(phases.values()) / 3600


def commit(paths: list[Path], message: str) -> None:
    """For a machine that may be taken away. Nothing else that is staged goes along. Where git fails, files are left."""
    try:
        subprocess.run(["git", "add", "--", *map(str, paths)], check=True)
        subprocess.run(["git", "commit", "--quiet", "-m", message, "--", *map(str, paths)], check=True)
    except subprocess.CalledProcessError as error:
        say(f"not committed ({error}): {', '.join(map(str, paths))}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/gpu_day.py", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (default), or cpu to try it")
    parser.add_argument("--profile", default="paper", help="whose runs (default paper)")
    parser.add_argument("--budget", default="1h", help="of it all: 90m, 4h (default 1h)")
    parser.add_argument("--predict", action="store_true", help="what is known without a GPU, and nothing else")
    parser.error = lambda message: sys.exit(f"error: {message}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is running is ended with it
    words = parser.parse_args()
    try:
        if words.predict:
            return print(predict(words.profile))
        end = time.monotonic() + parsed(words.budget)
        words.device = pick_device(words.device).type
        check_precision(runs(words.profile)[0], torch.device(words.device))
        if subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], capture_output=True).returncode:
            raise ValueError("git does not know who commits results: set git config user.name and user.email")
        name = machine_name(provenance(torch.device(words.device)))
        paths, failed = {part: OUT / f"{name}{suffix}" for part, (_, suffix) in PARTS.items()}, []
        for part, path in paths.items():
            most = PART * (end - time.monotonic())
            if path.exists():
                say(f"{part}: {path} is there")
            elif most < 1:
                say(f"{part}: left out, too little of the budget is left")
            else:
                say(f"{part}, {most:.0f} s at most")
                try:
                    PARTS[part][0](words, path, most)
                    commit([path], f"{part} on {name}")
                except subprocess.TimeoutExpired:
                    say(f"{part}: left out, {most:.0f} s were too few; a call with a larger BUDGET makes up for it")
                except Exception as error:  # the other parts say something all the same
                    say(f"{part}: failed: {type(error).__name__}: {error}")
                    failed.append(part)
        if all(paths[part].exists() for part in ("rates", "bench")):
            took = hours(words.profile, name)
            say(f"a table of {words.profile}, one data set and seed: {took:.1f} hours (Inception, KID: not counted)")
        if paths["tests"].exists():
            work_off(words, name, end)
        else:
            say(f"runs: left out, as the tests {'failed' if 'tests' in failed else 'were'}")
        if failed:
            raise RuntimeError(f"failed, as said above: {', '.join(failed)}")
    except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {str(error).partition(chr(10))[0]}")


def work_off(words: argparse.Namespace, name: str, end: float) -> None:
    """The profile's runs, each committed as soon as it is finished, until the time is over. Raises RuntimeError in the
    end if one failed."""
    failed = 0
    for run in planned(words.profile):
        folder = results_folder(words.profile) / run.name
        left = end - time.monotonic()
        if left < 1 or (folder / "result.json").exists():
            continue
        command = [sys.executable, "-m", "cldiff", "run", words.profile, "--only", run.name, "--device", words.device]
        failed += bool(subprocess.run([*command, "--budget", f"{left:.0f}s"]).returncode)
        if (folder / "result.json").exists():
            commit([folder], f"{words.profile}: {run.label}, {run.dataset}, seed {run.seed}, on {name}")
    if failed:
        raise RuntimeError(f"{failed} runs failed, as said above")


if __name__ == "__main__":
    main()
