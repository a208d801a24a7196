"""The runs of a profile, and the weights that sweeps chose. Nothing here reads results or runs."""

import json
from collections.abc import Sequence
from pathlib import Path

from .files import write_atomically
from .methods import METHODS, Method
from .profiles import PROFILES, Profile
from .rows import Row
from .run import Run

# {sweep: {data set: {method: weight}}}, written by `python -m cldiff accept`.
CHOSEN = Path(__file__).parent / "chosen.json"


def method_of(row: Row) -> type[Method]:
    """Raises ValueError for a name that is not registered, or not that of a method."""
    if row.method not in METHODS:
        raise ValueError(
            f"unknown method {row.method!r} in a row; known: {', '.join(METHODS)}; a file of your own needs its import "
            "and its name in cldiff/methods/__init__.py"
        )
    if not issubclass(found := METHODS[row.method], Method):
        raise ValueError(f"{row.method}: {found.__name__} is no subclass of Method (cldiff/methods/base.py)")
    return found


def row_run(row: Row, **settings) -> Run:
    """The run of a row: its label names the row everywhere. Raises ValueError for a setting that is none."""
    known = [name for name in Run.names() if name not in Row._fields[:3] + ("dataset", "seed")]
    if unknown := [name for name in row.settings if name not in known]:
        raise ValueError(
            f"unknown parameter {unknown[0]!r} in a row's settings, its fourth entry (options of the method are its "
            f"third); known: {', '.join(known)}"
        )
    return Run(method=row.method, weight=row.weight, options=row.options, **{**settings, **row.settings})


def labels_of(rows: Sequence[Row]) -> list[str]:
    """Of the rows, each once: a default weight may be another row's. Raises ValueError for one whose weight, which its
    label names, is left to a sweep."""
    if left := [
        row.method
        for row in rows
        if row.weight is None and method_of(row).weight is not None and not method_of(row).tuned
    ]:
        raise ValueError(
            f"the label of {left[0]} has the weight that a sweep chose: take labels of `study.runs(profile)`"
        )
    return list(dict.fromkeys(row_run(row).label for row in rows))


class NotChosen(ValueError):
    """A weight is left to a sweep that has not chosen it; the message says how it does."""


def chosen(sweep: str, dataset: str, method: str) -> float:
    """The weight that a finished sweep chose. Raises ValueError where there is none, NotChosen if there is none yet."""
    found = json.loads(CHOSEN.read_text()).get(sweep, {}).get(dataset, {})
    if method in found:
        return found[method]
    if method not in {row.method for row in known_profile(sweep).rows}:
        raise ValueError(
            f"{method} has neither a weight in its row nor trials in {sweep}: give it a weight in cldiff/rows.py or, "
            "for sweeps of all methods, the smallest of its trials in _SMALLEST"
        )
    raise NotChosen(
        f"no weight of {method} on {dataset} was chosen yet: `make paper PROFILE={sweep}` and then "
        f"`python -m cldiff accept {sweep}` choose it"
    )


def keep_chosen(sweep: str, dataset: str, weights: dict[str, float]) -> None:
    """By method; those of other methods stay."""
    found = json.loads(CHOSEN.read_text())
    found.setdefault(sweep, {}).setdefault(dataset, {}).update(weights)
    write_atomically(CHOSEN, lambda path: path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n"))


def known_profile(name: str) -> Profile:
    """Raises ValueError for an unknown one."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]


def results_folder(profile: str) -> Path:
    known_profile(profile)
    return Path("results", profile)


def runs(profile: str, seeds: int = 1, only: str = "") -> list[Run]:
    """Every run of a profile, or those whose name starts with `only`. Raises ValueError for an unknown profile, and
    where a weight was not chosen yet."""
    p = known_profile(profile)
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: expected at least 1")
    found = []
    for dataset, own in p.datasets.items():
        for seed in range(p.first_seed, p.first_seed + seeds):
            for row in p.rows:
                if not (start := f"{dataset}-{row.method}-").startswith(only) and not only.startswith(start):
                    continue  # it may lack its weight, and need not have it
                if method_of(row).weight is not None and row.weight is None and p.sweep:
                    row = row._replace(weight=chosen(p.sweep, dataset, row.method))
                found.append(row_run(row, dataset=dataset, seed=seed, **{**p.settings, **own}))
    return [run for run in dict.fromkeys(found) if run.name.startswith(only)]  # a chosen weight may be the study's


def planned(profile: str, seeds: int = 1, only: str = "") -> list[Run]:
    """The runs in the order in which they are made: a data set and seed after the other, and in each the long ones
    (replay, the last rows) before the short ones, so that no core waits at the end."""
    found = runs(profile, seeds, only)
    datasets = list(dict.fromkeys(run.dataset for run in found))
    return sorted(reversed(found), key=lambda run: (datasets.index(run.dataset), run.seed))
