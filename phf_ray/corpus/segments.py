"""Cuts a text into segments, each of which gets its own score. `"".join(segments)` is always the text."""

import io
import re
from collections.abc import Callable
from importlib.metadata import version

from phf_ray.errors import ConfigError

# From a chunk without white space, spaCy strips prefixes and suffixes one by one and copies the rest each time: 20,000
# opening brackets take 30 s, ten times as many take an hour. We cut chunks at 1000 characters, which no word reaches.
MAX_CHUNK_CHARS = 1000
_CUT_IN_CHUNK = re.compile(rf"\S{{{MAX_CHUNK_CHARS}}}(?=\S)")
_SURROGATE = re.compile("[\ud800-\udfff]")

SEGMENTER_VERSIONS = "segmenter versions"
"""Key of a plan: package -> version."""


def build_segmenter(name: str) -> Callable[[str], list[str]]:
    """Return the segmenter `sentences`, `lines` or `document`. An empty text has no segments."""
    if name not in SEGMENTERS:
        raise ConfigError(f"unknown segmenter {name!r}; choose one of {', '.join(sorted(SEGMENTERS))}")
    return SEGMENTERS[name]()


def segmenter_versions(name: str) -> dict[str, str]:
    """Return package -> version for every package that decides where this segmenter cuts."""
    return {package: version(package) for package in _PACKAGES.get(name, ())}


def split_lines(text: str) -> list[str]:
    """Split into lines with ends. Only `\\n` ends a line: `str.splitlines` also cuts at form feeds and U+2028."""
    return io.StringIO(text).readlines()


def whole_document(text: str) -> list[str]:
    return [text] if text else []


class SentenceSplitter:
    """Cuts sentences with spaCy's blank English tokenizer and sentencizer. White space goes to the sentence before.

    Texts can have any length. A lone surrogate, which spaCy can't store, counts as an unknown character.
    """

    def __init__(self) -> None:
        import spacy

        self._nlp = spacy.blank("en")
        self._nlp.max_length = 2**62
        self._sentencizer = self._nlp.add_pipe("sentencizer")

    def __call__(self, text: str) -> list[str]:
        if not text:
            return []
        # Without a memory zone, spaCy keeps every word that it has ever seen.
        with self._nlp.memory_zone():
            starts = self._sentence_starts(_SURROGATE.sub("\ufffd", text))
        return [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]

    def _sentence_starts(self, text: str) -> list[int]:
        cuts = [match.end() for match in _CUT_IN_CHUNK.finditer(text)]
        if cuts:
            from spacy.tokens import Doc

            # DIFFERS: phf-ray tokenizes chunks of over 1000 characters without white space in pieces, in linear time;
            # the original takes hours if such a chunk is 1 MB of brackets.
            pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            tokens = [token for piece in pieces for token in self._nlp.make_doc(piece)]
            words, spaces = [token.text for token in tokens], [bool(token.whitespace_) for token in tokens]
            doc = Doc(self._nlp.vocab, words=words, spaces=spaces)
        else:
            doc = self._nlp.make_doc(text)
        return [sentence.start_char for sentence in self._sentencizer(doc).sents]


_PACKAGES = {"sentences": ("spacy",)}

SEGMENTERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {
    "sentences": SentenceSplitter,
    "lines": lambda: split_lines,
    "document": lambda: whole_document,
}
