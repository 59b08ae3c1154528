"""The figures of a model on held-out prompts, and how far its gold reward is from the base's, prompt by prompt.

Higher rewards are better. KL is that of the model from the base, over answers that the model drew. Of a best of n
nobody knows it, and its upper bound stands there.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from phf_ray.measures.clusters import ClusteredMean
from phf_ray.measures.intervals import Interval, bootstrap_difference
from phf_ray.rollouts.against_base.degenerate import KINDS, Degeneration, degenerations
from phf_ray.rollouts.figures import RolloutRow, RoundFigures, round_figures


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean gold of a model minus that of the base, over the same prompts."""

    mean: float
    interval: Interval
    num_prompts: int


@dataclass(frozen=True, slots=True)
class ComparedModel:
    name: str
    figures: RoundFigures
    degenerate: Mapping[Degeneration, float]
    """Share of the answers by kind; empty if none could be drawn."""
    difference: Difference | None
    """None for the base, and with fewer than two prompts on both sides."""
    sound_difference: Difference | None
    """The same among answers that are not degenerate, on both sides."""
    kl_upper_bound: float | None = None
    minutes: float | None = None
    """What it cost to get the model, or, of a best of n, the answers; None: not known."""
    learned: bool = True
    """Whether rounds made the model. Not the base, nor a best of n, which is its choice."""
    rows: Sequence[RolloutRow] = field(repr=False, default=())

    @property
    def degenerate_share(self) -> float:
        return sum(self.degenerate.values())


@dataclass(frozen=True, slots=True)
class CandidateModel:
    """A model before it is compared: its answers, and what is known of it beside them."""

    name: str
    rows: Sequence[RolloutRow]
    kl_upper_bound: float | None = None
    minutes: float | None = None
    learned: bool = True


def compare(
    base: CandidateModel, others: Sequence[CandidateModel], *, is_code: bool, seed: int = 0
) -> list[ComparedModel]:
    """Return the figures of all models, the base first. `is_code`: see `degenerations`."""
    return [_compared(one, base, is_code=is_code, seed=seed) for one in (base, *others)]


def _compared(one: CandidateModel, base: CandidateModel, *, is_code: bool, seed: int) -> ComparedModel:
    kinds, of_base = (_kinds(side.rows, is_code) for side in (one, base))
    drawn = [kind for row, kind in zip(one.rows, kinds, strict=True) if row.completion is not None]
    counts = Counter(drawn)
    is_base = one is base
    return ComparedModel(
        name=one.name,
        figures=round_figures(0, one.rows),
        degenerate={kind: counts[kind] / len(drawn) for kind in KINDS} if drawn else {},
        difference=None if is_base else _difference(_gold(one.rows), _gold(base.rows), seed),
        sound_difference=None
        if is_base
        else _difference(_gold(_sound(one.rows, kinds)), _gold(_sound(base.rows, of_base)), seed),
        kl_upper_bound=one.kl_upper_bound,
        minutes=one.minutes,
        learned=one.learned and not is_base,
        rows=one.rows,
    )


def _kinds(rows: Sequence[RolloutRow], is_code: bool) -> list[Degeneration | None]:
    """Return what is wrong with each answer. Of answers that are not there, nothing is said."""
    found = iter(degenerations([row.completion for row in rows if row.completion is not None], is_code=is_code))
    return [None if row.completion is None else next(found) for row in rows]


def _sound(rows: Sequence[RolloutRow], kinds: Sequence[Degeneration | None]) -> list[RolloutRow]:
    return [row for row, kind in zip(rows, kinds, strict=True) if kind is None]


def _gold(rows: Sequence[RolloutRow]) -> Mapping[Hashable, Sequence[float]]:
    """Return the gold rewards of each prompt."""
    found: dict[Hashable, list[float]] = {}
    for row in rows:
        if row.gold is not None:
            found.setdefault(row.prompt_id, []).append(row.gold)
    return found


def _difference(
    ours: Mapping[Hashable, Sequence[float]], theirs: Mapping[Hashable, Sequence[float]], seed: int
) -> Difference | None:
    found = bootstrap_difference(ours, theirs, paired=True, seed=seed)
    if found is None:
        return None
    return Difference(*found, num_prompts=len(ours.keys() & theirs.keys()))


def mean_of(found: ClusteredMean | None) -> float | None:
    return None if found is None else found.mean
