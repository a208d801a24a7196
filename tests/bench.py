"""How fast: training, sampling, bound and FID, beside diffusers and lucidrains' denoising-diffusion-pytorch.

`python tests/bench.py` measures all of them in one run, turn by turn, and writes results/bench/<machine>.json, which
notebooks/bench.ipynb draws. All have their images on the device; they are noise, to which speed is indifferent.
"""

import argparse
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # not for whoever imports this
    os.environ.setdefault("TQDM_DISABLE", "1")  # lucidrains' sampler draws a bar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from cldiff import metrics
from cldiff.features import LeNet, extract
from cldiff.files import write_atomically
from cldiff.learner import Learner
from cldiff.results import provenance
from cldiff.rows import STUDY
from cldiff.run import Run
from cldiff.study import runs
from cldiff.tasks import Split, Task, to_model
from cldiff.train import pick_device

TASKS = 5
SIZES = {"digits": (8, 260, 29, 71), "mnist": (28, 10_800, 1_200, 2_000)}  # pixels; a task's images in each split
UNITS = {"train": "images/s", "sample": "images/s", "bpd": "images/s", "fid": "seconds for 10,000 images"}
TURN = 0.5  # seconds, at least
WARM = {"cpu": 2, "cuda": 5}  # calls


def noise_images(run: Run, n: int, device: torch.device | str = "cpu") -> Tensor:
    return torch.randint(256, (n, 1, *[SIZES[run.dataset][0]] * 2), dtype=torch.uint8, device=device)


# What is measured: a class for each library, a method for each job; n is the number of images in a call. Those that are
# drawn are float (n, C, H, W) in [-1, 1]; diffusers' are its average's, for which weights are exchanged, as in its example.


class Cldiff:
    """What a run calls. past: tasks learned before; best: compiled, into CUDA graphs on a GPU."""

    def __init__(self, run: Run, device: torch.device | str, past: int = 0, best: bool = False):
        run = replace(run, compiled=best and torch.device(device).type == "cuda")
        splits = [Split(noise_images(run, n), torch.zeros(n, dtype=torch.long)) for n in SIZES[run.dataset][1:]]
        tasks = [Task(i, (2 * i, 2 * i + 1), *splits) for i in range(max(TASKS, past + 1))]
        self.run, self.learner = run, Learner(run, tasks, device)
        self.images = noise_images(run, 10_000)
        self.lenet = (
            LeNet(SIZES[run.dataset][0]).to(device, memory_format=torch.channels_last).eval()
        )  # as load_lenet has it
        for _ in range(past):
            self.learner.next_task()

    def train(self, n: int) -> None:
        self.learner.update()

    def sample(self, n: int) -> Tensor:
        return self.learner.sample(0, n, self.run.sample_steps, self.run.eta, "samples")

    def bpd(self, n: int) -> None:
        learner, terms = self.learner, self.run.bound_terms
        images = self.images[:n].to(learner.device)
        learner.diffusion.bits_per_dim(learner.model(0), to_model(images), True, learner.generator("bound"), terms)

    def fid(self, n: int) -> None:
        features, _ = extract(self.lenet, self.images[:n])
        metrics.fid(features, torch.rand(features.shape))


class Peer:
    """The training step that both libraries share: their loss, Adam as it comes, their moving average."""

    def __init__(self, run: Run, device: torch.device | str, net: torch.nn.Module, fused: bool | None = None):
        self.run, self.device, self.net = run, torch.device(device), net.to(device)
        self.images = noise_images(run, SIZES[run.dataset][1], device)
        self.optimizer = torch.optim.Adam(net.parameters(), lr=run.learning_rate, fused=fused)

    def train(self, n: int) -> None:
        self.loss(self.images[torch.randint(len(self.images), (n,), device=self.device)]).backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.run.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average()


class Diffusers(Peer):
    """UNet2DModel with our widths, blocks, attention and patches, trained as in diffusers' unconditional example.

    best: bfloat16, channels-last, fused optimiser and average, and compiled into CUDA graphs on a GPU.
    """

    def __init__(self, run: Run, device: torch.device | str, best: bool = False):
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        sizes = [SIZES[run.dataset][0] // run.patch // 2**level for level in range(len(run.multipliers))]
        blocks = lambda kind: ["Attn" * (size == run.attention) + kind for size in sizes]  # noqa: E731
        net = UNet2DModel(
            sample_size=sizes[0],
            in_channels=run.patch**2,
            out_channels=run.patch**2,
            layers_per_block=run.blocks,
            dropout=run.dropout,
            block_out_channels=[run.channels * multiplier for multiplier in run.multipliers],
            down_block_types=blocks("DownBlock2D"),
            up_block_types=blocks("UpBlock2D")[::-1],
            downsample_padding=1,
            norm_num_groups=min(32, run.channels // 4),
            num_class_embeds=TASKS,
            attention_head_dim=None,
        )
        super().__init__(run, device, net.to(memory_format=torch.channels_last) if best else net, fused=best or None)
        self.ema = EMAModel(self.net.parameters(), decay=run.ema, use_ema_warmup=True, power=3 / 4, foreach=best)
        self.average = lambda: self.ema.step(self.net.parameters())
        schedule = {"num_train_timesteps": run.timesteps, "beta_start": 1e-4, "beta_end": 0.02}
        self.ddpm, self.ddim = DDPMScheduler(**schedule), DDIMScheduler(**schedule)
        compiled = best and self.device.type == "cuda"
        self.call = torch.compile(self.net, mode="reduce-overhead", dynamic=False) if compiled else self.net
        self.half = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=best)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        with self.half():
            found = self.call(F.pixel_unshuffle(x, self.run.patch), t, class_labels=torch.zeros_like(t)).sample
        return F.pixel_shuffle(found.float(), self.run.patch)

    def loss(self, images: Tensor) -> Tensor:
        x0 = to_model(images)
        noise, t = torch.randn_like(x0), torch.randint(self.run.timesteps, (len(x0),), device=self.device)
        return F.mse_loss(self.predict(self.ddpm.add_noise(x0, noise, t), t), noise)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        self.net.eval()
        self.ema.store(self.net.parameters())
        self.ema.copy_to(self.net.parameters())
        x = torch.randn(n, *self.images.shape[1:], device=self.device)
        self.ddim.set_timesteps(self.run.sample_steps)
        for t in self.ddim.timesteps.tolist():
            x = self.ddim.step(self.predict(x, torch.full((n,), t, device=self.device)), t, x).prev_sample
        self.ema.restore(self.net.parameters())
        return x


class Lucidrains(Peer):
    """lucidrains' U-Net, trained as in his Trainer. Its blocks and attention are not ours: compare FLOPs, too."""

    def __init__(self, run: Run, device: torch.device | str):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        super().__init__(
            run,
            device,
            GaussianDiffusion(
                Unet(dim=run.channels, dim_mults=run.multipliers, channels=1, dropout=run.dropout),
                objective="pred_noise",
                image_size=SIZES[run.dataset][0],
                timesteps=run.timesteps,
                sampling_timesteps=run.sample_steps,
                beta_schedule="linear",
            ),
        )
        self.ema = EMA(self.net, beta=run.ema, update_every=10)
        self.average = self.ema.update

    def loss(self, images: Tensor) -> Tensor:
        return self.net(images.float() / 255)

    def sample(self, n: int) -> Tensor:
        return self.ema.ema_model.eval().sample(batch_size=n) * 2 - 1


WHO = {
    "cldiff": Cldiff,
    "cldiff-compiled": partial(Cldiff, best=True),
    "diffusers": Diffusers,
    "diffusers-compiled": partial(Diffusers, best=True),
    "lucidrains": Lucidrains,
}
ALONE = get_context("forkserver")  # processes of their own, to measure memory in; they find torch loaded
ALONE.set_forkserver_preload(["cldiff.measure"])


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write; `products`: those of convolutions, matrix products and attention alone."""

    bytes = products = operations = 0
    composite = {f"aten::{name}" for name in ("conv2d", "linear", "matmul", "einsum")}  # what inference mode shows

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and not function._schema.name.startswith(("aten::empty", "aten::detach")):
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]  # in place: two times
            moved = sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors)
            product = function._overloadpacket in flop_registry or function._schema.name in self.composite
            self.bytes, self.products = self.bytes + moved, self.products + moved * product
            self.operations += 1
        return result


def count(who: str, job: str, run: Run, n: int) -> dict:
    """FLOPs and bytes of each of n images, and operations of a call, counted while small batches run on the CPU.

    A multiplication and an addition are two FLOPs. bytes: each operation goes through memory. floor_bytes: products do,
    and what does not grow with the batch (weights, optimiser, average); all else is fused with them.
    """
    passes = {"sample": run.sample_steps, "bpd": run.bound_terms}.get(job, 1)  # one of them is counted
    found = []
    for batch in (2, 4):
        work = partial(getattr(WHO[who](replace(run, batch=batch, sample_steps=1, bound_terms=1), "cpu"), job), batch)
        work()  # the optimiser makes its state
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            work()
        found.append((flops.get_total_flops(), traffic.bytes, traffic.products))
    flops, moved, products = ((b - a) / 2 for a, b in zip(*found))
    fixed = (found[0][1] - 2 * moved) / n
    return {
        "flops_per_image": flops * passes,
        "bytes_per_image": (moved + fixed) * passes,
        "floor_bytes_per_image": (products + fixed) * passes,
        "operations": traffic.operations * passes,
    }


def seconds(work: Callable, calls: int, device: torch.device) -> float:
    """Seconds of one call."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    wait()
    return (time.perf_counter() - start) / calls


def interleave(title: str, works: dict, repeats: int, device: torch.device) -> dict[object, list[float]]:
    """Seconds per call of each work, `repeats` times: in rounds, every other one backwards, so that what slows the
    machine down for a while slows all alike."""
    once = {name: seconds(work, 1, device) for name, work in works.items()}
    calls = {name: max(1, round(TURN / s)) for name, s in once.items()}
    say(f"{title}: {', '.join(map(str, works))}; about {repeats * sum(calls[w] * once[w] for w in works):.0f} s")
    times = {name: [] for name in works}
    for number in range(repeats):
        for name in list(works)[:: -1 if number % 2 else 1]:
            times[name].append(seconds(works[name], calls[name], device))
    return times


def peak_memory(who: str, job: str, run: Run, n: int, device: str) -> float:
    """MB after two calls, in a process of its own: on a GPU what torch allocated there, on a CPU the whole process."""
    work = partial(getattr(WHO[who](run, device), job), n)
    work(), work()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (torch.cuda.max_memory_allocated() if device == "cuda" else resident) / 1e6


def machine_limits(device: torch.device) -> dict:
    """Best of ten: matrix products (FLOP/s, by precision), a large copy (bytes/s), the smallest operation (seconds)."""
    gpu, peak = device.type == "cuda", {}
    best = lambda work, calls: min(seconds(work, calls, device) for _ in range(10))  # noqa: E731
    for name in ("float32", "tf32", "bfloat16") if gpu else ("float32",):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        a = torch.randn([8192 if gpu else 1024] * 2, device=device, dtype=getattr(torch, name, torch.float32))
        peak[name] = 2 * len(a) ** 3 / best(lambda: a @ a, 3)
    torch.set_float32_matmul_precision("highest")
    x, one = torch.zeros(2, 2**28 if gpu else 2**25, device=device), torch.zeros(1, device=device)
    return {
        "peak": peak,
        "bandwidth": x.nbytes / best(lambda: x[0].copy_(x[1]), 3),
        "operation": best(lambda: one.add_(1), 1000),
    }


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def compare(
    profile: str, run: Run, job: str, names: list[str], device: torch.device, repeats: int, limits: dict
) -> list[dict]:
    """The rows of a job, one for each library. One that cannot be had or fails here is taken out of `names`."""
    gpu, size = device.type == "cuda", SIZES[run.dataset][0]
    part = 1 if gpu or size == 8 else 16  # a CPU would take minutes for as many images as a run has in one call
    n = {"train": run.batch, "sample": min(run.samples, 500) // part, "bpd": 64 // part, "fid": 10_000}[job]
    works, memory, rows = {}, {}, []
    alone = {"bpd": ("cldiff", "cldiff-compiled"), "fid": ("cldiff",)}  # nobody else measures these
    for who in [who for who in names if who in alone.get(job, names)]:
        say(f"{profile}, {job}: {who} warms up")
        try:
            with ProcessPoolExecutor(1, ALONE) as process:
                memory[who] = process.submit(peak_memory, who, job, run, n, device.type).result()
            work = partial(getattr(WHO[who](run, device), job), n)
            seconds(work, WARM[device.type], device)
            works[who] = work
        except Exception as error:
            if who == "cldiff":
                raise
            names.remove(who)
            say(f"{who} left out: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
    for who, times in interleave(f"{profile}, {job}", works, repeats, device).items():
        half = who == "diffusers-compiled" or (who[:6], job, run.precision) == ("cldiff", "train", "bfloat16")
        precision = "bfloat16" if half else "tf32" if gpu else "float32"  # torch's convolutions on a GPU take TF32
        counted, values = count(who, job, run, n), [s if job == "fid" else n / s for s in times]
        peak, flops = limits["peak"].get(precision, limits["peak"]["float32"]), counted["flops_per_image"]
        roof = min(peak, limits["bandwidth"] * flops / counted["floor_bytes_per_image"])
        rows.append(
            {
                "job": job,
                "who": who,
                "profile": profile,
                "batch": n,
                "value": median(values),
                "unit": UNITS[job],
                "model": f"{size}x{size} pixels, channels {run.channels} x {run.multipliers}, blocks {run.blocks}",
                "repeats": values,
                "precision": precision,
                **counted,
                "peak_share": flops * n / median(times) / peak,
                "roofline_share": flops * n / median(times) / roof,
                "peak_memory_mb": memory[who],
            }
        )
    return rows


def growth(profile: str, run: Run, device: torch.device, repeats: int, rows: list[dict]) -> list[dict]:
    """How cost grows: training images/s (of the current task) against batch, width, and tasks to replay; seconds of a
    table against seeds."""
    small = replace(run, batch=min(run.batch, 32)) if device.type == "cpu" else run
    replay = replace(small, method="replay", weight=1.0)
    largest = (500_000 if device.type == "cuda" else 110_000) // SIZES[run.dataset][0] ** 2  # images
    widths = (run.channels // 2, run.channels, 2 * run.channels)
    curves = {  # {name: {x: (run, past tasks)}}
        "batch": {b: (replace(run, batch=b), 0) for b in (8, 32, 128, 512, 2048) if b <= largest},
        "width": {c: (replace(small, channels=c), 0) for c in widths if c % 8 == 0},
        "past tasks": {k: (replay, k) for k in (1, 2, 4, 8, 16)},
    }
    found = []
    for name, points in curves.items():
        works = {x: partial(Cldiff(run, device, past).train, run.batch) for x, (run, past) in points.items()}
        for work in works.values():
            seconds(work, WARM[device.type], device)
        for x, times in interleave(f"{profile}, against {name}", works, repeats, device).items():
            found.append(
                {
                    "against": name,
                    "profile": profile,
                    "x": x,
                    "value": points[x][0].batch / median(times),
                    "unit": "images/s",
                }
            )
    once = sum(table_seconds(run, {row["job"]: row["value"] for row in rows if row["who"] == "cldiff"}).values())
    return found + [
        {
            "against": "seeds",
            "profile": profile,
            "x": seeds,
            "value": seeds * once,
            "unit": "seconds",
            "estimated": True,
        }
        for seeds in (1, 3, 5, 10)
    ]


def table_seconds(run: Run, rate: dict) -> dict:
    """Estimated from measured rates: a table of one seed, run by run, and what is measured on the way (without KID,
    precision, recall and Inception)."""
    _, _, validation, test = SIZES[run.dataset]
    replays = sum(method in ("replay", "generative") for method, *_ in STUDY)  # a second batch in each step
    trained = 1 + (TASKS - 1) * (len(STUDY) + replays)  # tasks; the rows share the first
    points = (1 + (TASKS - 1) * len(STUDY)) * run.steps / run.curve_every * min(run.curve_images, validation)
    scored = 1 + len(STUDY) * (TASKS * (TASKS + 1) / 2 - 1)  # entries of the result matrices
    fids = 3 * scored + metrics.REPLICATES * len(STUDY) * (2 * TASKS - 1)  # splits; diagonals and last rows resampled
    return {
        "train": trained * run.steps * run.batch / rate["train"],
        "curves": points * (1 + 2 * len(run.curve_timesteps) / run.bound_terms) / rate["bpd"],
        "samples": scored * run.samples / rate["sample"],
        "bpd": scored * min(run.bound_images, test) / rate["bpd"],
        "fid": fids * run.samples / 10_000 * rate["fid"],
        "pools": TASKS * (TASKS - 1) / 2 * run.pool * run.pool_steps / run.sample_steps / rate["sample"],
    }


def measure(profiles: dict[str, Run], device: torch.device, repeats: int) -> dict:
    """What is written to the file: machine, versions, commit, limits, rows, growth."""
    say("peak and bandwidth of the machine")
    found = {"device": device.type, **provenance(device), "limits": machine_limits(device), "rows": [], "growth": []}
    for package in ("diffusers", "denoising-diffusion-pytorch"):
        with suppress(PackageNotFoundError):
            found["versions"][package] = version(package)
    names = [who for who in WHO if device.type == "cuda" or not who.endswith("-compiled")]
    if len(names) < len(WHO):
        say("compiled networks are left out: torch.compile pays on a GPU only")
    for profile, run in profiles.items():
        rows = [row for job in UNITS for row in compare(profile, run, job, names, device, repeats, found["limits"])]
        found["rows"] += rows
        found["growth"] += growth(profile, run, device, repeats, rows)
    return found


def machine_name(report: dict) -> str:
    """Of its GPU or else CPU, for names of files."""
    name = re.sub(r"\((R|TM)\)|Processor|CPU|@", " ", report["machine"]["gpu"] or report["machine"]["cpu"])
    return "-".join(name.lower().split())


def save(report: dict, folder: Path) -> Path:
    path = folder / f"{machine_name(report)}.json"
    write_atomically(path, lambda p: p.write_text(json.dumps(report, indent=1) + "\n"))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--profile", nargs="+", help="digits, paper-cpu, paper, or several (default: digits; GPU: paper)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder (default results/bench)")
    parser.error = lambda message: sys.exit(f"error: {message}")
    words = parser.parse_args()
    try:
        if words.repeats < 5:
            raise ValueError(f"repeats={words.repeats}: expected at least 5")
        device = pick_device(words.device)
        profiles = {name: runs(name)[0] for name in words.profile or ["paper" if device.type == "cuda" else "digits"]}
        words.out.mkdir(parents=True, exist_ok=True)
        print(save(measure(profiles, device, words.repeats), words.out))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {str(error).partition(chr(10))[0]}")


if __name__ == "__main__":
    main()
