"""AlpacaFarm's steps from pairs to judgements, in its order.

    unique pairs -> annotator -> known before? -> noise -> identical answers -> order -> batches -> judge -> unswap

Whatever is drawn comes from a hash of the seed and the row (`draws.py`), so no judgement depends on the order of rows,
on how they are dealt out, or on the process. Where a prompt shows several pairs, which pairs stand together must not
depend on that either: `group_of` names a row's group from its hash and the number of all rows, and rows of one group
must come to `judge_pairs` in one call. In it they are sorted by their hashes and cut.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phf_ray.config import AnnotatorConfig
from phf_ray.errors import ConfigError
from phf_ray.judging.annotators import Annotator, Verdict
from phf_ray.judging.draws import draw_fraction, draw_index
from phf_ray.judging.noise import check_noise, noisy_preference
from phf_ray.judging.orders import in_both_orders, judged, unswapped
from phf_ray.judging.pairs import Judgement, Pair
from phf_ray.judging.pool import Pool
from phf_ray.judging.question import Asker

_BATCHES_PER_GROUP = 32
"""The last prompt of a group is not full, so at most about one place in 64 is filled for nothing."""

ShownOrder = Literal["12", "21"]
Known = Callable[[str, Pair], Judgement | None]
"""(annotator, pair) -> what is known from before."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is settled about a pair before anyone is asked."""

    annotator: AnnotatorConfig
    judgement: Judgement | None
    """Given without a judge: known before, noise, or identical answers."""
    orders: tuple[ShownOrder, ...]
    """How the judge is to see it; twice for `order: both`."""


class Steps:
    """The steps with one pool, seed and share of noise. Cheap: builds no judge."""

    def __init__(self, pool: Pool, *, seed: int = 0, p_label_flip: float | None = None):
        """Raises ConfigError if the share of noise can't be one."""
        self.pool = pool
        self.seed = seed
        self.p_label_flip = check_noise(p_label_flip)
        self._annotators = {annotator.name: annotator for annotator in pool.config.annotators}
        # The order of a file must not matter either.
        self._names = sorted(self._annotators)

    def annotator_of(self, pair: Pair) -> AnnotatorConfig:
        """Return who judges this instruction: the same for all of its pairs."""
        if len(self._names) == 1:
            return self._annotators[self._names[0]]
        index = draw_index(len(self._names), "annotator", self.seed, pair.instruction, pair.input)
        return self._annotators[self._names[index]]

    def decide(self, pair: Pair, known: Known | None = None) -> Decision:
        annotator = self.annotator_of(pair)
        found = known(annotator.name, pair) if known is not None else None
        drawn = noisy_preference(pair, p_label_flip=self.p_label_flip, seed=self.seed)
        if drawn is not None:
            # Noise overrides what a judge once said.
            found = Judgement(annotator.name, drawn, source="noise")
        if pair.output_1 == pair.output_2:
            found = Judgement(annotator.name, 1.5, source="identical")
        return Decision(annotator, found, self._orders(annotator, pair))

    def _orders(self, annotator: AnnotatorConfig, pair: Pair) -> tuple[ShownOrder, ...]:
        if annotator.order == "both":
            return ("12", "21")
        if annotator.order == "first":
            return ("12",)
        return ("21",) if draw_fraction("order", self.seed + annotator.seed, pair.key) < 0.5 else ("12",)

    def group_of(self, pair: Pair, *, num_pairs: int) -> str:
        """Return the group whose pairs must come to `judge_pairs` in one call.

        num_pairs: of all unique pairs of the job. Where prompts show one pair, each pair is a group.
        """
        return self.group_among(self.annotator_of(pair), pair, num_pairs=num_pairs)

    def group_among(self, annotator: AnnotatorConfig, pair: Pair, *, num_pairs: int) -> str:
        """Like `group_of`, for the annotator of the pair."""
        if annotator.batch_size == 1:
            # Each pair has its prompt for itself.
            return f"{annotator.name}/{pair.key}"
        num_groups = max(1, num_pairs // (len(self._names) * annotator.batch_size * _BATCHES_PER_GROUP))
        number = draw_index(num_groups, "group", self.seed, pair.key)
        return f"{annotator.name}/{'with' if pair.input else 'without'}/{number}"


@dataclass(frozen=True, slots=True)
class _Showing:
    """A pair, as a judge is to see it."""

    index: int
    pair: Pair
    annotator: AnnotatorConfig
    order: ShownOrder

    @property
    def shown(self) -> Pair:
        return self.pair if self.order == "12" else self.pair.swapped()


@dataclass(frozen=True, slots=True)
class JudgingOptions:
    """What a call of `judge_pairs` may be given besides the pairs."""

    asker: Asker | None = None
    """Asks the judges behind URLs."""
    known: Known | None = None
    num_pairs: int | None = None
    """Of the whole job, if the pairs are some groups of it."""
    in_flight: int = 64
    """Prompts that are asked at once."""
    report: Callable[[int, Judgement], Any] = lambda _index, _judgement: None
    """Called with the index of a pair as soon as it is judged; what it raises ends the call."""

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise ConfigError(f"in_flight {self.in_flight}: nothing would ever be asked; give 1 or more")


NO_OPTIONS = JudgingOptions()


async def judge_pairs(
    steps: Steps,
    annotators: Mapping[str, Annotator],
    pairs: Sequence[Pair],
    options: JudgingOptions = NO_OPTIONS,
) -> list[Judgement]:
    """Return one judgement per pair, in the same order. The pairs must be unique.

    annotators: `steps.pool.build(seed=steps.seed)`.

    Raises ConfigError if a judge behind a URL is to be asked without an asker, and what the asker raises.
    """
    num_pairs = len(pairs) if options.num_pairs is None else options.num_pairs
    judgements: dict[int, Judgement] = {}
    showings: list[_Showing] = []

    def settle(index: int, judgement: Judgement) -> None:
        judgements[index] = judgement
        options.report(index, judgement)

    for index, pair in enumerate(pairs):
        decision = steps.decide(pair, options.known)
        if decision.judgement is not None:
            settle(index, decision.judgement)
        else:
            showings += [_Showing(index, pair, decision.annotator, order) for order in decision.orders]
    batches = list(_batches(steps, annotators, showings, num_pairs=num_pairs))
    _check_asker(batches, options.asker)
    collected = _Collected(settle)

    async def work(waiting: Iterator[tuple[Annotator, list[_Showing]]]) -> None:
        for annotator, batch in waiting:
            verdicts = await annotator.verdicts([showing.shown for showing in batch], options.asker)
            for showing, verdict in zip(batch, verdicts, strict=True):
                collected.add(showing, verdict)

    waiting = iter(batches)
    await _all_or_first_error([work(waiting) for _ in range(min(options.in_flight, len(batches)))])
    return [judgements[index] for index in range(len(pairs))]


class _Collected:
    """Gathers the verdicts of a pair, one or, shown in both orders, two, and settles it when it has all."""

    def __init__(self, settle: Callable[[int, Judgement], None]):
        self._settle = settle
        self._first: dict[int, tuple[ShownOrder, Verdict]] = {}

    def add(self, showing: _Showing, verdict: Verdict) -> None:
        annotator = showing.annotator
        verdict = unswapped(verdict, order=showing.order)
        if annotator.order != "both":
            self._settle(showing.index, judged(annotator.name, verdict, order=showing.order))
            return
        earlier = self._first.pop(showing.index, None)
        if earlier is None:
            self._first[showing.index] = (showing.order, verdict)
            return
        as_12, as_21 = (earlier[1], verdict) if showing.order == "21" else (verdict, earlier[1])
        self._settle(showing.index, in_both_orders(annotator.name, as_12, as_21, combine=annotator.combine))


def _batches(
    steps: Steps, annotators: Mapping[str, Annotator], showings: Sequence[_Showing], *, num_pairs: int
) -> Iterator[tuple[Annotator, list[_Showing]]]:
    """Cut what is shown into batches. Both orders of a pair never stand in one prompt."""
    groups: dict[tuple[str, str, str], list[_Showing]] = defaultdict(list)
    for showing in showings:
        config = showing.annotator
        together = showing.order if config.order == "both" else ""
        group = "" if config.batch_size == 1 else steps.group_among(config, showing.pair, num_pairs=num_pairs)
        groups[config.name, group, together].append(showing)
    for (name, _, _), members in sorted(groups.items()):
        annotator, members = annotators[name], sorted(members, key=lambda showing: showing.pair.key)
        size = annotator.batch_size
        yield from ((annotator, members[start : start + size]) for start in range(0, len(members), size))


def _check_asker(batches: Sequence[tuple[Annotator, list[_Showing]]], asker: Asker | None) -> None:
    asked = sorted({annotator.name for annotator, _ in batches if not annotator.config.judge.is_here})
    if asked and asker is None:
        raise ConfigError(
            f"{', '.join(asked)}: judges behind URLs need an asker; pass asker=..., or use a pool without"
        )


async def _all_or_first_error(work: Sequence[Any]) -> None:
    """Wait for all; after the first error, cancel the others and raise it as it is."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
