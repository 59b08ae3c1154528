"""Finds phone numbers that are possible, not only valid ones: numbers that are not in service name a person as well.

A number counts if its form says what it is, or if a word such as phone or fax stands by it. phonenumbers knows what is
possible and valid in which country.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

import phonenumbers

from phf_ray.scorers.pii_detection import Detection, stands_after


def phones(region: str) -> Callable[[str], Iterator[Detection]]:
    """Return a detector of phone numbers; those without a country are tried in the region first."""

    def detector(text: str) -> Iterator[Detection]:
        for match in _CANDIDATE.finditer(text):
            number = match["number"]
            if _OTHER_NUMBER.fullmatch(number) or number.count("(") != number.count(")"):
                continue
            has_word = (
                stands_after(_WORD_BEFORE, text, match.start(), chars=_CHARS_BEFORE)
                or _WORD_AFTER.match(text, match.end()) is not None
            )
            confidence = _confidence(number, region, has_word=has_word)
            if confidence is not None:
                yield Detection("phone", *match.span(), confidence)

    return detector


def _confidence(number: str, region: str, *, has_word: bool) -> float | None:
    """Return how sure it is that the candidate, without an extension, is a phone number; None: it is none."""
    digits = _NOT_DIGIT.sub("", number)
    if number.startswith("+"):
        return _abroad("+" + digits.replace("0", "", 1) if "(0)" in number else "+" + digits, has_word=has_word)
    if digits.startswith(("00", "011")) and _NOT_DIGIT.search(number) and len(digits) >= 11:
        return _abroad("+" + digits.removeprefix("011").removeprefix("00"), has_word=has_word)
    if _NORTH_AMERICAN.fullmatch(number):
        is_valid = _is_valid(digits[-10:], "US") or _is_valid(digits[-10:], "CA")
        return 0.9 if is_valid or has_word else 0.7
    if has_word and _MIN_DIGITS <= len(digits) <= _MAX_DIGITS:
        return 0.75
    # Without a word, a number needs what few others have: a zero in front, groups, and a country where it is valid.
    if number.lstrip("(").startswith("0") and len(_GROUP.findall(number)) >= 3 and len(digits) >= 9:
        return 0.6 if any(_is_valid(number, one) for one in dict.fromkeys((region, *_REGIONS))) else None
    return None


def _abroad(number: str, *, has_word: bool) -> float | None:
    if not _MIN_DIGITS <= len(number) - 1 <= _MAX_DIGITS_ABROAD:
        return None
    if _is_possible(number):
        return 0.95 if has_word or _is_valid(number, None) else 0.8
    return 0.75 if has_word else None


@lru_cache(maxsize=20_000)
def _is_possible(number: str) -> bool:
    try:
        return bool(phonenumbers.is_possible_number(phonenumbers.parse(number, None)))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(maxsize=20_000)
def _is_valid(number: str, region: str | None) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(number, region)))
    except phonenumbers.NumberParseException:
        return False


_MIN_DIGITS, _MAX_DIGITS, _MAX_DIGITS_ABROAD = 6, 13, 15
_CHARS_BEFORE = 32
_REGIONS = ("GB", "DE", "FR", "IT", "NL", "BE", "CH", "AT", "AU", "IE", "SE", "ZA", "NZ", "PL")
"""Countries whose numbers begin with a zero at home; the largest of those whose texts are often in English."""

# Groups of digits with at most one separator, brackets aside; then perhaps an extension.
_CANDIDATE = re.compile(
    r"(?<![\w$\u20ac\u00a3#%@=/])(?<![0-9][.,:-])(?<![A-Z]-)(?P<number>\+?[0-9(]"
    r"(?:[0-9]|\)[ .-]?(?=[0-9])|[ .-]?\((?=[0-9])|[ \u00a0.\u2011-](?=[0-9])){5,24})(?<=[0-9])"
    r"(?:[ ]?(?:x|ext\.?|extension)[ ]?[0-9]{1,6})?"
    r"(?!\w|[.:/][0-9]|,[0-9]{3}(?![0-9-])|%)",
    re.IGNORECASE,
)
_NORTH_AMERICAN = re.compile(
    r"(?:1[ .-]?)?(?:\([0-9]{3}\)[ .-]?|[0-9]{3}(?P<separator>[ .-]))[0-9]{3}[ .-][0-9]{4}|[0-9]{3}-[0-9]{3}-[0-9]{4}"
)
# Dates, years and their ranges, decimal numbers, amounts, IP addresses, social security numbers and ZIP codes.
_OTHER_NUMBER = re.compile(
    r"[12][0-9]{3}[-. ][0-9]{1,2}[-. ][0-9]{1,2}(?:[ ][0-9]{2})?|[0-9]{1,2}[-. ][0-9]{1,2}[-. ][12][0-9]{3}"
    r"|[12][0-9]{3}[ -][12][0-9]{3}|[0-9]+\.[0-9]+|[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9]{3}-[0-9]{2}-[0-9]{4}"
    r"|[0-9]{5}-[0-9]{4}|[0-9]{1,3}(?: 000)+|(?P<all>[0-9])(?:[ .()-]*(?P=all))+"
)
_WORD_BEFORE = re.compile(
    r"(?:(?<![a-z])(?:tele)?phone|\btel(?![a-z])|\b(?:call|dial|ring|text|reach)(?:ed|ing)?\b|\bmobile|\bcell(?:ular)?\b"
    r"|\bfax|\bdesk\b|\bhotline|\bwhatsapp|\bsms\b|\bcontact|\blandline|\banswering at|\bmessages? to)"
    r"[^0-9\n]{0,24}(?:\n[ \t]*)?[^0-9\n]{0,3}\Z",
    re.IGNORECASE,
)
_WORD_AFTER = re.compile(r"[ -]{0,2}\(?(?:office|fax|mobile|cell|home|work|phone)\b", re.IGNORECASE)
_NOT_DIGIT = re.compile("[^0-9]+")
_GROUP = re.compile("[0-9]+")
