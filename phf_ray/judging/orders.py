"""From verdicts on answers as they were shown to judgements on the pair as its row has it."""

from dataclasses import replace
from typing import Literal

from phf_ray.judging.annotators import Verdict
from phf_ray.judging.pairs import Judgement, Preference
from phf_ray.judging.question import Failure


def unswapped(verdict: Verdict, *, order: Literal["12", "21"]) -> Verdict:
    """Turn a verdict on the answers as shown into one on the pair: 3 - preference if they were swapped."""
    if order == "12" or isinstance(verdict.preference, Failure):
        return verdict
    return replace(verdict, preference=3 - verdict.preference)


def judged(annotator: str, verdict: Verdict, *, order: Literal["12", "21"]) -> Judgement:
    return Judgement(
        annotator,
        _number(verdict),
        error=_error(verdict),
        order=order,
        raw=verdict.raw,
        price=verdict.price,
        seconds=verdict.seconds,
    )


def in_both_orders(
    annotator: str, as_12: Verdict, as_21: Verdict, *, combine: Literal["consistent", "average"]
) -> Judgement:
    """Join a pair's verdicts from both orders. If either is missing, there is no judgement."""
    numbers = (_number(as_12), _number(as_21))
    errors = [error for error in map(_error, (as_12, as_21)) if error is not None]
    raws = [verdict.raw for verdict in (as_12, as_21) if verdict.raw is not None]
    return Judgement(
        annotator,
        None if errors else _joined(*numbers, combine=combine),
        error=errors[0] if errors else None,
        order="both",
        raw="\n\n".join(raws) if raws else None,
        price=_sum(as_12.price, as_21.price),
        seconds=_sum(as_12.seconds, as_21.seconds),
        in_both_orders=numbers,
    )


def _joined(
    first: Preference | None, second: Preference | None, *, combine: Literal["consistent", "average"]
) -> Preference:
    assert first is not None
    assert second is not None
    is_consistent = (first > 1.5) == (second > 1.5) and (first < 1.5) == (second < 1.5)
    return (first + second) / 2 if is_consistent or combine == "average" else 1.5


def _number(verdict: Verdict) -> Preference | None:
    return None if isinstance(verdict.preference, Failure) else verdict.preference


def _error(verdict: Verdict) -> str | None:
    return verdict.preference.reason if isinstance(verdict.preference, Failure) else None


def _sum(first: float | None, second: float | None) -> float | None:
    known = [one for one in (first, second) if one is not None]
    return sum(known) if known else None
