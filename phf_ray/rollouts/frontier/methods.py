"""What stands on the frontier: methods, the points of each, and what is known of them. Higher gold is better."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from phf_ray.measures.clusters import ClusteredMean
from phf_ray.measures.overoptimization import OveroptimizationFit

MethodKind = Literal["base", "best of n", "rounds", "model"]
Distance = Literal["from the base", "of the reference"]
"""from the base: KL(method || base), over answers of the method; of the reference: KL(reference || method), over texts
of the reference, as `phf evaluate-lm` measures it. One says nothing of the other."""
Aspect = Literal["base", "prompts", "gold", "proxy"]

NO_GOLD, NO_KL, NO_PROXY = "no gold measured", "no KL measured", "no proxy measured"


@dataclass(frozen=True, slots=True)
class Measurement:
    mean: float
    interval: tuple[float, float] | None = None
    """95%; None: the rows allow none."""
    num_prompts: int | None = None

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.mean, *(self.interval or ())))):
            raise ValueError(f"{self.mean} with the interval {self.interval} is no figure")


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    where: str
    """`round 3`, `n = 4`, or nothing for a method of one point."""
    kl: Measurement | None = None
    kl_at_most: float | None = None
    """Stands for the KL where nobody knows it."""
    gold: Measurement | None = None
    proxy: Measurement | None = None
    is_base: bool = False

    @property
    def across(self) -> float | None:
        """Where it stands on the axis of KL."""
        return self.kl_at_most if self.kl is None else self.kl.mean


@dataclass(frozen=True, slots=True)
class GuardStop:
    """Where the guard of rounds stops, by the run's own rules, or would have, had the run had any."""

    where: str
    rule: str
    happened: bool
    reason: str


@dataclass(frozen=True, slots=True)
class FrontierMethod:
    name: str
    kind: MethodKind
    source: str
    """The folder, as the user names it."""
    points: Sequence[FrontierPoint]
    distance: Distance = "from the base"
    claims: Mapping[Aspect, Mapping[str, str]] = field(default_factory=dict)
    """Aspect -> kind of identity -> identity, the surest kind first. Only those of one kind compare."""
    prompts: frozenset[str] = field(default=frozenset(), repr=False)
    """Texts of the prompts that it answers; empty: not known."""
    minutes: float | None = None
    tokens_drawn: int | None = None
    tokens_learned: int | None = None
    stop: GuardStop | None = None
    fits: Mapping[str, OveroptimizationFit | str] = field(default_factory=dict)
    """Of gold and proxy against KL; or why there is none."""
    notes: tuple[str, ...] = ()
    """What a reader must know of it, in sentences."""

    @property
    def title(self) -> str:
        """What legends and tables call it."""
        if self.kind in ("rounds", "best of n"):
            return f"{self.name} ({self.kind})"
        return f"{self.name} (base)" if self.kind == "base" and self.name != "base" else self.name

    @property
    def base(self) -> FrontierPoint | None:
        return next((point for point in self.points if point.is_base), None)

    @property
    def peak(self) -> FrontierPoint | None:
        """The first point with the highest gold."""
        measured = [point for point in self.points if point.gold is not None]
        return max(measured, key=lambda point: point.gold.mean, default=None)  # type: ignore[union-attr]

    @property
    def missing(self) -> list[str]:
        """Return what is not known of it, in words."""
        told = []
        for words, known in (
            (NO_GOLD, any(point.gold for point in self.points)),
            (NO_KL, any(point.across is not None for point in self.points)),
            (NO_PROXY, any(point.proxy for point in self.points)),
            ("no minutes stored", self.minutes is not None),
            ("no tokens stored", self.tokens_drawn is not None or self.tokens_learned is not None),
        ):
            if not known and not (self.kind == "base" and "stored" in words):
                told.append(words)
        return told

    def as_json(self) -> dict[str, Any]:
        peak, base = self.peak, self.base
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "source": self.source,
            "kl_is": "KL(method || base)" if self.distance == "from the base" else "KL(reference || method)",
            "points": [_point_json(point) for point in self.points],
            "base": None if base is None else base.where,
            "peak": None if peak is None else peak.where,
            "stop": None if self.stop is None else asdict(self.stop),
            "fits": {of: _fit_json(fit) for of, fit in self.fits.items()},
            "minutes": self.minutes,
            "tokens_drawn": self.tokens_drawn,
            "tokens_learned": self.tokens_learned,
            "identities": {aspect: dict(kinds) for aspect, kinds in self.claims.items()},
            "num_prompts": len(self.prompts) or None,
            "missing": self.missing,
            "notes": list(self.notes),
        }


def measured_mean(found: ClusteredMean | None) -> Measurement | None:
    if found is None:
        return None
    interval = None if found.interval is None else (found.interval.low, found.interval.high)
    return Measurement(found.mean, interval, found.num_clusters)


def _point_json(point: FrontierPoint) -> dict[str, Any]:
    def shown(found: Measurement | None) -> dict[str, Any] | None:
        return None if found is None else asdict(found)

    return {
        "where": point.where,
        "kl": shown(point.kl),
        "kl_at_most": point.kl_at_most,
        "gold": shown(point.gold),
        "proxy": shown(point.proxy),
        "is_base": point.is_base,
    }


def _fit_json(fit: OveroptimizationFit | str) -> dict[str, Any]:
    return {"reason": fit} if isinstance(fit, str) else {**asdict(fit), "peak_kl": fit.peak_kl}
