"""Cuts a text into segments, each of which gets its own score. `"".join(segments)` is always the text."""

import io
import re
from collections.abc import Callable

from phf_ray.errors import ConfigError

# spaCy strips prefixes and suffixes from a chunk without white space one by one and copies the rest each time: 20,000
# opening brackets take 30 s, ten times as many an hour. Chunks are cut here at 1000 characters, which no word reaches.
MAX_CHUNK_CHARS = 1000
_CUT_IN_CHUNK = re.compile(rf"\S{{{MAX_CHUNK_CHARS}}}(?=\S)")
_SURROGATE = re.compile("[\ud800-\udfff]")


def build_segmenter(name: str) -> Callable[[str], list[str]]:
    """The segmenter `sentences`, `lines` or `document`. An empty text has no segments."""
    if name not in SEGMENTERS:
        raise ConfigError(f"unknown segmenter {name!r}; choose one of {', '.join(sorted(SEGMENTERS))}")
    return SEGMENTERS[name]()


def split_lines(text: str) -> list[str]:
    """Lines with their ends. Only `\\n` ends a line: `str.splitlines` also cuts at form feeds and U+2028."""
    return io.StringIO(text).readlines()


def whole_document(text: str) -> list[str]:
    return [text] if text else []


class SentenceSplitter:
    """Sentences by spaCy's blank English tokenizer and sentencizer; white space stays with the sentence before it.

    Texts of any length are cut; a lone surrogate, which spaCy can't store, counts as any other unknown character.
    """

    def __init__(self) -> None:
        import spacy

        self._nlp = spacy.blank("en")
        self._nlp.max_length = 2**62
        self._sentencizer = self._nlp.add_pipe("sentencizer")

    def __call__(self, text: str) -> list[str]:
        if not text:
            return []
        # Without the zone spaCy keeps every word that it ever saw.
        with self._nlp.memory_zone():
            starts = self._sentence_starts(_SURROGATE.sub("\ufffd", text))
        return [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]

    def _sentence_starts(self, text: str) -> list[int]:
        cuts = [match.end() for match in _CUT_IN_CHUNK.finditer(text)]
        if cuts:
            from spacy.tokens import Doc

            # DIFFERS: ours tokenizes chunks without white space of over 1000 characters in pieces, so that the time is
            # linear; original takes hours where such a chunk is 1 MB of brackets.
            pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            tokens = [token for piece in pieces for token in self._nlp.make_doc(piece)]
            words, spaces = [token.text for token in tokens], [bool(token.whitespace_) for token in tokens]
            doc = Doc(self._nlp.vocab, words=words, spaces=spaces)
        else:
            doc = self._nlp.make_doc(text)
        return [sentence.start_char for sentence in self._sentencizer(doc).sents]


SEGMENTERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {
    "sentences": SentenceSplitter,
    "lines": lambda: split_lines,
    "document": lambda: whole_document,
}
