"""Whether a word is English, as textblob's spelling correction decides it, without its search."""

from collections.abc import Iterator
from functools import lru_cache

import textblob.en

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@lru_cache(maxsize=100_000)
def is_likely_word(word: str) -> bool:
    """Whether textblob's best correction of the word, of six or more characters, has a confidence of at least 0.5.

    The corrections are textblob's own: the word itself if it is known, else the known words at one edit, else those at
    two. textblob spends most of a second on the latter, since it spells all 200,000 strings at two edits out.
    """
    known = _dictionary()
    if word in known:
        return True
    # An edit takes at most one character that is in no known word, and changes the length by at most one.
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
    """The known words by each string that is left of them when one character is deleted, and by themselves."""
    words: dict[str, list[str]] = {}
    for word in _dictionary():
        for shorter in {word, *_deletions(word)}:
            words.setdefault(shorter, []).append(word)
    return words


def _deletions(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place in range(len(word))]


def _edits(word: str) -> Iterator[str]:
    """All strings at one deletion, swap of neighbors, replacement by a letter or insertion of one."""
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
    """The known words that are an edit of the word."""
    by_deletion = _known_by_deletion()
    # Whatever the edit, the two words have a string in common that a deletion leaves of each, or that is one of them.
    for shorter in {word, *_deletions(word)}:
        for known in by_deletion.get(shorter, ()):
            if _is_edit(word, known):
                yield known


def _is_edit(word: str, other: str) -> bool:
    """Whether `other`, of letters a to z, is one edit away from the word or equal to it."""
    place = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    head, tail = word[place:], other[place:]
    if len(other) < len(word):
        return head[1:] == tail
    if len(other) > len(word):
        return head == tail[1:]
    return head[1:] == tail[1:] or head[2:] + head[:2] == tail[2:] + tail[1::-1]
