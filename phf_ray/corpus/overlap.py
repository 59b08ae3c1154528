"""Finds texts of one set that also occur in a corpus: whole, or 13 words in a row (Brown et al. 2020, appendix C)."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from phf_ray.corpus.stored import Part, forget

NUM_WORDS = 13
_WORD = re.compile(r"\w+")


@dataclass(slots=True)
class Overlap:
    """Which texts of a set occur in a corpus, as indices into the set."""

    exact: set[int] = field(default_factory=set)
    """Texts that are a document of the corpus, ignoring case, punctuation and white space."""
    shared: set[int] = field(default_factory=set)
    """Texts that share 13 words in a row with a document of the corpus; includes `exact` ones of 13 words or more."""

    def merge(self, other: "Overlap") -> None:
        self.exact |= other.exact
        self.shared |= other.shared


Sets = Mapping[str, Sequence[str]]
"""Texts of each set, by the set's name."""
OverlapCounter = Callable[[Sequence[Part], Sets], Iterator[dict[str, Overlap]]]
"""Yields the overlap of each of these parts of a corpus with each set: `overlaps_here`, or `overlaps_on_ray`."""


class OverlapIndex:
    """Index of a set's texts. Holds one hash for every word; the hashes are valid in this process alone."""

    def __init__(self, texts: Sequence[str]):
        self._exact: dict[int, list[int]] = {}
        self._shared: dict[int, list[int]] = {}
        for index, text in enumerate(texts):
            words = _words(text)
            self._exact.setdefault(hash(words), []).append(index)
            for key in set(_runs(words)):
                self._shared.setdefault(key, []).append(index)

    def find(self, text: str) -> Overlap:
        """Return the indexed texts that equal this one, or share 13 words in a row with it."""
        words = _words(text)
        found = Overlap(exact=set(self._exact.get(hash(words), ())))
        for key in _runs(words):
            if key in self._shared:
                found.shared.update(self._shared[key])
        return found


def overlap_of_part(part: Part, sets: Sets) -> dict[str, Overlap]:
    """Return the overlap of one part of a corpus with each set."""
    indices = {name: OverlapIndex(texts) for name, texts in sets.items()}
    found = {name: Overlap() for name in sets}
    for document in part.documents(forget):
        for name, index in indices.items():
            found[name].merge(index.find(document.text))
    return found


def overlaps_here(parts: Sequence[Part], sets: Sets) -> Iterator[dict[str, Overlap]]:
    """Compare one part after the other in this process. This function is an `OverlapCounter`."""
    for part in parts:
        yield overlap_of_part(part, sets)


def total_overlap(found: Iterable[Mapping[str, Overlap]], sets: Sets) -> dict[str, Overlap]:
    """Add up the overlap of all parts."""
    total = {name: Overlap() for name in sets}
    for one in found:
        for name, overlap in one.items():
            total[name].merge(overlap)
    return total


def shared_words(first: str, second: str) -> str | None:
    """Return the first 13 words in a row of `first` that `second` has, too, in lower case; None if there are none."""
    others = {*_grams(_words(second))}
    return next((" ".join(gram) for gram in _grams(_words(first)) if gram in others), None)


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


def _runs(words: tuple[str, ...]) -> Iterator[int]:
    return map(hash, _grams(words))


def _grams(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    return (words[begin : begin + NUM_WORDS] for begin in range(len(words) - NUM_WORDS + 1))
