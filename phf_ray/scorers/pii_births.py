"""Finds dates of birth for `mode: strict`: whole dates, with day and month, that follow a word such as born."""

import datetime
import re
from collections.abc import Callable, Iterator

from phf_ray.scorers.pii_detection import Detection

MAX_AGE_YEARS = 120


def dates_of_birth(reference_date: datetime.date) -> Callable[[str], Iterator[Detection]]:
    """Return a detector of the birth dates of people who can be alive on the reference date.

    It takes the first date after the word, at most 80 characters later. A year or a month alone is no such date.
    """

    def detector(text: str) -> Iterator[Detection]:
        seen = -1
        for word in _WORD.finditer(text):
            date = _DATE.search(text, word.end(), word.end() + _CHARS_AFTER)
            if date is None or date.start() == seen or _OTHER_EVENT.search(text, word.end(), date.start()):
                continue
            # A label or a form names the date of birth; in a sentence the date can be that of something else.
            is_label = word["label"] is not None or _LABEL_END.fullmatch(text, word.end(), date.start()) is not None
            if word["birth"] is not None and not is_label:
                continue  # a birth order, a place of birth, someone gave birth
            age = reference_date.year - _year(date, reference_date)
            if 0 <= age <= MAX_AGE_YEARS and _is_day(date):
                seen = date.start()
                yield Detection("date_of_birth", *date.span(), 0.95 if is_label else 0.85)

    return detector


def _year(date: re.Match[str], reference_date: datetime.date) -> int:
    year = next(int(date[name]) for name in _YEARS if date[name] is not None)
    if year >= 100:
        return year
    century = reference_date.year // 100 * 100
    return century + year if century + year <= reference_date.year else century - 100 + year


def _is_day(date: re.Match[str]) -> bool:
    """Whether the numbers besides the year can be a day and a month; a month's name is one anyway."""
    numbers = [int(date[name]) for name in (*_DAYS, *_MONTHS) if date[name] is not None]
    return all(1 <= number <= 31 for number in numbers) and (len(numbers) < 2 or min(numbers) <= 12)


_CHARS_AFTER = 80
# A word ends where the next begins: at a character that is no letter, or at a capital letter, as in dateOfBirth.
_WORD = re.compile(
    r"(?:(?<![^\W\d_])|(?<=[a-z])(?=[A-Z]))(?:(?P<label>(?i:dob|d\.o\.b|date[ _]?of[ _]?birth|birth[-_ ]?dates?))"
    r"|(?i:born|(?P<birth>births?)|birthdays?))(?:(?![^\W\d_])|(?<=[a-z])(?=[A-Z]))"
)
_LABEL_END = re.compile(r"[^\w\n]{0,12}(?:\n\s*)?")
# Whose date it is: not the birth's if one of these, or another year, stands between.
_OTHER_EVENT = re.compile(
    r"\b(?:1[0-9]|20)[0-9]{2}\b|\b(?:die[ds]|death|deceased|d\.|married|buried|joined|founded|published|updated|posted|retrieved|released|visit"
    r"|admitted|graduated|since|until|till)\b",
    re.IGNORECASE,
)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_YEARS = ("y1", "y2", "y3", "y4", "y5")
_DAYS = ("d1", "d2", "d3", "d4", "d5")
_MONTHS = ("m1", "m2", "m5")
_DATE = re.compile(
    r"(?<![\w.,/-])(?:"
    r"(?P<y1>[12][0-9]{3})(?P<s1>[-/.])(?P<m1>[0-9]{1,2})(?P=s1)(?P<d1>[0-9]{1,2})"
    r"|(?P<m2>[0-9]{1,2})(?P<s2>[-/.])(?P<d2>[0-9]{1,2})(?P=s2)(?P<y2>[12][0-9]{3}|[0-9]{2})"
    rf"|(?P<d3>[0-9]{{1,2}})(?:st|nd|rd|th)?(?:[ ]+of)?[- ,]*{_MONTH}[- ,]*(?P<y3>[12][0-9]{{3}})"
    rf"|{_MONTH}[- ]*(?P<d4>[0-9]{{1,2}})(?:st|nd|rd|th)?[- ,]+(?P<y4>[12][0-9]{{3}})"
    r"|(?P<y5>(?:19|20)[0-9]{2})(?P<m5>0[1-9]|1[0-2])(?P<d5>[0-3][0-9])"
    r")(?![\w]|[-/.][0-9])",
    re.IGNORECASE,
)
