"""What is compared: a row of a table is a method, its weight and its options."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of a table. weight: None for the method's default or, where a sweep chooses it, the chosen one."""

    method: str
    weight: float | None = None
    options: dict = {}


# The rows of the study, whose findings are checked.
STUDY = (
    Row("finetune"),
    Row("l2"),
    Row("replay", 1.0),
    Row("replay", 0.01),
    Row("generative", 1.0),
)
# The rows of a sweep: what a method's weight does, looked at on validation images.
SWEEP = tuple(Row(method, weight) for method in ("l2", "replay") for weight in (0.0, 0.001, 0.01, 0.1, 1.0, 10.0))


def _timesteps(weight: float, **options) -> Row:
    return Row("timesteps", weight, options)


_PILOT = dict(snr=1.9, power=2.0, low=0.01)  # a sigmoid about t = 200 of 1,000
# The arms of the replay experiment. Contrasts between them are fixed in notebooks/replay.ipynb.
REPLAY = (
    Row("finetune"),
    *(Row("replay", weight) for weight in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    *(_timesteps(w, weighting="step", at=at) for at in (100, 250, 500) for w in (0.1, 1.0)),
    *(_timesteps(w, weighting="power", power=a) for a in (1.0, 2.0) for w in (0.1, 1.0)),
    *(_timesteps(w, weighting="power", mirrored=True) for w in (0.1, 1.0)),
    *(_timesteps(w) for w in (0.1, 1.0)),  # P2
    *(_timesteps(w, **_PILOT) for w in (0.1, 0.3, 1.0)),
    *(_timesteps(w, mirrored=True, **_PILOT) for w in (0.1, 1.0)),
    *(_timesteps(w, on="current", **_PILOT) for w in (0.1, 1.0)),
    *(_timesteps(w, drawn=True, **_PILOT) for w in (0.1, 1.0)),
    *(_timesteps(w, weighting="hump", mirrored=m, power=0.5) for m in (False, True) for w in (0.1, 1.0)),
    *(Row("self_tuned", weight) for weight in (0.1, 1.0)),
    *(Row("distilled", weight) for weight in (0.1, 1.0, 10.0)),
    *(Row("distilled", 1.0, {"noise": noise}) for noise in (0.01, 0.1, 1.0)),
    Row("distilled", 1.0, {"teacher": "raw"}),
    *(Row("distilled", 1.0, {"until": until}) for until in (100, 250, 500)),
)
# The arms that the experiment on the digits left: those of the contrasts, with the shapes that it chose by FID, by BPD
# and by both, and the constants about the best.
REPLAY_KEPT = (
    Row("finetune"),
    *(Row("replay", weight) for weight in (0.01, 0.1, 0.3, 1.0)),
    *(_timesteps(0.1, weighting="hump", mirrored=m, power=0.5) for m in (False, True)),
    _timesteps(0.1, weighting="power", mirrored=True),
    _timesteps(1.0, **_PILOT),
    _timesteps(1.0, mirrored=True, **_PILOT),
    _timesteps(1.0, on="current", **_PILOT),
    Row("distilled", 1.0),
)
