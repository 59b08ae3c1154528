"""The figures of a model on held-out prompts, and how far its gold reward is from the base's, prompt by prompt.

Higher rewards are better. KL is that of the model from the base, over answers that the model drew. Of a best of n
nobody knows it, and its upper bound stands there.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from phf_ray.measures.clusters import ClusteredMean
from phf_ray.measures.intervals import Interval, bootstrap_difference, mean
from phf_ray.measures.training_seeds import difference_over_seeds
from phf_ray.rollouts.against_base.degenerate import KINDS, Degeneration, degenerations
from phf_ray.rollouts.figures import RolloutRow, RoundFigures, round_figures


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean gold of a model minus that of the base, over the same prompts."""

    mean: float
    interval: Interval
    """Over prompts; of several training seeds over prompts and seeds."""
    num_prompts: int
    over_prompts: Interval | None = None
    """Over prompts alone, of several training seeds."""
    by_seed: tuple[float, ...] = ()
    """The difference of each training seed, if there are several."""


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
    seeds: Mapping[int, "ComparedModel"] = field(repr=False, default_factory=dict)
    """Each training seed by itself, if there are several. The figures are then of the answers of all."""

    @property
    def runs(self) -> "Sequence[ComparedModel]":
        """The model of each training seed."""
        return list(self.seeds.values()) or [self]

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
    seeds: Mapping[int, "CandidateModel"] = field(repr=False, default_factory=dict)


def trained_several_times(name: str, seeds: Mapping[int, CandidateModel]) -> CandidateModel:
    """Return the models of one method, each trained from another seed, as one. Of one seed, its model."""
    runs = list(seeds.values())
    if len(runs) == 1:
        return runs[0]
    minutes = [one.minutes for one in runs if one.minutes is not None]
    prompts: dict[str, list[RolloutRow]] = {}
    for row in (row for one in runs for row in one.rows):
        prompts.setdefault(row.prompt_id, []).append(row)
    return CandidateModel(
        name,
        [row for own in prompts.values() for row in own],
        kl_upper_bound=runs[0].kl_upper_bound,
        minutes=sum(minutes) if len(minutes) == len(runs) else None,
        learned=runs[0].learned,
        seeds=seeds,
    )


def compare(
    base: CandidateModel, others: Sequence[CandidateModel], *, is_code: bool, seed: int = 0
) -> list[ComparedModel]:
    """Return the figures of all models, the base first. `is_code`: see `degenerations`."""
    return [_compared(one, base, is_code=is_code, seed=seed) for one in (base, *others)]


def _compared(one: CandidateModel, base: CandidateModel, *, is_code: bool, seed: int) -> ComparedModel:
    if one.seeds:
        return _compared_over_seeds(one, base, is_code=is_code, seed=seed)
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


def _compared_over_seeds(one: CandidateModel, base: CandidateModel, *, is_code: bool, seed: int) -> ComparedModel:
    """Compare the mean of several training seeds with the base."""
    runs = {number: _compared(run, base, is_code=is_code, seed=seed) for number, run in one.seeds.items()}
    num_drawn = sum(run.figures.num_drawn for run in runs.values())
    # What an answer repeats, and how the text of all answers repeats itself, are questions to one model.
    shares = {
        kind: sum(run.degenerate[kind] * run.figures.num_drawn for run in runs.values() if run.degenerate) / num_drawn
        for kind in (KINDS if num_drawn else ())
    }
    diversities = [run.figures.distinct_2_corpus for run in runs.values()]
    known = [share for share in diversities if share is not None]
    return ComparedModel(
        name=one.name,
        figures=replace(
            round_figures(0, one.rows), distinct_2_corpus=mean(known) if len(known) == len(diversities) else None
        ),
        degenerate=shares,
        difference=_over_seeds([run.rows for run in runs.values()], base.rows),
        sound_difference=_over_seeds(
            [_sound(run.rows, _kinds(run.rows, is_code)) for run in runs.values()],
            _sound(base.rows, _kinds(base.rows, is_code)),
        ),
        kl_upper_bound=one.kl_upper_bound,
        minutes=one.minutes,
        learned=one.learned,
        rows=one.rows,
        seeds=runs,
    )


def _over_seeds(runs: Sequence[Sequence[RolloutRow]], base: Sequence[RolloutRow]) -> Difference | None:
    found = difference_over_seeds([_gold(rows) for rows in runs], _gold(base))
    if found is None:
        return None
    return Difference(found.mean, found.interval, found.num_prompts, found.over_prompts, found.by_seed)


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
