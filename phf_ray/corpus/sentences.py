"""Cuts sentences where spaCy's blank English tokenizer and sentencizer cut them, without tokenizing most of the text.

A sentence begins at the first token after a sign (`.`, `!`, `?`, ...) that is no punctuation, so only the tokens around
signs matter. spaCy tokenizes every chunk between white space by itself; what it seeks across white space is its special
cases (emoticons, abbreviations), as rows of tokens. Where white space comes before a letter or digit, and no special
case has the two characters around the white space next to each other, no token depends on the other side: a *break*.
The stretches of text from break to break that hold signs, joined, have the tokens that they have in the whole text.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from spacy.language import Language

# From a chunk without white space, spaCy strips prefixes and suffixes one by one and copies the rest each time: 20,000
# opening brackets take 30 s, ten times as many take an hour. We cut chunks at 1000 characters, which no word reaches.
MAX_CHUNK_CHARS = 1000
_CUT_IN_CHUNK = re.compile(rf"\S{{{MAX_CHUNK_CHARS}}}(?=\S)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BEFORE_WORD = re.compile(r"\S\s+(?=[^\W_])")
# What closes a quotation or bracket, of East Asian scripts first.
_CLOSING = "\u300d\u300f\uff09\u3011\u300b\u3009\u3015\uff3d\uff5d\u3017\u3019\u301b\u201d\u2019\xbb\u203a\"')\\]}"
_ENDS = r"\u3002\uff01\uff1f"
# It begins only where a run of ends does, and is possessive, so that 100,000 full stops take no quadratic time.
_EAST_ASIAN_END = re.compile(rf"(?<![{_ENDS}])[{_ENDS}]++[{_CLOSING}]*+(?=[^\s{_ENDS}{_CLOSING}])")


class SentenceSplitter:
    """Cuts sentences as spaCy does. Most white space goes to the sentence before.

    `east_asian`: Chinese and Japanese sentences end, too: after U+3002, U+FF01 and U+FF1F, which are their `.!?`, and
    the quotes and brackets that close there.
    Texts can have any length. A lone surrogate, which spaCy can't store, counts as an unknown character.
    """

    def __init__(self, *, east_asian: bool = True) -> None:
        import spacy
        from spacy.attrs import IS_PUNCT

        self._nlp = spacy.blank("en")
        self._nlp.max_length = 2**62
        self._sentencizer = cast(Any, self._nlp.add_pipe("sentencizer"))
        self._pairs = _pairs_in_special_cases(self._nlp)
        # The sentencizer asks a word for nothing else; all 23 attributes take longer than the tokenizer.
        vocab: Any = self._nlp.vocab
        vocab.lex_attr_getters = {IS_PUNCT: vocab.lex_attr_getters[IS_PUNCT]}
        signs = self._sentencizer.punct_chars
        self._ascii_chunk = _chunk_with(sign for sign in signs if sign.isascii())
        # 60 of the signs are beyond U+FFFF, where `re` looks through a list: there, every character may be a sign.
        self._chunk = _chunk_with([*(sign for sign in signs if sign < "\U00010000"), "\U00010000-\U0010ffff"])
        self._east_asian = east_asian

    def __call__(self, text: str) -> list[str]:
        if not text:
            return []
        starts = {0, *self._english_starts(_SURROGATE.sub("\ufffd", text))}
        if self._east_asian and not text.isascii():
            # DIFFERS: phf-ray ends sentences at the full stop, exclamation and question mark of Chinese and Japanese
            # (U+3002, U+FF01, U+FF1F) without white space after them, too; the original does not, nor does compat.
            starts.update(match.end() for match in _EAST_ASIAN_END.finditer(text))
        begins = sorted(starts)
        return [text[begin:end] for begin, end in zip(begins, [*begins[1:], len(text)], strict=True)]

    def _english_starts(self, text: str) -> Iterator[int]:
        stretches = list(self._stretches(text))
        if not stretches:
            return
        joined = "".join([text[begin:end] for begin, end in stretches])
        ends = list(accumulate(end - begin for begin, end in stretches))
        # After white space comes a word, except at the end of the text, where no sentence begins.
        after = "a" if joined[-1].isspace() else ""
        for start in self._spacy_starts(joined + after):
            index = bisect_left(ends, start)
            place = stretches[index][1] - (ends[index] - start)
            if start and place < len(text):
                yield place

    def _stretches(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield begin and end of every stretch that holds a sign, in order. They begin and end at breaks."""
        chunk = self._ascii_chunk if text.isascii() else self._chunk
        end = 0
        while found := chunk.search(text, end):
            begin = self._break_before(text, found.start(), low=end)
            end = self._break_after(text, found.end())
            yield begin, end

    def _break_after(self, text: str, chunk_end: int) -> int:
        for gap in _BEFORE_WORD.finditer(text, chunk_end - 1):
            if text[gap.start()] + text[gap.end()] not in self._pairs:
                return gap.end()
        return len(text)

    def _break_before(self, text: str, begin: int, *, low: int) -> int:
        """Return the last break up to `begin`, where a chunk begins; at least `low`, which is a break itself."""
        while begin > low:
            end_before = begin
            while end_before > low and text[end_before - 1].isspace():
                end_before -= 1
            if end_before == low:
                return low
            if text[begin].isalnum() and text[end_before - 1] + text[begin] not in self._pairs:
                return begin
            begin = end_before - 1
            while begin > low and not text[begin - 1].isspace():
                begin -= 1
        return begin

    def _spacy_starts(self, text: str) -> list[int]:
        # Without a memory zone, spaCy keeps every word that it has ever seen.
        with self._nlp.memory_zone():
            cuts = [match.end() for match in _CUT_IN_CHUNK.finditer(text)]
            if cuts:
                from spacy.tokens import Doc

                # DIFFERS: phf-ray tokenizes chunks of over 1000 characters without white space in pieces, in linear
                # time; the original takes hours if such a chunk is 1 MB of brackets.
                pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
                tokens = [token for piece in pieces for token in self._nlp.make_doc(piece)]
                words, spaces = [token.text for token in tokens], [bool(token.whitespace_) for token in tokens]
                doc = Doc(self._nlp.vocab, words=words, spaces=spaces)
            else:
                doc = self._nlp.make_doc(text)
            return [sentence.start_char for sentence in self._sentencizer(doc).sents]


def _chunk_with(signs: Iterable[str]) -> re.Pattern[str]:
    """Return the pattern of a chunk without white space that holds a sign. It takes linear time to find all."""
    either = "".join(sign if len(sign) > 1 else re.escape(sign) for sign in signs)
    return re.compile(rf"(?<!\S)[^\s{either}]*+[{either}]\S*+")


def _pairs_in_special_cases(nlp: "Language") -> frozenset[str]:
    """Return last and first character of each two neighbouring tokens of special cases, if the second may be a word."""
    from spacy.tokenizer import Tokenizer

    usual: Any = nlp.tokenizer
    # spaCy seeks a special case by the tokens that it would have without special cases.
    plain = Tokenizer(
        nlp.vocab,
        prefix_search=usual.prefix_search,
        suffix_search=usual.suffix_search,
        infix_finditer=usual.infix_finditer,
        token_match=usual.token_match,
        url_match=usual.url_match,
    )
    rows = ([token.text for token in plain(case)] for case in usual.rules)
    return frozenset(first[-1] + second[0] for row in rows for first, second in pairwise(row) if second[0].isalnum())
