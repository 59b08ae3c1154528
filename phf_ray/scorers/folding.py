"""Folds spellings that count as one: composed and decomposed accents, typographic apostrophes, upper and lower case.

A folded text can be longer or shorter than the original, so it knows where its characters come from.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator

_PLAIN = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02bc\uff07", "'") | dict.fromkeys("\u2010\u2011", "-"),
)


class Folded:
    """A folded text: `text`, and the place in the original that each part of it comes from."""

    def __init__(self, original: str, *, ignore_case: bool):
        self._units: list[tuple[int, int]] | None = None
        if _stays_in_place(original):
            self.text = fold(original, ignore_case=ignore_case)
            return
        parts, self._units = [], []
        for unit in _UNIT.finditer(original):
            part = fold(unit[0], ignore_case=ignore_case)
            parts.append(part)
            if unit[0].isascii():
                self._units += [(place, place + 1) for place in range(*unit.span())]
            else:
                self._units += [unit.span()] * len(part)
        self.text = "".join(parts)

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Return the span [begin, end) of the original that became this span of the folded text, which is not empty."""
        if self._units is None:
            return begin, end
        return self._units[begin][0], self._units[end - 1][1]


def fold(text: str, *, ignore_case: bool) -> str:
    """Return the text with composed accents, plain apostrophes and hyphens, and without cases if `ignore_case`."""
    if text.isascii():
        return text.lower() if ignore_case else text
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    return unicodedata.normalize("NFC", text.casefold()) if ignore_case else text


def _stays_in_place(text: str) -> bool:
    """Whether the character at each place of the text is folded to one character at the same place."""
    if text.isascii():
        return True
    if _MANY_MARKS.search(text) or not unicodedata.is_normalized("NFC", text):
        return False
    # casefold() makes no character shorter, so if the length stays, each has become one character.
    lower = text.casefold()
    return len(lower) == len(text) and unicodedata.is_normalized("NFC", lower)


def _ranges(codes: Iterable[int]) -> str:
    """Return ascending code points as the inside of a character class."""
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in _runs(codes))


def _runs(codes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of each run of consecutive numbers."""
    run: list[int] = []
    for code in codes:
        if run and code != run[-1] + 1:
            yield run[0], run[-1]
            run = []
        run.append(code)
    if run:
        yield run[0], run[-1]


# Variation selectors change the look of a character, not which one it is. From U+20000 on there are no other marks.
_SELECTORS = range(0xFE00, 0xFE10)
MARKS = _ranges(
    code for code in range(0x300, 0x20000) if code not in _SELECTORS and unicodedata.category(chr(code)).startswith("M")
)
"""Accents, vowel signs and other characters that belong to the one before, as the inside of a character class."""

# More marks in a row occur in no language, and sorting them, which is a part of composing, takes quadratic time.
_MAX_MARKS = 30
_MANY_MARKS = re.compile(f"[{MARKS}]{{{_MAX_MARKS + 1}}}")
# Only marks and the second and third letters of Korean syllables are composed with what stands before them.
_UNIT = re.compile(rf"[\x00-\x7f]+(?![^\x00-\x7f])|[\s\S][{MARKS}\u1160-\u11ff]{{0,{_MAX_MARKS}}}")
