"""Pairs of lines of a scored corpus, a judge of them who errs, and how often others agree with the truth.

Nothing here is random: hashes of the documents' ids and of the lines' numbers decide which lines meet and when the
judge errs, so the same corpus gives the same pairs.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Place = tuple[str, int]
"""Id of the document, and number of the line in it from 0."""


@dataclass(frozen=True, slots=True)
class JudgedLine:
    place: Place
    text: str
    violations: int


@dataclass(frozen=True, slots=True)
class LinePair:
    first: JudgedLine
    second: JudgedLine

    @property
    def better(self) -> int:
        """The line with fewer violations: 1 or 2."""
        return 1 if self.first.violations < self.second.violations else 2

    def said_better(self, error_rate: float) -> int:
        """What a judge says who errs at this rate."""
        place = (*self.first.place, *self.second.place)
        return 3 - self.better if _share(place, b"phf-judge") < error_rate else self.better


@dataclass(frozen=True, slots=True)
class DrawnPairs:
    pairs: tuple[LinePair, ...]
    num_ties: int
    """Pairs left out because both lines have as many violations."""
    num_equal: int
    """Pairs left out because both lines are the same text, whose violations come from the lines around them."""


def read_lines(corpus: Path) -> Iterator[JudgedLine]:
    """Yield the lines that can be judged. A blank line is no answer, and a line without a score has no violations."""
    from phf_ray.corpus.reader import read_corpus

    for document in read_corpus(str(corpus)):
        for number, (text, score) in enumerate(zip(document.texts, document.scores, strict=True)):
            if score is not None and text.strip():
                # The score is violations per character.
                yield JudgedLine((document.id, number), text, round(score * len(text)))


def draw_pairs(lines: Iterable[JudgedLine], *, at_most: int, held_out: bool, held_out_fraction: float) -> DrawnPairs:
    """Draw pairs of lines of the documents that are held out, or of the others. No line is in two pairs."""
    from phf_ray.blocks.held_out import is_held_out

    ours = [line for line in lines if is_held_out(line.place[0], held_out_fraction) == held_out]
    ours.sort(key=lambda line: _share(line.place, b"phf-pairs"))
    pairs: list[LinePair] = []
    num_ties = num_equal = 0
    for first, second in zip(ours[0::2], ours[1::2], strict=False):
        if len(pairs) == at_most:
            break
        if first.violations == second.violations:
            num_ties += 1
        elif first.text == second.text:
            num_equal += 1
        else:
            pairs.append(LinePair(first, second))
    return DrawnPairs(tuple(pairs), num_ties, num_equal)


def accuracies(pairs: Sequence[LinePair], scores: Mapping[Place, float | None], *, error_rate: float) -> dict[str, Any]:
    """Return how often learned scores, and the rule that the shorter line is better, agree with the truth and with
    the judge. Lines that the scores call equal are wrong; lines of equal length count half for the rule.
    """
    known = [pair for pair in pairs if scores[pair.first.place] is not None and scores[pair.second.place] is not None]

    def by_reward(pair: LinePair, better: int) -> float:
        first, second = scores[pair.first.place], scores[pair.second.place]
        assert first is not None
        assert second is not None
        return float(first < second if better == 1 else second < first)

    def by_length(pair: LinePair, better: int) -> float:
        longer = len(pair.second.text) - len(pair.first.text)
        return 0.5 if longer == 0 else float((longer > 0) == (better == 1))

    return {
        "num_pairs": len(known),
        "num_unscored": len(pairs) - len(known),
        "reward": _agreement(known, by_reward, error_rate=error_rate),
        "shorter_line": _agreement(known, by_length, error_rate=error_rate),
        # Where the rule is wrong, a reward model that had learned lengths alone would be wrong too.
        "reward_where_longer_is_better": _agreement(
            [pair for pair in known if by_length(pair, pair.better) == 0], by_reward, error_rate=error_rate
        ),
    }


def _agreement(
    pairs: Sequence[LinePair], judge: Callable[[LinePair, int], float], *, error_rate: float
) -> dict[str, Any]:
    """Return accuracies with intervals over documents: violations of one kind come together in a few of them."""
    from phf_ray.measures.intervals import bootstrap_mean, mean

    found: dict[str, Any] = {"num_pairs": len(pairs)}
    for name, label in (("truth", lambda pair: pair.better), ("judge", lambda pair: pair.said_better(error_rate))):
        groups = defaultdict(list)
        for pair in pairs:
            worse = pair.second if pair.better == 1 else pair.first
            groups[worse.place[0]].append(judge(pair, label(pair)))
        values = [value for group in groups.values() for value in group]
        interval = bootstrap_mean(list(groups.values()))
        found[name] = mean(values) if values else None
        found[f"{name}_ci"] = None if interval is None else [interval.low, interval.high]
    return found


def _share(key: tuple[str | int, ...], purpose: bytes) -> float:
    """Return a number from 0 to 1 that depends on the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big") / 2**64
