"""Collects what the frontier shows from all sources: methods with names of their own, and what of them is unlike."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.rollouts.frontier.alike import Unlike, compare_methods
from phf_ray.rollouts.frontier.boards import FrontierBoard
from phf_ray.rollouts.frontier.methods import Distance, FrontierMethod
from phf_ray.rollouts.frontier.sources import read_source, split_source

_DISTANCES: tuple[Distance, ...] = ("from the base", "of the reference")


@dataclass(frozen=True, slots=True)
class Frontier:
    methods: Sequence[FrontierMethod]
    boards: Sequence[FrontierBoard]
    unlike: Unlike

    def as_json(self) -> dict[str, Any]:
        return {
            "frontier": 1,
            "methods": [method.as_json() for method in self.methods],
            "boards": [board.as_json() for board in self.boards],
            "warnings": self.unlike.warnings,
            "notes": self.unlike.notes,
        }


def collect(given: Sequence[str]) -> Frontier:
    """Read all sources, `[NAME=]DIR` each. Raises ConfigError, before anything is read, if a folder is there twice."""
    places = Counter(split_source(one)[1].resolve() for one in given)
    twice = [str(place) for place, count in places.items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is named {places[Path(twice[0])]} times; name each result once")
    found = [read_source(one) for one in given]
    methods = _with_own_names([method for source in found for method in source.methods])
    unlike = Unlike()
    for distance in _DISTANCES:
        of_plot = compare_methods([method for method in methods if method.distance == distance])
        unlike.warnings.extend(of_plot.warnings)
        unlike.notes.extend(of_plot.notes)
    if len({method.distance for method in methods}) > 1:
        unlike.notes.append(
            "Reports of phf evaluate-lm measure KL(reference || model), the others KL(model || base): one says nothing "
            "of the other, so they stand on plots of their own"
        )
    return Frontier(methods, [board for source in found for board in source.boards], unlike)


def _with_own_names(methods: Sequence[FrontierMethod]) -> list[FrontierMethod]:
    """Add to titles that occur twice as much of the source as tells them apart."""
    sources: dict[str, list[Path]] = {}
    for method in methods:
        sources.setdefault(method.title, []).append(Path(method.source).resolve())
    return [_renamed(method, sources[method.title]) if len(sources[method.title]) > 1 else method for method in methods]


def _renamed(method: FrontierMethod, sources: Sequence[Path]) -> FrontierMethod:
    own = Path(method.source).resolve()
    others = [source for source in sources if source != own]
    length = next(
        (
            length
            for length in range(1, len(own.parts))
            if all(one.parts[-length:] != own.parts[-length:] for one in others)
        ),
        len(own.parts),
    )
    shown = "/".join(own.parts[-length:])
    name = shown if own.name == method.name else f"{method.name} of {shown}"
    return dataclasses.replace(method, name=name)
