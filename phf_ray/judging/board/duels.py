"""Turns rows into duels: both orders of a pair, and copies of one verdict, are one draw."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from phf_ray.judging.board.rows import NO_REASON, JudgedRow, is_lack_of_answer


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to one prompt and what one annotator says of them, over all rows with this content."""

    prompt: str
    opponent: str
    """Model that wrote answer 1."""
    model: str
    """Model that wrote answer 2."""
    output_1: str
    output_2: str
    annotator: str | None
    preference: float | None
    """Mean of the rows that were judged; None if none was."""
    reason: str | None
    """Why there is no preference: the most frequent error."""
    price: float | None
    """Of all rows; None if none has one."""
    human_preference: float | None
    num_rows: int

    @property
    def key(self) -> tuple[str, ...]:
        """What no two duels have in common."""
        return (self.model, self.opponent, self.prompt, self.annotator or "", self.output_1, self.output_2)

    @property
    def lacks_answer(self) -> bool:
        """Whether no judge saw it, because there is no answer of the one or the other."""
        return self.preference is None and is_lack_of_answer(self.reason)

    @property
    def share(self) -> float:
        """Share of the win that goes to answer 2, 0 to 1, of a duel that was judged."""
        assert self.preference is not None, self.reason
        return self.preference - 1

    @property
    def longer_by(self) -> int:
        """Characters by which answer 2 is longer."""
        return len(self.output_2) - len(self.output_1)

    def mirrored(self) -> "Duel":
        """Return the same duel with the two models in each other's place."""
        preference, human = (None if one is None else 3 - one for one in (self.preference, self.human_preference))
        return replace(
            self,
            opponent=self.model,
            model=self.opponent,
            output_1=self.output_2,
            output_2=self.output_1,
            preference=preference,
            human_preference=human,
        )


def duels_of(rows: Iterable[JudgedRow]) -> list[Duel]:
    """Return the duels, sorted by their keys. The models keep their places."""
    groups: defaultdict[tuple[str, ...], list[JudgedRow]] = defaultdict(list)
    for row in rows:
        key = (row.generator_2, row.generator_1, row.prompt, row.annotator or "", row.output_1, row.output_2)
        groups[key].append(row)
    return [_duel(groups[key]) for key in sorted(groups)]


def battles_of(duels: Iterable[Duel]) -> list[Duel]:
    """Return each pair of answers once, also if it was judged with the models in either place.

    The place of the models is that of the pair's first duel. A model against itself is left out.
    """
    groups: defaultdict[tuple[str, ...], list[Duel]] = defaultdict(list)
    for duel in duels:
        if duel.model != duel.opponent:
            groups[min(duel.key, duel.mirrored().key)].append(duel)
    return [_merged(groups[key]) for key in sorted(groups)]


def _duel(rows: Sequence[JudgedRow]) -> Duel:
    first = rows[0]
    errors = Counter(row.error or NO_REASON for row in rows if row.preference is None)
    preference = mean_of(row.preference for row in rows)
    return Duel(
        prompt=first.prompt,
        opponent=first.generator_1,
        model=first.generator_2,
        output_1=first.output_1,
        output_2=first.output_2,
        annotator=first.annotator,
        preference=preference,
        reason=None if preference is not None else min(errors, key=lambda name: (-errors[name], name)),
        price=sum_of(row.price for row in rows),
        human_preference=mean_of(row.human_preference for row in rows),
        num_rows=len(rows),
    )


def _merged(duels: Sequence[Duel]) -> Duel:
    """Merge duels with one key: at most two, one of each place."""
    if len(duels) == 1:
        return duels[0]
    first, second = duels[0], duels[1].mirrored()
    preference = mean_of(one.preference for one in (first, second))
    return replace(
        first,
        preference=preference,
        reason=None if preference is not None else first.reason,
        price=sum_of(one.price for one in duels),
        human_preference=mean_of(one.human_preference for one in (first, second)),
        num_rows=first.num_rows + second.num_rows,
    )


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of those that are not None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def sum_of(values: Iterable[float | None]) -> float | None:
    """Return the sum of those that are not None; None if there is none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) if known else None
