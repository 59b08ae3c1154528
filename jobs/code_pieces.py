"""Pieces of code of a scored corpus, pairs of which one has violations and the other none, and what samples are like.

Nothing here is random: hashes of the pieces decide which meet.
"""

import ast
import hashlib
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.measures.intervals import bootstrap_mean, mean
from phf_ray.measures.ngrams import ngrams_of

_CHARACTERS = range(30, 101)
"""Lengths of a piece. In one or two lines a violation is much; two pieces and their markers fit into a row."""
CLEARLY_WORSE = 0.015
"""Violations per character of the worse piece: one in 67 or more. The better has none."""


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
    """Yield runs of whole statements, moved to the left margin: a piece is judged by itself.

    A statement that is longer than a piece gives the pieces inside it. A text that Python can't parse gives none.
    """
    tree = parsed(text)
    if tree is not None:
        yield from _pieces_of_block(tree.body, lines_of(text))


def lines_of(text: str) -> list[str]:
    """Return the lines as Python counts them. Not splitlines: form feeds end no line of Python."""
    return [line + "\n" for line in text.split("\n")]


def parsed(text: str) -> ast.Module | None:
    """Return the tree; None of what is no Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _pieces_of_block(block: Sequence[ast.stmt], lines: Sequence[str]) -> Iterator[str]:
    piece, begin = "", 0
    for statement in block:
        first, last = _lines_of(statement)
        longer = textwrap.dedent("".join(lines[begin:last])) if piece else ""
        if 0 < len(longer) < _CHARACTERS.stop:
            piece = longer
            continue
        yield from _fitting(piece)
        piece, begin = textwrap.dedent("".join(lines[first:last])), first
        if len(piece) >= _CHARACTERS.stop:
            piece = ""
            for inner in _blocks_in(statement):
                yield from _pieces_of_block(inner, lines)
    yield from _fitting(piece)


def _fitting(piece: str) -> Iterator[str]:
    # Some lines can't stand alone: `elif`, what follows `else:`, code beside a string whose lines stand further left.
    if len(piece) in _CHARACTERS and parsed(piece) is not None:
        yield piece


def _lines_of(statement: ast.stmt) -> tuple[int, int]:
    """Return the first line, with decorators, counted from 0, and the line after the last."""
    above = [decorator.lineno for decorator in getattr(statement, "decorator_list", [])]
    return min([statement.lineno, *above]) - 1, statement.end_lineno or statement.lineno


def _blocks_in(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for part in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        for name in ("body", "orelse", "finalbody"):
            if block := getattr(part, name, None):
                yield block


def draw_piece_pairs(pieces: Iterable[CodePiece], *, at_most: int) -> list[CodePair]:
    """Draw pairs of a piece without violations and one that is clearly worse; no text is in two pairs."""
    ordered = sorted({piece.text: piece for piece in pieces}.values(), key=lambda one: _share(one.text))
    better = [piece for piece in ordered if piece.score == 0]
    worse = [piece for piece in ordered if piece.score >= CLEARLY_WORSE]
    return [CodePair(*pair) for pair in zip(better, worse, strict=False)][:at_most]


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
