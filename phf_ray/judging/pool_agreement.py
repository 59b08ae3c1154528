"""How far each annotator of a pool agrees with the scorer that it is made of, and with labels of people, before noise.

Every annotator judges all pairs, not only those that a pool would give it. A judge whose answers may cost something is
asked only if that is wanted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from phf_ray.config import AnnotatorConfig, JudgeConfig
from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.board.rows import preference_of
from phf_ray.judging.judges.rules import RuleJudge
from phf_ray.judging.label_agreement import LabelAgreement, agreement_with_labels
from phf_ray.judging.pairs import Judgement, Pair, pair_of
from phf_ray.judging.pool import Pool
from phf_ray.judging.question import Asker, Failure
from phf_ray.judging.steps import JudgingOptions, Steps, judge_pairs
from phf_ray.judging.waiting import wait_for
from phf_ray.measures.preferences import DRAW

BASELINES = ("longer", "constant", "random")
"""Rules that a judge must beat. The constant one takes the first answer of the row."""

Preferences = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class AnnotatorAgreement:
    name: str
    with_scorer: LabelAgreement | None = None
    """None: it has no scorer, or was not asked."""
    with_people: LabelAgreement | None = None
    """None: there are no labels, or it was not asked."""
    was_asked: bool = True
    failures: Mapping[str, int] = field(default_factory=dict)
    """Pairs without a judgement, by kind of reason."""
    example: str | None = None
    """The first reason."""


@dataclass(frozen=True, slots=True)
class PoolAgreement:
    annotators: Sequence[AnnotatorAgreement]
    baselines: Sequence[AnnotatorAgreement]
    """Rules against people; empty without labels."""
    num_pairs: int
    num_prompts: int
    num_labels: int
    """Pairs of which people call one answer better."""

    def to_json(self) -> dict[str, Any]:
        return {"format": 1, **asdict(self)}

    def lines(self) -> list[str]:
        """Return what a person reads."""
        labels = f"; people prefer one answer in {self.num_labels:,}" if self.num_labels else ""
        found = [f"{self.num_pairs:,} pairs of {self.num_prompts:,} prompts{labels}; 95% intervals resample prompts"]
        for one in self.annotators:
            if not one.was_asked:
                found.append(f"{one.name}: not asked, because its answers may cost something; --ask-judges asks it")
                continue
            if one.with_scorer is not None:
                found.append(f"{one.name} and its scorer: {_shown(one.with_scorer, scorer=True)}")
            if one.with_people is not None:
                found.append(f"{one.name} and people: {_shown(one.with_people)}")
            if one.with_scorer is None and one.with_people is None:
                found.append(f"{one.name}: has no scorer, and no row has a `preference` of people to compare with")
            if one.failures:
                kinds = ", ".join(f"{count:,} {kind}" for kind, count in one.failures.items())
                found.append(f"{one.name} without a judgement: {kinds}; the first: {one.example}")
        found += [f"rule {one.name} and people: {_shown(one.with_people)}" for one in self.baselines if one.with_people]
        return found


def pool_agreement(
    pool: Pool, rows: Iterable[Mapping[str, Any]], *, seed: int = 0, asker: Asker | None = None, asks: bool = False
) -> PoolAgreement:
    """Measure the agreement of a pool on rows of two answers, whose `human_preference`, else `preference`, is people's.

    asker: for judges behind URLs. asks: whether chats and completions are asked, too. A pair that comes several times
    has the mean of its labels. Raises ConfigError if there is nothing to compare with, and DataError for a row that
    can't be judged.
    """
    labels_of: defaultdict[Pair, list[float]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        known = labels_of[pair_of(row, number=number)]
        name = "preference" if row.get("human_preference") is None else "human_preference"
        if (label := preference_of(row, name, f"row {number}")) is not None:
            known.append(label)
    if not labels_of:
        raise DataError("there are no pairs to judge; give rows with instruction, output_1 and output_2")
    pairs = list(labels_of)
    labels = [_mean(known) for known in labels_of.values()]
    num_labels = sum(label not in (None, DRAW) for label in labels)
    if not num_labels and all(one.judge.biased_scorer is None for one in pool.config.annotators):
        raise ConfigError(
            f"there is nothing to agree with: none of {', '.join(pool.names)} is a biased_scorer, and no row has a "
            "`preference` of people for one answer; name such a pool, or give rows with labels"
        )
    prompts = [pair.whole_instruction for pair in pairs]
    measured = _Measured(pool, pairs, prompts, labels if num_labels else None, seed=seed, asker=asker)
    return PoolAgreement(
        annotators=[
            measured.agreement(one)
            if asks or one.judge.endpoint is None
            else AnnotatorAgreement(one.name, was_asked=False)
            for one in pool.config.annotators
        ],
        baselines=[measured.baseline(rule) for rule in BASELINES] if num_labels else [],
        num_pairs=len(pairs),
        num_prompts=len({*prompts}),
        num_labels=num_labels,
    )


def agreement_with_scorer(pool: Pool, pairs: Sequence[Pair], *, seed: int = 0) -> Mapping[str, float]:
    """Return, for each biased scorer of a pool, on what share of the pairs it prefers what its scorer prefers.

    Every annotator judges all pairs, without noise. Pairs that the scorer can't tell apart or can't score are left out.
    Raises ConfigError if the pool has no biased scorer, or a scorer tells no pair apart.
    """
    biased = [one for one in pool.config.annotators if one.judge.biased_scorer is not None]
    if not biased:
        raise ConfigError(f"none of {', '.join(pool.names)} is a biased_scorer; only those have a scorer to agree with")
    unique = list(dict.fromkeys(pairs))
    measured = _Measured(pool, unique, [pair.whole_instruction for pair in unique], None, seed=seed, asker=None)
    shares: dict[str, float] = {}
    for one in biased:
        found = measured.agreement(one).with_scorer
        if found is None or found.accuracy is None:
            raise ConfigError(f"{one.name}: its scorer prefers neither answer in any of {len(pairs)} pairs")
        shares[one.name] = found.accuracy
    return shares


class _Measured:
    """What annotators say of all pairs, compared with what their scorers and people say."""

    def __init__(
        self,
        pool: Pool,
        pairs: Sequence[Pair],
        prompts: Sequence[str],
        labels: Preferences | None,
        *,
        seed: int,
        asker: Asker | None,
    ):
        self._pool, self._pairs, self._prompts, self._labels = pool, pairs, prompts, labels
        self._seed, self._asker = seed, asker
        self._of_scorers: dict[str, Preferences] = {}

    def agreement(self, annotator: AnnotatorConfig) -> AnnotatorAgreement:
        judged = self._judgements(annotator)
        said = [one.preference for one in judged]
        biased = annotator.judge.biased_scorer
        errors = [one.error for one in judged if one.error is not None]
        return AnnotatorAgreement(
            annotator.name,
            with_scorer=None if biased is None else self._compared(said, self._by_scorer(annotator)),
            with_people=None if self._labels is None else self._compared(said, self._labels),
            failures=dict(Counter(Failure(error).kind for error in errors)),
            example=errors[0] if errors else None,
        )

    def baseline(self, rule: Any) -> AnnotatorAgreement:
        said = RuleJudge(rule, seed=self._seed).prefer(self._pairs)
        assert self._labels is not None
        return AnnotatorAgreement(rule, with_people=self._compared(said, self._labels))

    def _compared(self, said: Preferences, wanted: Preferences) -> LabelAgreement:
        return agreement_with_labels(said, wanted, clusters=self._prompts, seed=self._seed)

    def _by_scorer(self, annotator: AnnotatorConfig) -> Preferences:
        """What the scorer alone prefers; each scorer judges once."""
        assert annotator.judge.biased_scorer is not None
        plain = JudgeConfig(scorer=annotator.judge.biased_scorer.scorer)
        name = plain.model_dump_json()
        if name not in self._of_scorers:
            judged = self._judgements(AnnotatorConfig(name=annotator.name, judge=plain))
            self._of_scorers[name] = [one.preference for one in judged]
        return self._of_scorers[name]

    def _judgements(self, annotator: AnnotatorConfig) -> list[Judgement]:
        pool = replace(self._pool, config=self._pool.config.model_copy(update={"annotators": (annotator,)}))
        steps = Steps(pool, seed=self._seed)
        options = JudgingOptions(asker=self._asker, in_flight=pool.in_flight)
        return wait_for(self._judged(steps, options))

    async def _judged(self, steps: Steps, options: JudgingOptions) -> list[Judgement]:
        built = steps.pool.build(seed=self._seed)
        try:
            return await judge_pairs(steps, built, self._pairs, options)
        finally:
            # Connections belong to this event loop, which ends here.
            if self._asker is not None and hasattr(self._asker, "close"):
                await self._asker.close()


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _shown(found: LabelAgreement, *, scorer: bool = False) -> str:
    if found.accuracy is None:
        return "unknown; no pair has a verdict of both"
    between = found.accuracy_interval
    interval = "" if between is None else f" ({between.low:.1%} to {between.high:.1%})"
    text = f"{found.accuracy:.1%}{interval} of {found.num_judged:,} pairs"
    if not scorer and found.kappa is not None and found.kappa_interval is not None:
        text += f", kappa {found.kappa:.2f} ({found.kappa_interval.low:.2f} to {found.kappa_interval.high:.2f})"
    if found.num_ties:
        text += f", {found.num_ties:,} ties"
    return text
