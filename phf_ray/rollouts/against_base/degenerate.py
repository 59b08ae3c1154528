"""Which answers are no answers, whatever reward they get: empty ones, comments alone, text that repeats itself."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from phf_ray.measures.ngrams import ngrams_of

Degeneration = Literal["empty", "comment-only", "repeated"]
KINDS: tuple[Degeneration, ...] = ("empty", "comment-only", "repeated")
_MOST_REPEATED = 0.5
"""Share of an answer's 4-grams of words that repeat an earlier one."""
# Strings and comments of Python; one that is cut ends with the text, or with its line.
_NO_CODE = re.compile(
    r'[rbuf]{0,2}(?:"""(?:\\.|[^\\])*?(?:"""|\Z)|\'\'\'(?:\\.|[^\\])*?(?:\'\'\'|\Z)'
    r'|"(?:\\.|[^"\\\n])*(?:"|$)|\'(?:\\.|[^\'\\\n])*(?:\'|$))|#[^\n]*',
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


def degenerations(texts: Sequence[str], *, is_code: bool) -> list[Degeneration | None]:
    """Return what is wrong with each text, the first kind that fits; None: nothing.

    `is_code`: they are Python, so that one without anything but comments and strings is `comment-only`. A text that
    an earlier one has word by word is `repeated`, too.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    found: list[Degeneration | None] = []
    for text in texts:
        words = text.split()
        seen[tuple(words)] += 1
        kind: Degeneration | None = None
        if not words:
            kind = "empty"
        elif is_code and not _NO_CODE.sub("", text).strip():
            kind = "comment-only"
        elif seen[tuple(words)] > 1 or _repeats_itself(words):
            kind = "repeated"
        found.append(kind)
    return found


def _repeats_itself(words: Sequence[str]) -> bool:
    ngrams = ngrams_of(words, 4)
    return bool(ngrams) and 1 - len(set(ngrams)) / len(ngrams) > _MOST_REPEATED
