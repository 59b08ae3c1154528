"""What the detectors of `mode: strict` return, and words near a place in a text."""

import re
from bisect import bisect_left, bisect_right
from typing import NamedTuple


class Detection(NamedTuple):
    type: str
    begin: int
    end: int
    """Character offsets [begin, end)."""
    confidence: float
    """From 0 to 1: how surely the form is what the type says. A rank of forms, not a fitted probability."""


def stands_after(words: re.Pattern[str], text: str, place: int, *, chars: int) -> bool:
    """Whether one of the words begins in the `chars` characters before the place."""
    return words.search(text, max(place - chars, 0), place) is not None


def countable(detections: list[Detection]) -> list[Detection]:
    """Return the detections in order, without those that lie within one of at least their confidence.

    So the sixteen digits of a card are no phone number as well. An e-mail address in a URL stays, and so does the URL.
    """
    kept: list[Detection] = []
    # The kept ones that lie within no other, in order, so that a file of 100,000 addresses takes no quadratic time.
    begins: list[int] = []
    ends: list[int] = []
    for one in sorted(detections, key=lambda one: (-one.confidence, one.begin - one.end, one.begin, one.type)):
        place = bisect_right(begins, one.begin)
        if place and one.end <= ends[place - 1]:
            continue
        kept.append(one)
        within = slice(bisect_left(begins, one.begin), bisect_right(ends, one.end))
        begins[within], ends[within] = [one.begin], [one.end]
    return sorted(kept, key=lambda one: (one.begin, -one.end, one.type))
