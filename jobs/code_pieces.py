"""Pieces of code of a scored corpus, pairs of which one has fewer violations, and what samples of code are like.

Nothing here is random: hashes of the pieces decide which meet.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.measures.intervals import bootstrap_mean, mean
from phf_ray.measures.ngrams import ngrams_of

NUM_LINES = 6
_CHARACTERS = range(60, 300)
"""Lengths of a piece: two of them and their markers fit into a row of the demo's model."""


@dataclass(frozen=True, slots=True)
class CodePiece:
    text: str
    score: float
    """Violations per character."""


@dataclass(frozen=True, slots=True)
class CodePair:
    better: CodePiece
    worse: CodePiece


def pieces_of(text: str) -> Iterator[str]:
    """Yield pieces of a file, each begun by a statement that is not indented: a piece is judged by itself."""
    lines = text.splitlines(keepends=True)
    begin = 0
    while begin < len(lines):
        first = lines[begin]
        if not first.strip() or first[0].isspace() or first[0] in ")]}\"'#":
            begin += 1
            continue
        piece = "".join(lines[begin : begin + NUM_LINES]).rstrip() + "\n"
        if len(piece) in _CHARACTERS:
            yield piece
        begin += NUM_LINES


def draw_piece_pairs(pieces: Iterable[CodePiece], *, at_most: int) -> list[CodePair]:
    """Draw pairs with unequal scores; no text is in two pairs."""
    ordered = sorted({piece.text: piece for piece in pieces}.values(), key=lambda one: _share(one.text))
    pairs: list[CodePair] = []
    for one, other in zip(ordered[0::2], ordered[1::2], strict=False):
        if len(pairs) == at_most:
            break
        if one.score != other.score:
            pairs.append(CodePair(*sorted((one, other), key=lambda piece: piece.score)))
    return pairs


def whole_lines(sample: str, *, is_ended: bool) -> str:
    """Return a sample as it is judged: without the line that the limit of tokens cut."""
    text = sample if is_ended else sample[: sample.rfind("\n") + 1]
    return text.rstrip() + "\n" if text.strip() else ""


def figures_of(texts: Sequence[str], scores: Sequence[float | None]) -> dict[str, Any]:
    """Return what samples are like: violations with their interval, also of samples with code alone, and their form."""
    known = [score for score in scores if score is not None]
    of_code = [score for text, score in zip(texts, scores, strict=True) if score is not None and has_code(text)]
    words = [text.split() for text in texts]
    pairs = [pair for one in words for pair in ngrams_of(one, 2)]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return {
        "num_samples": len(texts),
        "num_unscored": len(texts) - len(known),
        "score": mean(known) if known else None,
        "score_ci": _interval(known),
        "code_score": mean(of_code) if of_code else None,
        "code_score_ci": _interval(of_code),
        "length": mean([float(len(text)) for text in texts]),
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else 0.0,
        "empty": sum(not text for text in texts) / len(texts),
        "comments": sum(line.lstrip().startswith("#") for line in lines) / len(lines) if lines else 0.0,
    }


def has_code(text: str) -> bool:
    """Whether a line is neither blank nor a comment."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())


def why_not_shown(good: Mapping[str, Any], bad: Mapping[str, Any]) -> Iterator[str]:
    """Yield why good and bad samples do not show that the marker works."""
    for key, what in (("score", "all samples"), ("code_score", "samples with code")):
        if good[f"{key}_ci"] is None or bad[f"{key}_ci"] is None:
            yield f"{what}: too few scored samples"
        elif good[f"{key}_ci"][1] >= bad[f"{key}_ci"][0]:
            yield f"{what}: the intervals of violations after the good and the bad marker overlap"
    for key in ("length", "distinct_2"):
        if not bad[key] / 2 <= good[key] <= bad[key] * 2:
            yield f"{key} after the good marker is {good[key]:.3g}, not half to twice the {bad[key]:.3g} after the bad"
    if good["empty"] > bad["empty"] + 0.1:
        yield f"{good['empty']:.0%} of the samples after the good marker are empty, {bad['empty']:.0%} after the bad"


def _interval(values: Sequence[float]) -> list[float] | None:
    interval = bootstrap_mean([[value] for value in values])
    return None if interval is None else [interval.low, interval.high]


def _share(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8, person=b"phf-pieces").digest()
