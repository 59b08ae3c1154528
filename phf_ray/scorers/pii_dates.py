"""Finds dates of birth as dateparser does, but searches only near words such as born."""

import copy
import datetime
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from dateparser.conf import apply_settings
from dateparser.date import DateData, DateDataParser
from dateparser.languages.loader import LocaleDataLoader
from dateparser.search.search import _ExactLanguageSearch, _trim_connectors
from dateparser.utils import normalize_unicode
from scrubadub.filth import Filth

from phf_ray.errors import DataError
from phf_ray.scorers.pii_date_forms import UNSURE, PlainDates
from phf_ray.scorers.pii_date_search import with_fast_search
from phf_ray.scorers.pii_reference import (
    CONTEXT_WORDS,
    LINES_AFTER,
    LINES_BEFORE,
    DateOfBirthDetector,
    DateOfBirthFilth,
    date_settings,
    is_adult_birth_year,
)


class DateOfBirth(DateOfBirthDetector):
    """Searches for dates of birth only in texts with a context word, and only in sentences that can hold one."""

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        for found in dict.fromkeys(self.birth_dates(text)):
            if not _search(self._reference_date).is_birth_date(found):
                continue
            for match in re.finditer(re.escape(found), text):
                yield CheckedDateOfBirthFilth(
                    match=match, detector_name=self.name, document_name=document_name, locale=self.locale
                )

    def birth_dates(self, text: str) -> Iterator[str]:
        if self.is_context(text):
            lines = context_lines(text.split("\n"), self.is_context)
            yield from _search(self._reference_date).birth_dates(text, lines)

    def is_context(self, text: str) -> bool:
        """Whether the text has a context word. No context word holds a line break."""
        lowered = text.lower()
        return any(word in lowered for word in CONTEXT_WORDS)


def context_lines(lines: list[str], is_context: Callable[[str], bool]) -> str:
    """Return the lines near a context word, joined by line breaks.

    A date has no line break, so it is near a context word exactly if one of these lines holds it.
    """
    near: set[int] = set()
    for index, line in enumerate(lines):
        if is_context(line):
            near.update(range(index - LINES_AFTER, index + LINES_BEFORE + 1))
    return "\n".join(lines[index] for index in sorted(near) if 0 <= index < len(lines))


class OverlongSentenceError(DataError):
    """A sentence is too long to search: dateparser's time grows with the square of its length."""


class TooManyNumbersError(DataError):
    """Too many numbers can be dates: dateparser takes milliseconds for each."""


_MAX_SENTENCE_CHARS = 20_000
_MAX_NUMBERS = 2_000
# Strings whose dates dateparser has read.
_MAX_REMEMBERED = 20_000


class _DateSearch:
    """Runs dateparser's search for English dates on relevant sentences only, and caches parsed strings.

    With RELATIVE_BASE set, dateparser treats each sentence of a text and each string independently. There is one
    exception: if another date follows, it cuts a trailing `and` off the first.
    """

    def __init__(self, reference_date: datetime.date):
        self._reference_date = reference_date
        self._settings = _as_settings(settings=date_settings(reference_date))
        self._search = _ExactLanguageSearch(LocaleDataLoader())
        self._locale = with_fast_search(self._search.get_current_language("en"), self._settings)
        self._skipped = {word.lower() for word in self._locale.info["skip"]}
        self._first_words = {entry.split(" ")[0] for entry in self._locale._get_dictionary(settings=self._settings)}
        self._parser = DateDataParser(languages=["en"], settings=self._settings)
        self._plain = PlainDates(reference_date, self._locale)
        self._slow_date = lru_cache(maxsize=_MAX_REMEMBERED)(self._parser.get_date_data)
        self._parser.get_date_data = self._date_data

    def birth_dates(self, text: str, context: str) -> Iterator[str]:
        """Yield the strings that `search_dates` finds in the text and that are dates of birth in the context."""
        sentences = list(self._locale._sentence_split(text, settings=self._settings))
        relevant = [sentence for sentence in sentences if _is_relevant(sentence, context)]
        longest = max(map(len, relevant), default=0)
        # DIFFERS: phf-ray gives no score to a text with a sentence of over 20,000 characters that has numbers near a
        # word such as born; the original searches it for dates in time quadratic in its length.
        if longest > _MAX_SENTENCE_CHARS:
            raise OverlongSentenceError(
                f"a sentence of {longest} characters has numbers near a word such as born; "
                f"dates are searched only in sentences of at most {_MAX_SENTENCE_CHARS}"
            )
        found = self._dates_in(relevant, is_relevant=self._has_birth_year)
        if any(self._may_be_trimmed(string, text, context) for string, date in found if self._is_birth(date)):
            found = self._dates_in(sentences, is_relevant=None)
            strings = _trim_connectors(text, [string for string, _ in found], self._skipped)
            found = list(zip(strings, [date for _, date in found], strict=True))
        for string, date in found:
            # An empty string has no place in the text. A string that begins with a plus is usually a phone number.
            if self._is_birth(date) and string and not string.startswith("+") and string in context:
                yield string

    def _date_data(self, string: str) -> DateData:
        date = self._plain.read(string)
        return self._slow_date(string) if date is UNSURE else DateData(date_obj=date, period="day")

    def _is_one_piece_without_date(self, chunk: str) -> bool:
        """Whether dateparser reads no date in a chunk that it can't split into parts to read them instead."""
        return _SPLITTER.search(chunk) is None and self._plain.read(chunk) is None

    def is_birth_date(self, string: str) -> bool:
        """Whether the string on its own, in any language, is an adult's date of birth."""
        # A plain form is tried first in English, and read in it.
        date = self._plain.read_date(string)
        if isinstance(date, datetime.datetime):
            return self._is_birth(date)
        return _parses_to_birth_date(string, self._reference_date)

    def _has_birth_year(self, chunk: str) -> bool:
        return _has_birth_year(chunk, self._reference_date)

    def _is_birth(self, date: datetime.datetime) -> bool:
        return is_adult_birth_year(date.year, self._reference_date)

    def _dates_in(
        self, sentences: list[str], *, is_relevant: Callable[[str], bool] | None
    ) -> list[tuple[str, datetime.datetime]]:
        """Return the dates in all chunks of the sentences, or in those whose translation `is_relevant` accepts."""
        locale = copy.copy(self._locale)
        # Do not split again: whether a full stop ends a sentence depends on the text before, which is missing here.
        locale._sentence_split = lambda *_, **__: sentences
        chunks = zip(*locale.translate_search("", settings=self._settings), strict=True)
        relevant = [
            (translated, original) for translated, original in chunks if is_relevant is None or is_relevant(translated)
        ]
        # Parsed strings are cached, so only different ones count.
        num_numbers = sum(len(_DIGITS.findall(chunk)) for chunk in {chunk for chunk, _ in relevant})
        # DIFFERS: phf-ray gives no score to a text with more than 2,000 numbers that can be dates near a word such as
        # born; the original needs minutes for it.
        if num_numbers > _MAX_NUMBERS:
            raise TooManyNumbersError(
                f"{num_numbers} numbers near a word such as born can be dates; at most {_MAX_NUMBERS} are searched"
            )
        relevant = [chunks for chunks in relevant if not self._is_one_piece_without_date(chunks[0])]
        translated = [chunk for chunk, _ in relevant]
        parsed, strings = self._search.parse_found_objects(
            parser=self._parser,
            to_parse=translated,
            original=[chunk for _, chunk in relevant],
            translated=translated,
            settings=self._settings,
            language=self._locale,
        )
        return [(string, date["date_obj"]) for string, (date, _) in zip(strings, parsed, strict=True)]

    def _may_be_trimmed(self, string: str, text: str, context: str) -> bool:
        """Whether dateparser could cut the last word off the string and leave a rest that stands in the context.

        dateparser cuts off a skipped word if another date follows.
        """
        words = string.split(" ")
        while words and words[-1].lower() in self._skipped:
            words.pop()
        if not words or len(words) == string.count(" ") + 1 or " ".join(words) not in context:
            return False
        for match in re.finditer(re.escape(string) + r"[ (\[{\"']*(\S*)", text):
            word = match[1].lower().strip(".,:;()[]{}\"'-")
            if not word.isascii() or not word.isalpha() or word in self._first_words:
                return True
        return False


def _is_relevant(sentence: str, context: str) -> bool:
    """Whether a sentence can hold a birth date that also stands in the context.

    dateparser reads digits, number words and words for spans of time, and every string that it reports has one. The
    exception: if dateparser's rewriting changes the number of words in a sentence, it can report the wrong words.
    """
    plain = sentence if sentence.isascii() else normalize_unicode(sentence)
    numbers = _NUMBER.findall(plain)
    if not numbers or (len(numbers) == 1 and _SMALL_NUMBER.fullmatch(numbers[0])):
        return False
    if plain is not sentence or sentence in context or _REWRITTEN.search(sentence):
        return True
    return any(number in context for number in numbers)


def _has_birth_year(chunk: str, reference_date: datetime.date) -> bool:
    """Whether dateparser can read a birth year in a chunk, in which number words are already digits.

    In a chunk that counts no span of time, one number is a year only if it has four digits or lies outside 1 to 68
    (1969 to 2068). Two numbers up to 31 hold a year only next to a month. A number up to 31 next to a four-digit number
    is not a year.
    """
    numbers = _DIGITS.findall(chunk)
    if len(numbers) not in (1, 2) or _SPAN.search(chunk) or reference_date.year > _LAST_REFERENCE_YEAR:
        return bool(numbers)
    num_days = sum(len(number) < 3 and 0 < int(number) < 32 for number in numbers)
    num_other_years = sum(
        len(number) == 4 and not is_adult_birth_year(int(number), reference_date) for number in numbers
    )
    if len(numbers) == 1:
        return not num_other_years and (len(numbers[0]) > 2 or not 0 < int(numbers[0]) < 69)
    if num_days == 2:
        return _MONTH.search(chunk) is not None
    return not (num_days and num_other_years)


@lru_cache(maxsize=8)
def _search(reference_date: datetime.date) -> _DateSearch:
    return _DateSearch(reference_date)


@apply_settings
def _as_settings(settings: Any = None) -> Any:
    return settings


# What dateparser splits chunks at.
_SPLITTER = re.compile("[\\s,\u060c\u2014\u2013.]")
_DIGITS = re.compile(r"\d+")
_SMALL_NUMBER = re.compile(r"an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve", re.IGNORECASE)
_NUMBER = re.compile(
    rf"\d+|centur|decade|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    rf"|\b(?:{_SMALL_NUMBER.pattern})\b",
    re.IGNORECASE,
)
# Thousands of days add up to years; thousands of hours do not.
_SPAN = re.compile(r"y(?:ea)?rs?|\by\b|decade|centur|month|week|wk|fortnight|\d(?:y|w|mos?)\b|\d{4}\W*d(?:ays?)?\b")
_MONTH = re.compile("jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec")
# In later years, the numbers from 32 can be birth years of adults.
_LAST_REFERENCE_YEAR = 2049
# Text that dateparser rewrites with a different number of words.
_REWRITTEN = re.compile(
    r"noon|midnight|tonight|in the|hours|from\s+now|less than|\d\s*mons?|\dh|(?:st|nd|rd|th) day"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty",
    re.IGNORECASE,
)


class CheckedDateOfBirthFilth(Filth):
    """A date of birth that has already been validated."""

    type = "date_of_birth"


@lru_cache(maxsize=_MAX_REMEMBERED)
def _parses_to_birth_date(found: str, reference_date: datetime.date) -> bool:
    """Whether the string on its own, in any language, is an adult's date of birth."""
    return DateOfBirthFilth(beg=0, end=len(found), text=found, reference_date=reference_date).is_valid()
