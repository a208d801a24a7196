"""What is compared: a row of a table is a method, its weight and its options."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of a table. weight: None for the method's default or, where a sweep chooses it, the chosen one. settings:
    of the run, where they differ from the profile's."""

    method: str
    weight: float | None = None
    options: dict = {}
    settings: dict = {}


# The rows of the study, whose findings are checked.
STUDY = (
    Row("finetune"),
    Row("l2"),
    Row("replay", 1.0),
    Row("replay", 0.01),
    Row("generative", 1.0),
)
PILOT = dict(snr=1.9, power=2.0, low=0.01)  # a sigmoid about t = 200 of 1,000
# A sweep: finetuning, which stands for weight 0 of every method, and five powers of ten from this one on.
_SMALLEST = {
    "l2": 1e-3,
    "replay": 1e-2,
    "generative": 1e-3,
    "distilled": 1e-2,
    "timesteps": 1e-2,
    "self_tuned": 1e-3,
    "generative_distillation": 1e-2,
    "rank1_distillation": 1e-1,
    "lwf": 1e-2,
    "ewc": 1e2,
    "rank1": 1e2,
    "mas": 1e-3,
    "si": 1e-2,
}
SWEEP = (
    Row("finetune"),
    *(
        Row(method, float(f"{smallest * 10**k:.0e}"), PILOT if method == "timesteps" else {})
        for method, smallest in _SMALLEST.items()
        for k in range(5)
    ),
)
# Two more than in a sweep of all methods: docs/protocol.md says why.
L2_SWEEP = (Row("finetune"), Row("l2", 1e-5), Row("l2", 1e-4), *(row for row in SWEEP if row.method == "l2"))
# The field's methods, each with the weight that a sweep chose, beside the study's rows.
BENCHMARK = (
    *STUDY,
    Row("replay"),
    Row("generative"),
    Row("distilled"),
    Row("timesteps", options=PILOT),
    Row("self_tuned"),
    Row("agem"),
    Row("generative_distillation"),
    # What the target does, apart from how the two losses are weighed: each with the other's shares.
    Row("generative", 1.0, {"shared": True}),
    Row("generative_distillation", 1.0, {"shared": False}),
    Row("rank1_distillation"),
    Row("lwf"),
    Row("ewc"),
    Row("ewc", options={"decay": 0.9}),
    Row("rank1"),
    Row("mas"),
    Row("si"),
    Row("averaging"),
    Row("lora"),
    Row("separate"),
    Row("separate", options={"start": "previous"}),
    Row("joint"),
)
# At the study's length its rows, and those that the replay experiment and the benchmark ask about.
LONG = (*STUDY, Row("distilled", 1.0), Row("timesteps", 1.0, PILOT), Row("joint"))
# The five that led the benchmark when this was planned (commit 3d6bb50) and are no bounds, finetuning, and two constant
# weights of replay, the study's and the best of the replay experiment: with another length for all, and with other
# buffers for those that have one.
_LENGTH, _BUFFERS = dict(steps=1_000, curve_every=200), (5, 20, 50)
AXES = (
    *(
        Row(method, settings=settings)
        for method in ("finetune", "generative_distillation", "rank1_distillation", "lora")
        for settings in ({}, _LENGTH)
    ),
    *(
        Row(method, weight, settings=settings)
        for method, weight in (("distilled", None), ("self_tuned", None), ("replay", 1.0), ("replay", 0.1))
        for settings in (*({"buffer": buffer} for buffer in _BUFFERS), _LENGTH)
    ),
)
# The three orders of the tasks, for finetuning, replay and the benchmark's best, each with weight 1.
IN_ORDERS = tuple(
    Row(method, weight, settings={"order": order})
    for order in ("label", "reversed", "shuffled")
    for method, weight in (("finetune", None), ("replay", 1.0), ("generative_distillation", 1.0))
)
# For a sequence of ten tasks: finetuning, the benchmark's best of those that draw old images and of those that keep
# them, and what led on MNIST.
TEN = (Row("finetune"), Row("generative_distillation", 1.0), Row("distilled", 1.0), Row("replay", 1.0))


def _timesteps(weight: float, **options) -> Row:
    return Row("timesteps", weight, options)


# The arms of the replay experiment. Contrasts between them are fixed in notebooks/replay.ipynb.
REPLAY = (
    Row("finetune"),
    *(Row("replay", weight) for weight in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    *(_timesteps(w, weighting="step", at=at) for at in (100, 250, 500) for w in (0.1, 1.0)),
    *(_timesteps(w, weighting="power", power=a) for a in (1.0, 2.0) for w in (0.1, 1.0)),
    *(_timesteps(w, weighting="power", mirrored=True) for w in (0.1, 1.0)),
    *(_timesteps(w) for w in (0.1, 1.0)),  # P2
    *(_timesteps(w, **PILOT) for w in (0.1, 0.3, 1.0)),
    *(_timesteps(w, mirrored=True, **PILOT) for w in (0.1, 1.0)),
    *(_timesteps(w, on="current", **PILOT) for w in (0.1, 1.0)),
    *(_timesteps(w, drawn=True, **PILOT) for w in (0.1, 1.0)),
    *(_timesteps(w, weighting="hump", mirrored=m, power=0.5) for m in (False, True) for w in (0.1, 1.0)),
    *(Row("self_tuned", weight) for weight in (0.1, 1.0)),
    *(Row("distilled", weight) for weight in (0.1, 1.0, 10.0)),
    *(Row("distilled", 1.0, {"noise": noise}) for noise in (0.01, 0.1, 1.0)),
    Row("distilled", 1.0, {"teacher": "raw"}),
    *(Row("distilled", 1.0, {"until": until}) for until in (100, 250, 500)),
)
# How few images a method of replay needs, as many of each class: distillation, the study's weight, and the one that the
# experiment chose by BPD.
FEW = tuple(
    Row(method, weight, settings={"buffer": images})
    for images in (2, 4, 10, 20)
    for method, weight in (("distilled", 1.0), ("replay", 1.0), ("replay", 0.1))
)
# The arms that the experiment on the digits left: those of the contrasts, with the shapes that it chose by FID, by BPD
# and by both, and the constants about the best.
REPLAY_KEPT = (
    Row("finetune"),
    *(Row("replay", weight) for weight in (0.01, 0.1, 0.3, 1.0)),
    *(_timesteps(0.1, weighting="hump", mirrored=m, power=0.5) for m in (False, True)),
    _timesteps(0.1, weighting="power", mirrored=True),
    _timesteps(1.0, **PILOT),
    _timesteps(1.0, mirrored=True, **PILOT),
    _timesteps(1.0, on="current", **PILOT),
    Row("distilled", 1.0),
)
