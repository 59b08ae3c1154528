"""Decides whether a word is English exactly as textblob's spelling correction does, without its slow search."""

from collections.abc import Iterator
from functools import lru_cache

import textblob.en

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@lru_cache(maxsize=100_000)
def is_likely_word(word: str) -> bool:
    """Whether textblob's best correction of a word of six or more characters has a confidence of at least 0.5.

    The corrections are textblob's own: the word itself if it is known, else the known words at one edit, else those at
    two edits. textblob needs most of a second for two edits, because it generates all 200,000 strings at that distance.
    """
    known = _dictionary()
    if word in known:
        return True
    # One edit removes at most one character that is in no known word, and changes the length by at most one.
    if len(word) > _longest_known() + 2 or sum(char not in _LETTERS for char in word) > 2:
        return False
    at_one_edit = set(_edits(word))
    corrections = {edit for edit in at_one_edit if edit in known}
    if not corrections:
        corrections = {near for edit in at_one_edit for near in _known_at_one_edit(edit)}
    counts = [known[correction] for correction in corrections]
    return bool(counts) and max(counts) / float(sum(counts)) >= 0.5


@lru_cache(maxsize=1)
def _dictionary() -> dict[str, int]:
    textblob.en.spelling.load()
    return dict(textblob.en.spelling)


@lru_cache(maxsize=1)
def _longest_known() -> int:
    return max(map(len, _dictionary()))


@lru_cache(maxsize=1)
def _known_by_deletion() -> dict[str, list[str]]:
    """Return string -> the known words that equal it, or become it if one character is deleted."""
    words: dict[str, list[str]] = {}
    for word in _dictionary():
        for shorter in {word, *_deletions(word)}:
            words.setdefault(shorter, []).append(word)
    return words


def _deletions(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place in range(len(word))]


def _edits(word: str) -> Iterator[str]:
    """Yield all strings at one edit: a deletion, a swap of neighbors, a replaced letter or an inserted letter."""
    yield from _deletions(word)
    for place in range(len(word) + 1):
        head, tail = word[:place], word[place:]
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
        for letter in _LETTERS:
            yield head + letter + tail
            if tail:
                yield head + letter + tail[1:]


def _known_at_one_edit(word: str) -> Iterator[str]:
    """Yield the known words that are at most one edit away from the word."""
    by_deletion = _known_by_deletion()
    # Two words at one edit always share a string: each word either is that string or becomes it by one deletion.
    for shorter in {word, *_deletions(word)}:
        for known in by_deletion.get(shorter, ()):
            if _is_edit(word, known):
                yield known


def _is_edit(word: str, other: str) -> bool:
    """Whether `other`, which has only letters a to z, equals the word or is one edit away."""
    place = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    head, tail = word[place:], other[place:]
    if len(other) < len(word):
        return head[1:] == tail
    if len(other) > len(word):
        return head == tail[1:]
    return head[1:] == tail[1:] or head[2:] + head[:2] == tail[2:] + tail[1::-1]
