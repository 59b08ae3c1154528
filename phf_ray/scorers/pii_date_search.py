"""Cuts sentences into the chunks that dateparser reads dates in, as dateparser does, but faster.

dateparser first rewrites a sentence, such as `twenty years` to `20 years`, and tries its sixty patterns on each. Here
a pattern is tried only if the sentence has a word of it. What is done only for letters outside ASCII is left out for
other sentences.
"""

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any

from dateparser.languages.locale import Locale


def with_fast_search(locale: Locale, settings: Any) -> Locale:
    """Return a copy of an English locale whose `translate_search` returns the same."""
    copied = copy.copy(locale)
    copied._apply_simplifications = _simplification(locale, settings)
    # Only marks outside ASCII break words.
    copied._break_standalone_marks = lambda text: text if text.isascii() else locale._break_standalone_marks(text)
    copied._join_chunk = lambda chunk, settings: _join(locale, chunk, settings)
    return copied


def _simplification(locale: Locale, settings: Any) -> Callable[[str, Any], str]:
    rules = [next(iter(rule.items())) for rule in locale._get_simplifications(settings=settings)]
    sources = [next(iter(rule)) for rule in locale._generate_simplifications(normalize=True)]
    tried = [(required_word(source), *rule) for source, rule in zip(sources, rules, strict=True)]

    def simplify(text: str, simplifications: Any) -> str:
        if not text.isascii():
            # A pattern can match letters outside ASCII in another case.
            return locale._apply_simplifications(text, simplifications)
        text = text.lower()
        for word, pattern, replacement in tried:
            if word in text:
                text = pattern.sub(replacement, text).lower()
        return text

    return simplify


def _join(locale: Locale, words: Sequence[str], settings: Any) -> str:
    """Join words, which hold no white space but single spaces; only empty ones leave two spaces in a row."""
    joined = " ".join(words)
    return locale._join_chunk(words, settings=settings) if "  " in joined else joined


def required_word(pattern: str) -> str:
    """Return letters that every match of the pattern has; an empty string if they are not easy to tell."""
    # A class can hold brackets, and an escape can stand for one.
    plain = _CLASS_OR_ESCAPE.sub(".", pattern)
    while (without := _GROUP.sub(".", plain)) != plain:
        plain = without
    plain = _OPTIONAL.sub(".", plain)
    return "" if "|" in plain else max(_WORD.findall(plain), key=len, default="")


_CLASS_OR_ESCAPE = re.compile(r"\\.|\[[^\]]*\]")
_GROUP = re.compile(r"\([^()]*\)")
_OPTIONAL = re.compile(r"[a-z](?:[?*]|\{)")
_WORD = re.compile("[a-z]+")
