"""The profiles: which runs, with which settings, and the notebooks that show them."""

from dataclasses import dataclass, field

from .rows import AXES, BENCHMARK, FEW, IN_ORDERS, L2_SWEEP, LONG, REPLAY, REPLAY_KEPT, STUDY, SWEEP, TEN, Row
from .run import Run
from .tasks import DATASETS

# The study's notebooks, each executed once for every data set; its paper is made when all of them are there.
FIGURES = (
    "table",
    "figure_1",
    "figure_2",
    "figure_matrices",
    "figure_timesteps",
    "figure_samples",
    "figure_strip",
    "table_protocols",
    "findings",
)


@dataclass(frozen=True)
class Profile:
    """datasets: by name, what differs there from `settings`, which differ from Run's defaults. sweep: the profile that
    chose the weights of rows without one; None: methods' defaults. figures: the notebooks that show its results.
    published: whether git keeps results. first_seed: above 0 for an experiment on seeds that an earlier one
    did not see."""

    help: str
    datasets: dict[str, dict]
    settings: dict = field(default_factory=dict)
    rows: tuple[Row, ...] = STUDY
    sweep: str | None = None
    figures: tuple[str, ...] = FIGURES
    published: bool = False
    first_seed: int = 0

    @property
    def has_paper(self) -> bool:
        return self.figures == FIGURES


_GREY = {"mnist": {}, "fashion_mnist": {}}
_TINY = dict(channels=16, dropout=0.0, multipliers=[1, 2], blocks=1, attention=4, buffer=20, early=50, late=300)
_DIGITS = dict(
    _TINY,
    steps=200,
    batch=32,
    learning_rate=4e-3,
    pool=200,
    pool_steps=10,
    samples=256,
    sample_steps=10,
    bound_terms=20,
    curve_every=40,
)
_DIGITS_LONG = dict(_DIGITS, steps=1_000, curve_every=200)
_PAPER_CPU = dict(
    patch=2,
    channels=24,
    multipliers=[1, 2],
    blocks=1,
    attention=7,
    dropout=0.0,
    batch=32,
    learning_rate=1e-3,
    pool=2_000,
    pool_steps=20,
    samples=1_024,
    sample_steps=20,
    bound_terms=20,
    bound_images=10_000,
    curve_images=100,
)
# Where many runs are compared. Of 1e-3, 2e-3 and 4e-3 this rate had the lowest validation loss of MNIST's first task.
_SHORT = dict(
    _PAPER_CPU,
    steps=1_000,
    learning_rate=2e-3,
    pool=500,
    pool_steps=10,
    samples=512,
    sample_steps=10,
    bound_images=250,
    curve_every=250,
)
_SMALL = dict(_SHORT, steps=2_000)
_SWEPT = dict(bound_terms=10, bound_images=50, curve_images=20)  # a sweep reads little but FID
# From scratch, and from the network that paper-cpu's finetuning on Fashion-MNIST ended with.
PRETRAINED = tuple(
    row._replace(settings=settings)
    for settings in ({"start": ""}, {"start": Run(dataset="fashion_mnist", method="finetune", **_PAPER_CPU).name})
    for row in IN_ORDERS[:3]
)


def _experiment(help: str, dataset: str, settings: dict, rows: tuple[Row, ...], figure: str, **more) -> Profile:
    """One data set and one notebook; published unless `more` says otherwise."""
    return Profile(help, {dataset: {}}, settings, rows, figures=(figure,), **{"published": True, **more})


PROFILES = {
    "smoke": Profile(
        "a few steps of everything; nothing to learn from its numbers",
        {"digits": {}},
        dict(
            _TINY,
            steps=4,
            batch=8,
            channels=8,
            pool=8,
            pool_steps=2,
            samples=16,
            sample_steps=2,
            bound_terms=4,
            bound_images=8,
            curve_every=2,
            curve_images=8,
        ),
    ),
    "digits": Profile("scikit-learn's digits, 8x8 pixels, from scratch", {"digits": {}}, _DIGITS, sweep="digits-sweep"),
    "small": Profile("MNIST and Fashion-MNIST, a tenth of paper-cpu's steps", _GREY, _SMALL, sweep="paper-cpu-sweep"),
    "more": Profile(
        "KMNIST and CIFAR-10 with the settings of small, and its weight of L2 on MNIST",
        {"kmnist": {}, "cifar10": {"attention": 8}},
        _SMALL,
        tuple(row._replace(weight=0.0001) if row.method == "l2" else row for row in STUDY),
    ),
    "paper-cpu": Profile(
        "the study's 20,000 steps a task where there is no GPU: hours for each run",
        _GREY,
        _PAPER_CPU,
        sweep="paper-cpu-sweep",
        published=True,
    ),
    "paper": Profile(
        "the study's protocol, on a GPU",
        _GREY,
        dict(channels=64, precision="bfloat16", inception=True, bound_terms=100, bound_images=10_000),
        sweep="paper-cpu-sweep",
        published=True,
    ),
    "benchmark-digits": _experiment(
        "the field's methods on the digits", "digits", _DIGITS, BENCHMARK, "benchmark", sweep="digits-sweep"
    ),
    **{
        f"benchmark-{dataset}": _experiment(
            f"the field's methods on {DATASETS[dataset].title}, 1,000 steps a task",
            dataset,
            _SHORT,
            BENCHMARK,
            "benchmark",
            sweep=f"{dataset}-sweep",
        )
        for dataset in _GREY
    },
    "benchmark-paper-cpu": _experiment(
        "the study's rows on MNIST, 20,000 steps a task, beside distilled and timestep-aware replay and joint training",
        "mnist",
        _PAPER_CPU,
        LONG,
        "benchmark",
        sweep="paper-cpu-sweep",
    ),
    "axes-digits": _experiment(
        "the benchmark's best methods with other buffers and five times the steps",
        "digits",
        _DIGITS,
        AXES,
        "axes",
        sweep="digits-sweep",
    ),
    "replay": _experiment(
        "the replay experiment: two tasks of the digits, 1,000 steps each",
        "digits",
        dict(_DIGITS_LONG, tasks=2),
        REPLAY,
        "replay",
        published=False,
    ),
    "replay-short": _experiment(
        "the same with 200 steps", "digits", dict(_DIGITS, tasks=2), REPLAY, "replay", published=False
    ),
    "replay-confirm": _experiment(
        "the arms that the replay experiment left, on other seeds",
        "digits",
        dict(_DIGITS_LONG, tasks=2),
        REPLAY_KEPT,
        "replay",
        first_seed=3,
    ),
    "replay-few": _experiment(
        "replay with 2 to 20 images, as many of each class, on the seeds of replay-confirm",
        "digits",
        dict(_DIGITS_LONG, tasks=2, balanced=True),
        FEW,
        "few",
        first_seed=3,
    ),
    "replay-mnist": _experiment(  # 3,200 passes over an image of the buffer, as in paper-cpu's 20,000 steps with 200
        "those arms on MNIST's first two tasks, 2,000 steps, 20 images a task kept",
        "mnist",
        dict(_PAPER_CPU, tasks=2, steps=2_000, buffer=20, bound_images=500),
        REPLAY_KEPT,
        "replay",
    ),
    "orders": _experiment("the tasks of the digits in three orders", "digits", _DIGITS, IN_ORDERS, "orders"),
    "orders-mnist": _experiment("the tasks of MNIST in three orders", "mnist", _SHORT, IN_ORDERS, "orders"),
    "pretrained": _experiment(
        "MNIST's tasks from scratch and from Fashion-MNIST's network", "mnist", _SHORT, PRETRAINED, "pretrained"
    ),
    "ten": _experiment("MNIST's and Fashion-MNIST's tasks in one sequence", "mnist_fashion", _SHORT, TEN, "ten"),
    "digits-sweep": _experiment(
        "weights of every method that has one, judged on validation images",
        "digits",
        _DIGITS,
        SWEEP,
        "sweep",
        published=False,
    ),
    **{
        f"{dataset}-sweep": _experiment(
            f"the same on the first two tasks of {DATASETS[dataset].title}, with benchmark-{dataset}'s steps",
            dataset,
            dict(_SHORT, **_SWEPT, tasks=2, samples=256),
            SWEEP,
            "sweep",
            published=False,
        )
        for dataset in _GREY
    },
    "paper-cpu-sweep": Profile(
        "weights of L2 for paper-cpu, a twentieth of its steps",
        _GREY,
        dict(_PAPER_CPU, **_SWEPT, steps=1_000, samples=512),
        rows=L2_SWEEP,
        figures=("sweep",),
    ),
}
