"""Counts what could not be judged, and finds judges that always say the same."""

from collections import Counter
from collections.abc import Iterable

from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.judging.pairs import Judgement, Preference
from phf_ray.judging.question import Failure

MAX_FAILED_FRACTION = 0.1
_NEVER_TOO_MANY = 10
"""This many failures never stop a call, if they are at most half of all rows."""
_SAME, _FEWEST = 0.98, 20
"""A judge always says the same if this share of at least so many verdicts is alike."""


def check_fraction(max_failed_fraction: float) -> float:
    """Return the share. Raises ConfigError if it is none: NaN would never stop anything."""
    if not 0 <= max_failed_fraction <= 1:
        raise ConfigError(f"max_failed_fraction {max_failed_fraction:g} is no share of the rows; give 0 to 1")
    return max_failed_fraction


class FailureLimit:
    """Stops a call in which too many rows get no judgement."""

    def __init__(self, max_failed_fraction: float, *, num_rows: int):
        self._fraction = max_failed_fraction
        self._num_rows = num_rows
        self._example = ""
        self.counts: Counter[tuple[str, str]] = Counter()
        """(annotator, kind of the reason) -> rows."""

    def add(self, judgement: Judgement) -> None:
        """Count a judgement. Raises IncompleteError as soon as too many have none."""
        if judgement.error is None:
            return
        self.counts[judgement.annotator, Failure(judgement.error).kind] += 1
        self._example = self._example or judgement.error
        check_failures(self.counts, self._fraction, num_rows=self._num_rows, example=self._example)

    def summary(self) -> str:
        return failures_text(self.counts)


def check_failures(
    counts: Counter[tuple[str, str]], max_failed_fraction: float, *, num_rows: int, example: str
) -> None:
    """Raise IncompleteError if too many rows have no judgement. `example`: the first reason."""
    most = max(max_failed_fraction * num_rows, min(_NEVER_TOO_MANY, num_rows / 2))
    if counts.total() > most:
        raise IncompleteError(
            f"{counts.total()} of {num_rows} rows have no judgement, more than max_failed_fraction "
            f"{max_failed_fraction:g}: {failures_text(counts)}; the first: {example}; raise "
            "max_failed_fraction, and the same call goes on; or mend the prompt or the parser and begin anew: answers "
            "to questions that stay the same are kept"
        )


def failures_text(counts: Counter[tuple[str, str]]) -> str:
    """Return rows without a judgement, by annotator and reason; empty if there are none."""
    return "; ".join(f"{name}: {count} {kind}" for (name, kind), count in sorted(counts.items()))


Verdicts = dict[str, Counter[str]]
"""Annotator -> what its judge said of the answers as they stood before it -> how often."""


def count_verdicts(judgements: Iterable[Judgement], into: Verdicts) -> Verdicts:
    for judgement in judgements:
        into.setdefault(judgement.annotator, Counter()).update(_shown(judgement))
    return into


def always_the_same(judgements: Iterable[Judgement]) -> list[str]:
    """Return a warning for every annotator whose judge says the same of (nearly) all pairs, as they were shown."""
    return same_verdicts(count_verdicts(judgements, {}))


def same_verdicts(verdicts: Verdicts) -> list[str]:
    """Return a warning for every annotator whose verdicts are (nearly) all alike."""
    warnings = []
    for name, counts in sorted(verdicts.items()):
        (verdict, most), total = counts.most_common(1)[0] if counts else ("", 0), counts.total()
        if total >= _FEWEST and most >= _SAME * total:
            warnings.append(
                f"annotator {name} says {verdict!r} of {most} of {total} pairs ({100 * most / total:.1f}%), whichever "
                "way they are shown; it does not judge the answers"
            )
    return warnings


def _shown(judgement: Judgement) -> list[str]:
    """What the judge said of the answers as they stood before it; nothing if it was not asked."""
    if judgement.source != "judge":
        return []
    said: list[tuple[Preference | None, bool]] = [(judgement.preference, judgement.order == "21")]
    if judgement.in_both_orders is not None:
        said = list(zip(judgement.in_both_orders, (False, True), strict=True))
    return [_named(3 - number if is_swapped else number) for number, is_swapped in said if number is not None]


def _named(preference: Preference) -> str:
    return "the first is better" if preference < 1.5 else "the second is better" if preference > 1.5 else "a tie"
