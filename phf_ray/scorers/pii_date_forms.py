"""Reads the plain forms of dates that dateparser reads, and knows most strings in which it reads none.

For ISO dates, m/d/y, years and dates with an English month, in a twentieth of the time. Everything that is not certain
is left to dateparser.
"""

import calendar
import datetime
import enum
import re
from collections.abc import Iterable

from dateparser.languages.locale import Locale
from dateparser.timezones import timezone_info_list


class Unsure(enum.Enum):
    UNSURE = "unsure"


UNSURE = Unsure.UNSURE


class PlainDates:
    """Reads what `DateDataParser(languages=["en"])` reads, with a reference date as RELATIVE_BASE, month before day."""

    def __init__(self, reference_date: datetime.date, locale: Locale):
        self._reference_date = reference_date
        self._months = {
            word: month for month, name in enumerate(_MONTHS, start=1) for word in map(str.lower, locale.info[name])
        }
        self._known_words = known_words(locale)
        self._named = _named_form(self._months)

    def read(self, text: str) -> datetime.datetime | Unsure | None:
        """Return what dateparser returns: a date and time without a zone, or None if it reads no date."""
        # dateparser, too, reads a dash as a hyphen.
        text = text.replace("\u2013", "-")
        if _PRINTABLE.fullmatch(text) is None:
            return UNSURE
        if _LETTER.search(text) is None:
            return self._read_numbers(text)
        date = self.read_date(text)
        return None if date is UNSURE and self._has_unknown_word(text) else date

    def read_date(self, text: str) -> datetime.datetime | Unsure | None:
        """Like `read`, but sure only of strings that have the form of a date."""
        if match := _ISO.fullmatch(text):
            return self._month_and_day(match[1], int(match[2]), int(match[3]))
        if match := _ISO_WITH_TIME.fullmatch(text):
            date = self._month_and_day(match[1], int(match[2]), int(match[3]))
            time = datetime.time(int(match[4]), int(match[5]), int(match[6] or 0))
            return UNSURE if date is None else datetime.datetime.combine(date, time)
        if match := _AMERICAN.fullmatch(text):
            first, second = int(match[1]), int(match[2])
            # What is neither a month nor a day can be a year of two digits. And a year up to 1400 can be a time zone.
            if not 1 <= first <= 31 or not 1 <= second <= 31 or int(match[3]) < _FIRST_YEAR:
                return UNSURE
            return self._month_and_day(match[3], first, second)
        if match := _YEAR.fullmatch(text):
            return self._date(match[1], None, None)
        if match := _YEAR_AND_MONTH.fullmatch(text):
            return self._date(match[1] or match[4], int(match[2] or match[3]), None)
        if match := self._named.fullmatch(text):
            if match["day_before"] and match["day_after"]:
                return UNSURE
            day = match["day_before"] or match["day_after"]
            return self._date(match["year"], self._months[match["month"].lower()], None if day is None else int(day))
        return UNSURE

    def _month_and_day(self, year: str, first: int, second: int) -> datetime.datetime | None:
        """The first number that can be a month is one, so 13/12 is 13 December."""
        if 1 <= first <= 12 and 1 <= second <= 31:
            return self._date(year, first, second)
        if 13 <= first <= 31 and 1 <= second <= 12:
            return self._date(year, second, first)
        return None

    def _date(self, year: str, month: int | None, day: int | None) -> datetime.datetime | None:
        """What the string does not name is that of the reference date, or the last day of a month that is too short."""
        month = self._reference_date.month if month is None else month
        last = calendar.monthrange(int(year), month)[1]
        if day is None:
            day = min(self._reference_date.day, last)
        return datetime.datetime(int(year), month, day) if 1 <= day <= last else None

    def _read_numbers(self, text: str) -> datetime.datetime | Unsure | None:
        """Read a string without letters."""
        if _NO_TIME.match(text):
            return None
        text = text.rstrip(":")
        if ":" in text or _TIMESTAMP.fullmatch(text):
            return UNSURE
        date = self.read_date(text)
        if date is not UNSURE:
            return date
        numbers = _NUMBER.findall(text)
        # A number of three digits or more than four is no part of a date.
        if any(len(number) == 3 or len(number) > 4 for number in numbers):
            return None
        # Nor is a second year; up to 1400, it can be a time zone.
        years = [int(number) for number in numbers if len(number) == 4]
        return None if len(years) > 1 and min(years) >= _FIRST_YEAR else UNSURE

    def _has_unknown_word(self, text: str) -> bool:
        """Whether a word in the string is one that dateparser has no use for; then it reads no date in the string."""
        # dateparser drops full stops after letters, then everything up to `on:`, and a u after three numbers.
        plain = text.replace(".", "")
        if _UPPER.search(text) or "on:" in plain or ". u" in text:
            return False
        return not self._known_words.issuperset(_WORD.findall(plain))


def known_words(locale: Locale) -> frozenset[str]:
    """Return all words that mean something to dateparser in a language, in lower case, and a few that do not.

    Those of its dictionary, of the patterns that it replaces or takes as relative dates, time zones and quarters.
    """
    info = locale.info
    words = {"q"}
    patterns = [pattern for rule in info["simplifications"] for pattern in (*rule, *map(str, rule.values()))]
    for relative in info["relative-type-regex"].values():
        patterns += relative
    patterns += [name for zones in timezone_info_list for name, _ in zones["timezones"]]
    for entries in info.values():
        patterns += _strings(entries)
    patterns += _ALWAYS_KNOWN
    for pattern in patterns:
        # An s with a question mark can be missing.
        for word in _WORD.findall(_ESCAPE.sub(" ", pattern.lower())):
            words |= {word, word[:-1]}
    return frozenset(words)


def _strings(entries: object) -> Iterable[str]:
    """Yield the strings in nested lists and dictionaries, keys included."""
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, dict):
        for key, value in entries.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(entries, list):
        for value in entries:
            yield from _strings(value)


_MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
    "december",
)
# What dateparser takes without a word for it in the language.
_ALWAYS_KNOWN = ("am", "pm", "utc", "gmt", "z", "t", "early_morning", "morning", "afternoon", "evening", "night")
_FIRST_YEAR = 1500
_PRINTABLE = re.compile("[ -~]+")
_LETTER = re.compile("[A-Za-z]")
_UPPER = re.compile("[A-Z]")
_WORD = re.compile("[a-z]+")
_NUMBER = re.compile("[0-9]+")
_ESCAPE = re.compile(r"\\[a-z]")
# Seconds, milliseconds or microseconds since 1970.
_TIMESTAMP = re.compile(r" *[0-9]{10}(?:[0-9]{3}){0,2}(?:\..*| *)")
# The first colon makes a time, and this one is none.
_NO_TIME = re.compile("[^:.]*[0-9]: +[0-9]")

# Punctuation that dateparser drops, and words that it skips. Next to other punctuation, they can mean something else.
_DROPPED = r"[ \"'(){}\[\],;<>|=*#$%&!?@^`~]"
_ALONE = r"(?<![\w.:+/-])(?:{})(?![\w.:+/-])"
_SKIPPED = rf"(?:{_DROPPED}|{_ALONE.format('about|and|at|by|from|of|on|the')})*+"
_BEFORE = rf"{_SKIPPED}(?:{_ALONE.format('in')}{_SKIPPED})?"


def _form(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"{_BEFORE}(?:{pattern}){_SKIPPED}", re.IGNORECASE | re.ASCII)


def _named_form(months: Iterable[str]) -> re.Pattern[str]:
    month = "|".join(sorted(months, key=len, reverse=True))
    # What is no day can be a year of two digits.
    day, between = r"(?:0?[1-9]|[12]\d|3[01]))(?:st|nd|rd|th)?", "(?:[ ,]+|-|/)"
    return _form(
        rf"(?:(?P<day_before>{day}{between})?(?P<month>{month})(?:{between}(?P<day_after>{day})?{between}"
        r"(?P<year>[1-9]\d{3})"
    )


# A year and two more numbers, in the order of a date that begins with the year, and one that begins with the month.
_ISO = _form(r"([1-9]\d{3})[-/](\d\d?)[-/](\d\d?)")
_ISO_WITH_TIME = _form(r"([1-9]\d{3})-(\d\d)-(\d\d)(?: |t)([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?z?")
_AMERICAN = _form(r"(\d\d?)[-/](\d\d?)[-/]([1-9]\d{3})")
_YEAR = _form(r"([1-9]\d{3})")
_YEAR_AND_MONTH = _form(r"([1-9]\d{3})[ ,]+(0?[1-9]|1[0-2])|(0?[1-9]|1[0-2])[ ,]+([1-9]\d{3})")
