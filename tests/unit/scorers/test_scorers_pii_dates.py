"""Dates that are read without dateparser are those that dateparser reads."""

import datetime
import pydoc_data.topics

import dateparser
import pytest
from date_texts import date_texts
from dateparser.date import DateDataParser
from dateparser.languages.loader import LocaleDataLoader

from phf_ray.scorers.pii_date_forms import UNSURE, PlainDates
from phf_ray.scorers.pii_date_search import required_word, with_fast_search
from phf_ray.scorers.pii_dates import DateOfBirth, _as_settings
from phf_ray.scorers.pii_reference import DateOfBirthDetector, date_settings

REFERENCE_DATE = datetime.date(2026, 11, 20)
ENGLISH = LocaleDataLoader().get_locale("en")
FAST = DateOfBirth(locale="en_US", reference_date=REFERENCE_DATE)
SLOW = DateOfBirthDetector(locale="en_US", reference_date=REFERENCE_DATE)


def by_dateparser(text, reference_date):
    parser = DateDataParser(languages=["en"], settings=_as_settings(settings=date_settings(reference_date)))
    date = parser.get_date_data(text)["date_obj"]
    return None if date is None else date.replace(tzinfo=None)


def births(detector, text):
    # The scrubber asks each detection whether it is valid.
    return [(filth.beg, filth.end) for filth in detector.iter_filth(text) if filth.is_valid()]


# The last day of a month, and of February, are what is missing in a string is filled in from.
@pytest.mark.parametrize(
    ("reference_date", "seed", "count"),
    [(REFERENCE_DATE, 0, 1200), (datetime.date(2024, 2, 29), 1, 400), (datetime.date(2026, 1, 31), 2, 400)],
)
def test_what_is_read_is_what_dateparser_reads(reference_date, seed, count):
    plain = PlainDates(reference_date, ENGLISH)
    num_dates = num_without = 0
    for text in date_texts(count, seed=seed):
        date = plain.read(text)
        if date is not UNSURE:
            assert date == by_dateparser(text, reference_date), repr(text)
            num_dates += date is not None
            num_without += date is None
    assert min(num_dates, num_without) > count / 20


def test_a_date_in_a_plain_form_is_the_same_in_the_search_for_a_language():
    plain = PlainDates(REFERENCE_DATE, ENGLISH)
    dates = {text: plain.read_date(text) for text in date_texts(1000, seed=3)}
    sure = {text: date for text, date in dates.items() if isinstance(date, datetime.datetime)}
    for text, date in sure.items():
        found = dateparser.parse(text, settings=date_settings(REFERENCE_DATE))
        assert found.replace(tzinfo=None) == date, repr(text)
    assert len(sure) > 20


@pytest.mark.parametrize(
    "text",
    [
        # Fractions of a day that dateparser adds or drops: years of two digits, time zones, seconds since 1970.
        "1/2/50", "32/1/1950", "february,00 3147", "10-feb-28-3266", "1994-0400", "12-05-1200", "1234567890",
        # What dateparser drops before it looks at the words.
        "foo on: 1950", "foo o.n: 1950", "1.2.3. uwe", "MCMXCV-x", "1950.", "5: ", "12:30 1950", "1 ago", "60 years",
        "\u0661\u0669\u0668\u0660", "1950\u00a0",
    ],
)  # fmt: skip
def test_what_is_not_certain_is_left_to_dateparser(text):
    assert PlainDates(REFERENCE_DATE, ENGLISH).read(text) is UNSURE


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('dob = "1980-12-16"', "1980-12-16"),
        ('{"dob": "1980-12-16", "ssn": "123-45-6789"}', "1980-12-16"),
        ("Born on 8 August 1966, MRN-1234567", "on 8 August 1966"),
        ("DOB: 10/16/1987", "10/16/1987"),
        ("name,birth date\nAda,1962-02-14", "1962-02-14"),
        ("born In May 1945", "In May 1945"),
    ],
)
def test_plain_dates_of_birth_are_found_without_dateparser(text, found, monkeypatch):
    expected = births(SLOW, text)
    births(FAST, text)

    def refuse(*_, **__):
        raise AssertionError("dateparser was asked")

    monkeypatch.setattr("dateparser.parse", refuse)
    monkeypatch.setattr(DateDataParser, "_parse_using_applicable_locales", refuse)
    unused_before = DateOfBirth(locale="en_US", reference_date=REFERENCE_DATE - datetime.timedelta(days=1))
    spans = births(unused_before, text)
    assert spans == expected
    assert [text[begin:end] for begin, end in spans] == [found]


def test_dates_of_birth_in_random_records_are_those_of_the_unshortened_detector():
    strings = list(date_texts(240, seed=4))
    frames = ('<p dob="{}"/> {}', '{{"dob": "{}", "id": "{}"}}', "{},{}\nborn", "Born {} in {}. And", "DOB: {}\n{}")
    num_found = 0
    for index in range(0, len(strings), 2):
        text = frames[index // 2 % len(frames)].format(strings[index], strings[index + 1])
        expected = births(SLOW, text)
        assert births(FAST, text) == expected, repr(text)
        num_found += len(expected)
    assert num_found > 20


def test_sentences_are_cut_into_the_same_chunks():
    settings = _as_settings(settings=date_settings(REFERENCE_DATE))
    fast = with_fast_search(ENGLISH, settings)
    numbers = "a century ago, twenty-one years later; an 1st day at 5h, 3mons from now, noon, last night, this evening"
    texts = [*date_texts(300, seed=5), numbers, numbers.upper(), numbers.replace(" ", " the ")]
    texts += [text[:3000] for text in list(pydoc_data.topics.topics.values())[::12]]
    for text in texts:
        assert fast.translate_search(text, settings) == ENGLISH.translate_search(text, settings), repr(text)


@pytest.mark.parametrize(
    ("pattern", "word"),
    [
        (r"(\d+)\s*mons?\b", "mon"),
        (r"in the ((?:early )?morning|night)", "the"),
        (r"(?<!\d\s|hundred\s)twenty(?=\s+(?:years|days)\b)", "twenty"),
        (r"(\d+)(?:st|nd)\s+(?:century|fortnight)\b", ""),
        (r"[abc]+d{0,2}", ""),
        ("one|two", ""),
    ],
)
def test_the_word_that_a_pattern_needs(pattern, word):
    assert required_word(pattern) == word
