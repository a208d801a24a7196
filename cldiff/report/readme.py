"""The parts of README.md and docs/protocol.md that follow from results and code, written between their markers.

A part NAME stands between the lines <!-- NAME: `python -m cldiff readme` writes this part --> and <!-- /NAME -->.
"""

import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..errors import Problem
from ..evidence import FINETUNING, GENERATIVE, REPLAY, STUDIED
from ..findings import RULE
from ..methods import METHODS
from ..results import load_scores
from ..rows import STUDY
from ..run import Run
from ..stats import average, forgetting, result_matrix
from ..study import PROFILES, runs
from ..tasks import DATASETS
from ..unet import UNet
from .tables import mean_and_error

VERDICTS = "paper-cpu/findings-mnist", "paper-cpu/findings-fashion_mnist"  # of figures/, as .md
RUNNING = Path("docs/running.md")
DISTILLATION = "Generative distillation, weight 1"
QUOTED = [FINETUNING, "EWC", REPLAY, "Timestep-aware replay", "Distilled replay", GENERATIVE, DISTILLATION]
QUOTED += [f"{DISTILLATION}, not shared", "Joint training", "One model for each task, start previous"]
LEADERBOARDS = [
    Path(f"figures/benchmark-{name}/leaderboard-{name}.md") for name in ("digits", "mnist", "fashion_mnist")
]
SHOWN = ("digits", "paper-cpu", "orders-mnist", "paper")  # the profiles whose parameters are listed


def table_of(path: Path) -> list[list[str]]:
    """The cells of the tables of a Markdown file, heads first."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for row in cells if not set("".join(row)) <= set("-: ")]


def written(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def said_seeds(path: Path) -> str:
    """As its note has them: "3 seeds", or "1 to 3 seeds"."""
    return re.search(r"n = ((?:\d+ to )?\d+ seeds?)", path.read_text(encoding="utf-8"))[1]


def results(profile: str = "paper-cpu") -> str:
    """What became of the study's methods in the published runs, and of the benchmark's."""
    datasets, steps = list(PROFILES[profile].datasets), PROFILES[profile].settings.get("steps", Run.steps)
    scores = {dataset: load_scores(Path("results", profile), dataset, STUDY) for dataset in datasets}
    real = [
        of.query("metric == 'fid_floor' and split == 'test' and extractor == 'lenet'").value.mean()
        for of in scores.values()
    ]

    def value(
        dataset: str,
        label: str,
        metric: str,
        digits: int,
        split: str = "test",
        of: Callable[[np.ndarray], float] = average,
    ) -> str:
        rows = scores[dataset][scores[dataset].label == label]
        if rows.empty:
            raise Problem(f"no results of {label} on {dataset} in results/{profile}: README's table has them")
        return mean_and_error(
            pd.Series([of(result_matrix(run, metric, split)) for _, run in rows.groupby("seed")]), digits
        )

    def times(matrix: np.ndarray) -> float:
        return matrix[-1, :-1].mean() / np.diag(matrix)[:-1].mean()

    def each(first: str, *others: str) -> str:
        return f"{first} ({', '.join(others)})" if others else first

    rise = [value(dataset, FINETUNING, "fid", 0, of=times) for dataset in datasets]
    bits = [value(dataset, FINETUNING, "bpd", 2, of=forgetting) for dataset in datasets]
    shares = (lambda copied: 100 * copied[-1, :-1].mean(), lambda copied: 100 * copied[-1, 0])
    copies, of_first = ([value(d, REPLAY, "copied", 1, "buffer", of) for d in datasets] for of in shares)
    seeds = max(of.seed.nunique() for of in scores.values())
    head = [f"average over tasks, {steps:,} steps each, {seeds} seed{'s' * (seeds > 1)}"]
    head += [title for dataset in datasets for title in (f"{DATASETS[dataset].title}: FID ↓", "BPD ↓")]
    measured = [(dataset, *of) for dataset in datasets for of in (("fid", 0), ("bpd", 2))]
    rows = [[label, *(value(dataset, label, *of) for dataset, *of in measured)] for label in STUDIED]
    rows.append(["real images", *(cell for floor in real for cell in (f"{floor:.0f}", ""))])
    return (
        "FID is in features of a LeNet, against *test* images (in verdicts: training images); ± is a standard error. "
        f"On {each(*(DATASETS[dataset].title for dataset in datasets))} finetuning loses old tasks: their FID becomes "
        f"{each(*rise)} times what it was, their bits change by {each(*bits)}. Experience replay with weight 1 keeps "
        f"them; {each(*copies)} % of its samples for old tasks, {each(*of_first)} % for task 1, are copies of kept "
        f"images. BPD is coarse: on MNIST a histogram of each pixel needs 1.67, less than any network.\n\n"
        f"{written([head, *rows])}\n\n{benchmark()}"
    )


def benchmark(root: Path = Path(), link: str = "[{}]({})") -> str:
    """Average FID of some rows of the benchmark, by data set. root: of the repository; link: to a leaderboard."""
    head, rows = [], [[label] for label in (*QUOTED, "real images")]
    for board in (root / board for board in LEADERBOARDS):
        profile, (titles, *found) = PROFILES[board.parent.name], table_of(board)
        title = link.format(DATASETS[[*profile.datasets][0]].title, board.as_posix())
        steps, buffer = (profile.settings.get(name, getattr(Run, name)) for name in ("steps", "buffer"))
        head.append(f"{title}, {steps:,} steps, {buffer} images kept, {said_seeds(board)}")
        fid = {row[0].removesuffix(" ‡"): row[titles.index("avg FID, test ↓")] for row in found}
        fid["real images"] = re.search(r"real images have (\d+\.\d)", board.read_text(encoding="utf-8"))[1]
        for row in rows:
            name = next(name for name in fid if name == row[0] or name.startswith(f"{row[0]}, weight"))
            weight = re.match(r", weight ([\d.]+)", name.removeprefix(row[0]))
            row.append(fid[name] + (f" (weight {weight[1]})" if weight else ""))
    return (
        f"The benchmark, shorter runs of more methods: average FID of {len(QUOTED)} of about {len(fid)} rows. *Not "
        "shared*: new and drawn images count 1 each. For reference: joint training on all data; a network for each "
        "task that begins at the last one's. Each data set has its own LeNet: compare within a column. ± where there "
        f"are three seeds; of one, a gap of a sixth may be chance.\n\n{written([['FID ↓', *head], *rows])}"
    )


def pretrained(root: Path = Path()) -> str:
    """What a start from another data set's network changes. root: of the repository."""
    path = root / "figures/pretrained/contrasts-mnist.md"
    head, *rows = table_of(path)
    found = {(row[1], row[head.index("outcome")]): row[head.index("difference")] for row in rows}
    of = (FINETUNING, "fid learned"), (FINETUNING, "FID"), (REPLAY, "FID"), (DISTILLATION, "FID")
    learned, alone, replay, distilled = (found[f"{label}, pretrained", outcome] for label, outcome in of)
    return (
        f"MNIST's tasks ({PROFILES['pretrained'].settings['steps']:,} steps each, {said_seeds(path)}) from a "
        f"network that was trained on Fashion-MNIST: under finetuning FID is {learned} of that from scratch right "
        f"after each task, and {alone} in the end, as all is forgotten again; generative distillation ends at "
        f"{distilled}, experience replay with weight 1 at {replay} (one pretrained network; "
        "intervals are not corrected)"
    )


def minutes() -> str:
    """What the first command does, and how long that takes."""
    took = {row[0]: row[-1] for row in table_of(RUNNING)}
    return (
        "trains the study's methods on the digits, one seed, and draws all into `figures/digits`: "
        f"{took['`make paper`']} on two CPU cores, after an installation of {took['`make setup`']} (Python 3.10 or "
        "later and `make`). No GPU, no download of data. Then open `figures/digits/paper.html`, or "
        "`make lab`."
    )


def size_of(run: Run) -> float:
    """Million parameters, of five tasks of 28x28 pixels."""
    with torch.device("meta"):
        return sum(p.numel() for p in UNet.of(run, 28, 5, 1).parameters()) / 1e6


def verdicts() -> str:
    """The seven findings, and whether they hold on each data set."""
    found, titles, seeds = [], [], []
    for name in VERDICTS:
        path = Path("figures", f"{name}.md")
        said = said_seeds(path)
        seeds.append(int(said.split()[-2]))  # the most that a row has
        titles.append(f"[{DATASETS[name.split('-')[-1]].title}]({path}), {said}")
        found.append({row[0]: row for row in table_of(path)})
    run, chance = runs("paper-cpu")[0], ", ".join(f"{n} do 1 time in {2**n}" for n in sorted(set(seeds) - {1}))
    noise = (
        f"Met asks little more than that all seeds lie on the side asked for (by chance {chance})."
        if chance
        else "Averages are tested against the noise of drawn images alone, not of seeds."
    )
    about = (
        f"The study: {Run.steps:,} steps a task and, as we read it, batches of {Run.batch}, "
        f"{size_of(Run()):.0f} million parameters; here as many steps, batches of {run.batch}, {size_of(run):.1f} "
        f"million. {RULE} {noise} L2 has the weight with the lowest average FID in a sweep: larger ones forget less, "
        "and learn less."
    )
    rows = [[number, row[1], *(table[number][-1] for table in found)] for number, row in found[0].items() if number]
    return f"{about}\n\n" + written([["", "finding of the study", *titles], *rows])


def form(value: object) -> str:
    """A parameter's value: 20,000, 0.0002, "1 2 2"."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return f"{value:g}" if type(value) is float else f"{value:,}" if type(value) is int else str(value)


def parameters() -> str:
    """Every parameter of a run: its meaning, its default, and the profiles' values where they differ."""
    skipped = ("dataset", "method", "weight", "options", "seed")
    rows = [
        [f"`{f.name}`", f.metadata["help"], form(f.default)]
        + [form(PROFILES[name].settings[f.name]) if f.name in PROFILES[name].settings else "" for name in SHOWN]
        for f in fields(Run)
        if f.name not in skipped
    ]
    return written([["parameter", "meaning", "default", *(f"`{name}`" for name in SHOWN)], *rows])


def methods() -> str:
    """Every method in the words of its docstring, with its weight, its price of a step and its options."""
    rows = []
    for name, method in METHODS.items():
        options = "; ".join(
            f"`{f.name}` {form(f.default)}: {f.metadata['help']}"
            for f in fields(method.Options)
            if f.default is not MISSING
        )
        weight = "" if method.weight is None else f"{method.weight:g}"
        about = " ".join((method.__doc__ or "").split())
        rows.append([f"`{name}`", method.label, about, weight, str(method.passes), options])
    head = ["method", "in tables", "what it does", "weight", "passes", "options, their defaults and meaning"]
    return written([head, *rows])


def datasets() -> str:
    rows = [
        [f"`{n}`", d.title, str(d.classes), form(d.classes / Run.classes_per_task), str(d.colours)]
        for n, d in DATASETS.items()
    ]
    return written([["data set", "title", "classes", "tasks", "colours"], *rows])


PARTS = {
    Path("README.md"): (results, minutes, verdicts),
    Path("docs/protocol.md"): (parameters, methods, datasets),
}


def filled(path: Path) -> str:
    """The text of a page with its generated parts. Raises Problem where a marker is missing."""
    text = path.read_text(encoding="utf-8")
    for part in PARTS[path]:
        start, end = (
            f"<!-- {part.__name__}: `python -m cldiff readme` writes this part -->\n",
            f"<!-- /{part.__name__} -->",
        )
        before, _, rest = text.partition(start)
        _, found, after = rest.partition(end)
        if not found:
            raise Problem(f"{path} lacks the lines {start.strip()} and {end}, between which that part goes")
        text = f"{before}{start}{part()}\n{end}{after}"
    return text


def write_all() -> None:
    """Raises Problem where a page lacks a marker; then nothing is written."""
    texts = {path: filled(path) for path in PARTS}
    for path, text in texts.items():
        changed = path.read_text(encoding="utf-8") != text
        path.write_text(text, encoding="utf-8")
        print(f"{path} {'was written' if changed else 'is up to date'}")
