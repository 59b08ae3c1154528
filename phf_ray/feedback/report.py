"""Figures of a feedback corpus for `--report`: lengths, labels, repeats, whether the longer answer wins, overlaps.

Memory: some 40 bytes for each row, and the other sets (`against.py`).
"""

import hashlib
import json
import posixpath
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from phf_ray.corpus.layout import REPORT, write_corpus_file
from phf_ray.feedback.against import OtherSet, PromptFinder, PromptOverlap, words_of
from phf_ray.feedback.hindsight.fields import learned_texts
from phf_ray.feedback.reader import read_feedback, read_feedback_manifest
from phf_ray.feedback.rows import Comparison, Example, FeedbackRow
from phf_ray.generation.chat.prompts import ASSISTANT
from phf_ray.measures.win_rates import win_rate
from phf_ray.storage.files import open_filesystem

_SHOWN = 3
"""Matches of each set that are printed; report.json has more."""
_SHOWN_CHARACTERS = 100


def report_feedback(corpus: str, against: Sequence[OtherSet] = ()) -> dict[str, Any]:
    """Read a finished feedback corpus, write its `report.json`, and return what that holds."""
    manifest = read_feedback_manifest(corpus)
    rows = _Rows([PromptFinder(other) for other in against])
    for row in read_feedback(corpus):
        rows.add(row)
    figures = {
        "format_version": 1,
        "kind": manifest.kind,
        "fingerprint": manifest.fingerprint,
        "rows": manifest.rows,
        "distinct_prompts": len(np.unique(_numbers(rows.prompts))),
        "prompt_characters": _lengths(rows.prompt_lengths),
        "answer_characters": _lengths(rows.answer_lengths),
        "preferences": dict(sorted(manifest.stats.preferences.items())),
        "marks": dict(sorted(manifest.stats.marks.items())),
        "rejected": dict(sorted(manifest.stats.rejected.items())),
        "duplicates": manifest.stats.rejected["duplicate"],
        **({"judged_again": rows.judged_again(), "longer": rows.longer()} if manifest.kind == "comparisons" else {}),
        "against": [_overlap(finder.overlap) for finder in rows.finders],
    }
    filesystem, root = open_filesystem(corpus)
    content = json.dumps(figures, indent=2, ensure_ascii=True) + "\n"
    write_corpus_file(filesystem, posixpath.join(root, REPORT), content.encode())
    return figures


class _Rows:
    """What is remembered of each row."""

    def __init__(self, finders: Sequence[PromptFinder]):
        self.finders = finders
        self.prompts = array("Q")
        self.prompt_lengths = array("Q")
        self.answer_lengths = array("Q")
        self._pairs = array("Q")
        """Of comparisons: a key of the prompt and the two answers, in whichever order."""
        self._verdicts = array("b")
        """Of comparisons: 1 if the answer that sorts first is better, -1 the other, 0 a tie or unknown."""
        self._longer = array("b")
        """Of comparisons: 1 if the longer answer is better, -1 if the shorter is, 0 if nothing says so."""
        self._equal_lengths = 0

    def add(self, row: FeedbackRow) -> None:
        words, answers = _parts(row)
        key = _key(words)
        self.prompts.append(key)
        self.prompt_lengths.append(len(words))
        self.answer_lengths.extend(map(len, answers))
        if isinstance(row, Comparison):
            self._add_pair(row, key)
        for finder in self.finders:
            finder.look_for(words, key)

    def _add_pair(self, row: Comparison, prompt: int) -> None:
        first, second = row.output_1, row.output_2
        sign = {"first": 1, "second": -1}.get(row.verdict, 0)
        low, high = sorted((first, second))
        self._pairs.append(_key(json.dumps([prompt, low, high])))
        self._verdicts.append(sign if low == first else -sign)
        longer = (len(first) > len(second)) - (len(first) < len(second))
        self._longer.append(sign * longer)
        self._equal_lengths += sign != 0 and longer == 0

    def judged_again(self) -> dict[str, int]:
        """Count pairs of answers that several rows judge, and those of them that are judged both ways."""
        _, pair_N, count_P = np.unique(_numbers(self._pairs), return_inverse=True, return_counts=True)
        verdict_N = np.frombuffer(self._verdicts, np.int8)
        ways_P = np.zeros(len(count_P), np.int8)
        for way, verdict in ((1, 1), (2, -1)):
            ways_P[np.unique(pair_N[verdict_N == verdict])] |= way
        return {"pairs": int((count_P > 1).sum()), "contradicting": int((ways_P == 3).sum())}

    def longer(self) -> dict[str, Any]:
        """Return how often the longer answer is the better one, in percent, of the pairs that tell."""
        longer_N = np.frombuffer(self._longer, np.int8)
        preferences = np.where(longer_N == 0, np.nan, 1.5 + longer_N / 2)
        rate = win_rate(preferences, clusters=self.prompts)
        interval = rate.interval()
        return {
            "better": rate.win_rate,
            "interval": None if interval is None else [interval.low, interval.high],
            "pairs": rate.n_total,
            "equal_lengths": self._equal_lengths,
        }


def report_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Yield a report in lines to be printed."""
    yield f"{figures['rows']:,} rows, {figures['distinct_prompts']:,} different prompts"
    for name in ("prompt", "answer"):
        lengths = figures[f"{name}_characters"]
        yield f"characters of {name}s: median {lengths['median']:,g}, 90th percentile {lengths['p90']:,g}"
    counts = {**figures["preferences"], **figures["marks"]}
    if counts:
        yield ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items()))
    yield f"duplicates left out: {figures['duplicates']:,}"
    if "longer" in figures:
        again = figures["judged_again"]
        yield f"pairs judged more than once: {again['pairs']:,}, of which both ways: {again['contradicting']:,}"
        yield _longer_line(figures["longer"])
    for one in figures["against"]:
        yield from _against_lines(one, figures["distinct_prompts"])


def _longer_line(longer: dict[str, Any]) -> str:
    if longer["better"] is None:
        return "the longer answer: no pair has a better answer that is longer or shorter than the other"
    said = f"the longer answer is the better one in {longer['better']:.1f}% of {longer['pairs']:,} pairs"
    if longer["interval"] is None:
        return f"{said} (no interval: fewer than 2 prompts, or all pairs say the same)"
    low, high = longer["interval"]
    return f"{said} (95% interval {low:.1f} to {high:.1f}, by prompts)"


def _against_lines(one: dict[str, Any], num_prompts: int) -> Iterator[str]:
    unread = f"; {one['unread']:,} of its records have no prompt" if one["unread"] else ""
    yield (
        f"{one['set']} ({one['prompts']:,} prompts{unread}): it has {one['exact']:,} of {num_prompts:,} prompts, and "
        f"{one['shared']:,} more share 13 words in a row with one of it ({one['rows']:,} rows)"
    )
    for match in one["matches"][:_SHOWN]:
        shown = match["prompt"] if match["words"] is None else match["words"]
        yield f"  {'the same' if match['words'] is None else '13 words'}: {_short(shown)}"


def _overlap(overlap: PromptOverlap) -> dict[str, Any]:
    return {
        "set": overlap.name,
        "prompts": overlap.num_prompts,
        "unread": overlap.num_unread,
        "exact": len({*overlap.exact}),
        "shared": len({*overlap.shared}),
        "rows": len(overlap.exact) + len(overlap.shared),
        "matches": [asdict(match) for match in overlap.matches],
    }


def _parts(row: FeedbackRow) -> tuple[str, list[str]]:
    """Return the words of a row's prompt, and its answers."""
    if isinstance(row, Comparison):
        return words_of(row.prompt), [row.output_1, row.output_2]
    if row.prompt is not None:
        answers = [row.completion] if row.record is None else learned_texts(row.record)
        return words_of(row.prompt), answers
    return _conversation(row)


def _conversation(row: Example) -> tuple[str, list[str]]:
    asked = [message.content for message in row.conversation if message.role != ASSISTANT]
    return "\n\n".join(asked), [message.content for message in row.conversation if message.role == ASSISTANT]


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _numbers(values: "array[int]") -> np.typing.NDArray[np.uint64]:
    return np.frombuffer(values, np.uint64)


def _lengths(values: "array[int]") -> dict[str, float]:
    median, p90 = np.quantile(_numbers(values), [0.5, 0.9])
    return {"median": float(median), "p90": float(p90)}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
