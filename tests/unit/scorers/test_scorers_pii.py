import datetime
import functools
import json
import pydoc_data.topics
import random
import re
import time

import places
import pyap.source_US.data
import pytest
import textblob
from hypothesis import given, settings
from hypothesis import strategies as st
from pii_texts import texts_with_personal_data
from scrubadub.detectors import SkypeDetector

from phf_ray.errors import ConfigError
from phf_ray.records import Scored, Span
from phf_ray.scorers.base import FindsSpans
from phf_ray.scorers.build import build_scorer
from phf_ray.scorers.pii_addresses import _ADDRESS, Address
from phf_ray.scorers.pii_detectors import (
    DriversLicence,
    NationalInsuranceNumber,
    Skype,
    TaxReferenceNumber,
    fast_scrubber,
)
from phf_ray.scorers.pii_reference import AddressDetector, reference_scrubber
from phf_ray.scorers.pii_words import is_likely_word

SCORER = build_scorer({"class_name": "PIIScorer", "mode": "paper"})
GOLDEN = json.loads((places.GOLDEN / "pii.json").read_text(encoding="utf-8"))


def test_scores_and_spans_equal_those_of_the_original():
    for item in GOLDEN["values"]:
        spans = SCORER.spans(item["text"])
        assert [(span.begin, span.end) for span in spans] == [(begin, end) for begin, end, _ in item["spans"]]
        # The original has no detector name where several detections were merged.
        named = [(span, detector) for span, (_, _, detector) in zip(spans, item["spans"], strict=True) if detector]
        assert all(span.type == detector for span, detector in named)
        assert SCORER.score_all([item["text"]]) == [Scored(item["score"])]


def test_the_golden_texts_hold_every_detector_and_clean_texts():
    found = {detector for item in GOLDEN["values"] for _, _, detector in item["spans"]}
    assert found == {
        "address", "credential", "date_of_birth", "email", "phone", "skype", "social_security_number", "twitter", "url",
        None,
    }  # fmt: skip
    assert len(GOLDEN["values"]) >= 120
    assert sum(not item["spans"] for item in GOLDEN["values"]) >= 10


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write to ada@example.org today.", [("email", "ada@example.org")]),
        ("Born on 4 March 1950.", [("date_of_birth", "on 4 March 1950")]),
        ("She came on 4 March 1950.", []),
        ("Born on 4 March 2015.", []),
        ("At 6919 Bell Drives, East Town, MO 76908", [("address", "6919 Bell Drives, East Town, MO 76908")]),
        ("At 12-14 Main Street,\n Hilltown, IL 62701", [("address", "12-14 Main Street,\n Hilltown, IL 62701")]),
        ("At 12\u201314 Main Street, Hilltown, IL 62701", [("address", "12\u201314 Main Street, Hilltown, IL 62701")]),
        ("Coverage: 12 Coverage Street, Springfield, IL 62701", []),
        ("My card: 4012888888881881.", [("credit_card", "4012888888881881")]),
        ("My card: 4012888888881882.", []),
    ],
)  # fmt: skip
def test_a_detection_is_where_it_should_be(text, found):
    assert [(span.type, text[span.begin : span.end]) for span in SCORER.spans(text)] == found
    assert SCORER.score_all([text]) == [Scored(len(found) / len(text))]


def test_detections_that_touch_count_once():
    text = "see http://ada@example.org/x"
    [span] = SCORER.spans(text)
    assert span == Span("email+url", 4, len(text))
    assert SCORER.score_texts([text]) == [1 / len(text)]


def test_ages_and_relative_dates_count_from_the_reference_date():
    text = "He was born 20 years ago"
    later = build_scorer({"class_name": "PIIScorer", "mode": "paper", "reference_date": "2060-01-01"})
    assert [span.type for span in SCORER.spans("Born 1/2/1950")] == ["date_of_birth"]
    assert later.spans("Born 1/2/1950") == []
    assert [span.type for span in later.spans("Born 1/2/2015")] == ["date_of_birth"]
    assert [span.type for span in SCORER.spans(text)] == [span.type for span in later.spans(text)] == ["date_of_birth"]
    assert later.identity() != SCORER.identity()
    assert later.identity().settings["reference_date"] == "2060-01-01"


def test_the_day_of_scoring_does_not_matter(monkeypatch):
    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date(2190, 1, 1)

    monkeypatch.setattr(datetime, "date", Tomorrow)
    assert [span.type for span in SCORER.spans("Born 1/2/1950")] == ["date_of_birth"]


AWKWARD = [
    "a",
    "\n",
    " ",
    "\t\x0c\r\n",
    "\x00",
    "a\x00b born 1/2/1950",
    "\u2028born\u2028 1/2/1950",
    "\u751f\u5e74\u6708\u65e5 1950-01-02 born",
    "\U0001f600 \U0001f468\u200d\U0001f469 born 1950",
    "born " + "(" * 200 + "1950" + ")" * 200,
    "born ((1950",
    '"' * 300 + " born",
    "skype \u0130\u0131\u017f\u212a",
    "born 99999999999999999999 years ago",
    "1" * 3000,
    "@" * 500,
    "born\r\n\r\n4 March 1950",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_has_a_score_or_a_reason(text):
    [scored] = SCORER.score_all([text])
    assert (scored.score is None) != (scored.error is None)
    if scored.score is not None:
        assert scored.score == len(SCORER.spans(text)) / len(text)


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_has_the_detections_of_the_unshortened_detectors(text):
    fast, slow = all_detectors()
    assert spans_of(fast, text) == spans_of(slow, text)


def test_a_text_that_a_detector_gives_up_on_has_the_reason(monkeypatch):
    def give_up(*arguments, **keywords):
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(SCORER._finder._scrubber, "iter_filth", give_up)
    assert SCORER.score_all(["born 1950"]) == [Scored(None, "RecursionError: maximum recursion depth exceeded")]


def test_an_empty_text_has_no_score():
    assert SCORER.score_all([""]) == [Scored(None, "empty: the text has no characters")]


def test_order_and_company_do_not_change_a_score():
    texts = [item["text"] for item in GOLDEN["values"][:20]] + ["", "\ud800"]
    alone = [SCORER.score_all([text])[0] for text in texts]
    assert SCORER.score_all(texts) == alone
    assert SCORER.score_segments(texts[::-1]) == alone[::-1]


@pytest.mark.parametrize(
    "word", ["python", "pyhton", "languag", "example", "Example", "xqzvbn", "paul_kim77", "live.g", "strngs", "aaaaaa"]
)
def test_a_word_is_likely_where_textblob_says_so(word):
    assert is_likely_word(word) == (textblob.Word(word).spellcheck()[0][1] >= 0.5)


def test_a_very_long_word_near_skype_is_unlikely_at_once():
    started = time.process_time()
    assert not is_likely_word("x" * 100_000)
    assert time.process_time() - started < 5


def test_the_scorer_finds_spans_and_says_what_it_is_made_of():
    assert isinstance(SCORER, FindsSpans)
    identity = SCORER.identity()
    assert (identity.name, identity.unit) == ("pii", "detections per character")
    assert {"scrubadub", "pyap", "dateparser", "phonenumbers"} <= set(identity.versions)


def test_a_spacy_model_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no_such_model"):
        build_scorer({"class_name": "PIIScorer", "spacy_model": "no_such_model"})


def entity_scorer(folder, *names, mode="paper"):
    """With a model that knows these persons, and one city."""
    import spacy

    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("entity_ruler")
    patterns = [{"label": "PERSON", "pattern": name} for name in names]
    ruler.add_patterns([*patterns, {"label": "GPE", "pattern": "London"}])
    pipeline.to_disk(folder)
    return build_scorer({"class_name": "PIIScorer", "mode": mode, "spacy_model": str(folder)})


def test_entities_of_a_spacy_model_are_found(tmp_path):
    scorer = entity_scorer(tmp_path / "model", "Ada")
    assert scorer.spans("Ada lives in London.") == [Span("spacy_entity", 0, 3)]
    assert "spacy" in scorer.identity().versions
    assert "spacy" not in SCORER.identity().versions
    strict = entity_scorer(tmp_path / "model", "Ada", mode="strict")
    [span] = strict.spans("Ada lives in London.")
    assert (span.type, span.begin, span.end) == ("spacy_entity", 0, 3)
    assert strict.identity().weights_hash == scorer.identity().weights_hash is not None


def test_another_spacy_model_of_the_same_name_is_another_scorer(tmp_path):
    first, same = (entity_scorer(tmp_path / "model", "Ada").identity() for _ in range(2))
    other = entity_scorer(tmp_path / "model", "Ada", "Grace").identity()
    assert first == same
    assert first.weights_hash != other.weights_hash
    assert SCORER.identity().weights_hash is None


def test_a_text_longer_than_a_spacy_model_takes_is_cut_between_words(tmp_path):
    scorer = entity_scorer(tmp_path / "model", "Ada")
    detector = list(scorer._finder._scrubber._detectors.values())[-1]
    text = "Ada! " + "word " * 220_000 + "Ada: ada@example.org"
    assert len(text) > detector._pipeline.max_length
    spans = scorer.spans(text)
    assert [(span.type, text[span.begin : span.end]) for span in spans] == [
        ("spacy_entity", "Ada"),
        ("spacy_entity", "Ada"),
        ("email", "ada@example.org"),
    ]


def test_a_spacy_model_does_not_keep_the_words_that_it_saw(tmp_path):
    scorer = entity_scorer(tmp_path / "model", "Ada")
    detector = list(scorer._finder._scrubber._detectors.values())[-1]
    known = len(detector._pipeline.vocab.strings)
    scorer.score_texts([f"word{index} other{index}." for index in range(100)])
    assert len(detector._pipeline.vocab.strings) == known


def test_british_addresses_are_found_in_their_locale():
    scorer = build_scorer({"class_name": "PIIScorer", "mode": "paper", "locale": "en_GB"})
    text = "I live at 23 High Street, London, SW1A 1AA."
    assert [span.type for span in scorer.spans(text)] == ["address+postalcode"]


def test_an_unknown_locale_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'en_US', 'en_GB' or 'en_CA'"):
        build_scorer({"class_name": "PIIScorer", "locale": "de_DE"})


REFERENCE_DATE = datetime.date(2026, 11, 20)


def spans_of(scrubber, text):
    """What the scrubber finds, or the kind of error."""
    try:
        found = scrubber.iter_filth(text, run_post_processors=False)
        return sorted((filth.beg, filth.end) for filth in found)
    except Exception as error:  # noqa: BLE001  both must fail in the same way
        return type(error).__name__


@functools.cache
def all_detectors():
    """Fast and unshortened."""
    make = {"locale": "en_US", "reference_date": REFERENCE_DATE}
    return fast_scrubber(**make), reference_scrubber(**make)


def scrubbers(locale):
    """The fast and the unshortened detectors; textblob's spelling, which takes a second a word, is compared above."""
    fast = fast_scrubber(locale=locale, reference_date=REFERENCE_DATE)
    slow = reference_scrubber(locale=locale, reference_date=REFERENCE_DATE)
    for scrubber in (fast, slow):
        scrubber.remove_detector("skype")
    return fast, slow


@pytest.mark.parametrize(("locale", "seed", "count"), [("en_US", 0, 500), ("en_GB", 1, 60), ("en_CA", 2, 60)])
def test_the_fast_detectors_find_what_the_unshortened_ones_do(locale, seed, count):
    fast, slow = scrubbers(locale)
    background = list(pydoc_data.topics.topics.values())
    num_found = 0
    for text in texts_with_personal_data(count, seed=seed, background=background):
        expected = spans_of(slow, text)
        assert spans_of(fast, text) == expected, repr(text)
        num_found += len(expected)
    assert num_found > count / 10


@pytest.mark.parametrize(
    "text",
    [
        # A date far from the word that also stands near it, in one piece or inside another number.
        "In 1950 it rained.\n\n\n\nShe was born in 1950",
        "In 50 BC.\n\n\n\nborn 11950",
        "21 May 1950\n.\n.\n.\nShe was born then, on 1 May 1950, or 21 May 1950",
        # Two lines before, one after, and one line too many.
        "born\n\n1950", "born\n\n\n1950", "1950\nborn", "1950\n\nborn",
        # A skipped word that another date follows is no part of the date.
        "born May 1950 and. 1960", "born 1 May 1950 and ( June 1960", "born in 1950 and on monday",
        # Words for numbers, spans of time, rewritten words.
        "born twenty years ago", "born a century ago", "born one two three", "born 12 noon 1950", "born 3mons 1950",
        "born in the morning of 1 May 1950", "born \u00b9\u2079\u2075\u2070", "born \u0661\u0669\u0665\u0660",
        "born jan. 5 1950", "stillborn on 1/2/50", "Born: '69", "born 07 may 07", "born +1950",
        # Capital letters that are two in lower case.
        "\u0130 born 1 May 1950 in ohio, 12 Main St, Town, Ohio",
        # States inside words, in names and split over lines; routes of any length.
        "12 Main St, Foo NEW YORK", "12 Main St,\nFoo,\n\nNew\nYork", "12 Main St, Foo, New  York 12345-6789 USA",
        "12 Main St Route " + "9" * 500 + ", Foo, TX",
        "x" * 600 + " 12 Main St, Foo, TX", "12 Main St, Foo, IN" + "DIANA",
        "one hundred and twenty two Oak Ave, Floor 3 Building 5 Suite 5 P.O. Box 12, Foo, rhode island",
        "12 Main St,\n\n\n\n\n\n\nFoo,\n\n\n\n\n\nTX", "12 Main Coverage St, Foo, TX",
        # Phone numbers with fewer than ten digits.
        "310-1234", "call 3104920 now", "+44 20 12", "011 49 30 12", "(212) 555-018", "\uff0b44 20 7946 0958",
    ],
)  # fmt: skip
def test_hard_texts_have_the_same_detections(text):
    fast, slow = scrubbers("en_US")
    assert spans_of(fast, text) == spans_of(slow, text)


PIECES = [
    "born", "Born:", "birth", "1950", "1/2/1950", "19", "50", "May", "4 March 1950", "years ago", "20", "twenty", "and",
    "on", " ", "\n", "\n\n", "\r\n", "\u2028", ".", ",", "(", "\x00", "\u0130", "\u0661\u0669", "ada@example.org",
    "@ada", "http://a.b/c", "www.", "078-05-1120", "4012888888881881", "login: ada", "password: x", "+44 20 7946 0958",
    "(212) 555-0187", "call", "12 Main St", "Foo", "TX", "New\nYork", "62701",
]  # fmt: skip


def test_any_text_has_the_detections_of_the_unshortened_detectors():
    fast, slow = scrubbers("en_US")
    num_found = 0

    @given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=4, max_size=14), st.sampled_from(["", " "]))
    @settings(max_examples=300, derandomize=True)
    def compare(pieces, between):
        nonlocal num_found
        text = between.join(pieces)
        expected = spans_of(slow, text)
        assert spans_of(fast, text) == expected
        num_found += len(expected) if isinstance(expected, list) else 0

    compare()
    assert num_found > 50


@pytest.mark.parametrize("unit", ["d", "day", "w", "wk", "week", "mo", "month", "h", "y", "yr", "year"])
def test_spans_of_time_that_come_to_an_adults_age_are_found(unit):
    fast, slow = scrubbers("en_US")
    texts = [
        f"born {number}{space}{unit}{ago}"
        for number in (20, 40, 300, 1200, 8899, 12000, 200000)
        for space in ("", " ")
        for ago in ("", " ago", "s ago")
    ]
    assert [spans_of(fast, text) for text in texts] == [spans_of(slow, text) for text in texts]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "1" * 1_000_000,
        " " * 1_000_000,
        "login" + " " * 1_000_000,
        "\n" * 1_000_000 + "12 Main St, Foo, TX",
        "12 Main St" + "\n" * 1000 + "Foo, TX",
        "skype " + "x" * 1_000_000,
        "a@" * 500_000,
        "word " * 200_000,
    ],
    ids=range(9),
)
@pytest.mark.timeout(300)
def test_a_megabyte_in_one_line_does_not_take_minutes(text):
    started = time.process_time()
    SCORER.score_all([text])
    assert time.process_time() - started < 60


MADE_UP = {
    "street words": lambda size: "1 st IN " * (size // 8),
    "numbers": lambda size: ("1 " * 200 + "IN ") * (size // 403),
    "number words": lambda size: "one two IN " * (size // 11),
    "words near skype": lambda size: "skype xxx " * (size // 10),
    "addresses": lambda size: "".join(f"{index} Main St, Foo, TX {10000 + index}\n" for index in range(size // 25)),
    "one address": lambda size: "12-14 Main St, Foo, TX\n" * (size // 24),
}


@pytest.mark.parametrize("make", MADE_UP.values(), ids=MADE_UP)
def test_a_made_up_text_has_the_detections_of_the_unshortened_detectors(make):
    fast = fast_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    slow = reference_scrubber(locale="en_US", reference_date=REFERENCE_DATE)
    for size in (30, 500, 2500):
        assert spans_of(fast, make(size)) == spans_of(slow, make(size))


def test_user_names_are_those_of_the_original_in_its_order(monkeypatch):
    slowly = textblob.Word.spellcheck
    # textblob takes most of a second for each of them.
    once = functools.cache(lambda text: slowly(textblob.Word(text)))
    monkeypatch.setattr(textblob.Word, "spellcheck", lambda word: once(str(word)))
    fast, slow = Skype(locale="en_US"), SkypeDetector(locale="en_US")
    words = ["skype", "Skype:", "xq_zv7", "xq_zv7_q", "xq.zv7", "skype_q9", "example", "is", "a", ",", "\n"]
    rng = random.Random(0)
    num_found = 0
    for _ in range(300):
        text = " ".join(rng.choices(words, k=rng.randrange(2, 60)))
        found, expected = ([(one.beg, one.end) for one in detector.iter_filth(text)] for detector in (fast, slow))
        assert found == expected, text
        num_found += len(found)
    assert num_found > 300


ADDRESS_WORDS = [
    "1 ", "12", "12-14 ", "12\u201314 ", "one ", "two ", "hundred ", " Main", "st", "ave", "St.", " Springfield", ", ",
    ",", " ", "  ", "\n", "IL", "IN", "Indiana", "IN DIANA", "new york", "New  York", "west virginia", "alaskan",
    "62701", "-1234", " USA", " floor ", "suite 5", "building 5 ", "route 9 ", "P.O. Box 12", "N ", "-", ".", "'", "x",
    "and ", "broadway", "Ct", "guam", "VIrginia", "O'Fallon", "_",
]  # fmt: skip


def test_the_faster_grammar_of_addresses_finds_the_same_parts():
    slow = re.compile(pyap.source_US.data.full_address, re.VERBOSE)
    fast = _ADDRESS
    assert fast.groupindex == slow.groupindex
    rng = random.Random(0)
    num_found = 0
    for _ in range(3000):
        words = [rng.choice(ADDRESS_WORDS) + rng.choice(["", "", " "]) for _ in range(rng.randrange(4, 40))]
        expected = [(match.span(), match.groups()) for match in slow.finditer("".join(words))]
        assert [(match.span(), match.groups()) for match in fast.finditer("".join(words))] == expected, "".join(words)
        num_found += len(expected)
    assert num_found > 100


def test_addresses_are_found_again_where_the_original_finds_them():
    rng = random.Random(0)
    numbers = ["1 ", "12 ", "12-14 ", "12\u201314 ", "one ", "x12 ", "_12 ", "85 1190 ", "\u0661\u0662 ", "and "]
    streets = ["Main St", "Main  St", "5th Ave", "Main-St Rd", "O. Hill Way", "Elm\nSt", "St"]
    cities, states = ["Foo", "St. Louis", "O'Fallon", "Foo-Bar"], ["TX", "Ohio", "New\n York", "IN", "IN 62701"]
    gaps = [", ", " ", ",\n", "\n\n", ",", ", ,", " \n "]
    fast, slow = Address(locale="en_US"), AddressDetector(locale="en_US")
    num_found = 0
    for _ in range(1000):
        parts = [
            rng.choice(numbers) + rng.choice(streets) + rng.choice(gaps) + rng.choice(cities) + rng.choice(gaps)
            + rng.choice(states)
            for _ in range(rng.randrange(1, 5))
        ]  # fmt: skip
        text = "".join(rng.choice(parts) + rng.choice(["", "x", " ", "\n", ". "]) for _ in range(rng.randrange(1, 9)))
        found, expected = ({(one.beg, one.end) for one in detector.iter_filth(text)} for detector in (fast, slow))
        assert found == expected, text
        num_found += len(found)
    assert num_found > 500


BRITISH_NUMBERS = [
    "AB", "QQ", "BG", "jw", "A", "d", "1", "23", "456", "123456", "9", "99", " ", "  ", "\n", "C", "12a", "MORGA",
    "abcd", "-", ".", "x",
]  # fmt: skip


@pytest.mark.parametrize("detector", [DriversLicence, NationalInsuranceNumber, TaxReferenceNumber])
def test_british_numbers_are_those_of_scrubadub(detector):
    rng = random.Random(0)
    fast = detector.region_regex["GB"]
    slow = detector.__base__.region_regex["GB"]
    whole = ["AB 1 2 34\n56 C", "12a 3 4\n5 67  ", "MORGA 65 7054 SM9IJ 35"]
    num_found = 0
    for _ in range(3000):
        text = "".join(rng.choices([*BRITISH_NUMBERS, *whole], k=rng.randrange(1, 25)))
        expected = [match.span() for match in slow.finditer(text)]
        assert [match.span() for match in fast.finditer(text)] == expected, text
        num_found += len(expected)
    assert num_found > 300


PLACES = {
    "en_GB": (
        ["High Street", "Abbey Rd", ".Mill Lane", "Flat 2, Oak House", "Number 3 The Way", "Unit", "PO Box 1"],
        ["London", "St. Ives", "Stoke-on-Trent", "Kent"],
        ["SW1A 1AA", "e1 6an", "KY1-1234", "BFPO 12", "W1A1AA", "M1  1AE, UK", "NP22 3XX, Wales"],
    ),
    "en_CA": (
        ["Main St", "rue Main", "5th Ave", "Queen Street West", "chemin Roy, C.P. 12", "Elm Rd Unit 4"],
        ["Toronto", "St. John", "Trois-Rivi\u00e8res", "Laval"],
        ["ON", "Q.C. H2X 1Y4", "british columbia", "Qu\u00e9bec", "NL A1A 1A1 Canada", "Prince Edward Island"],
    ),
}


@pytest.mark.parametrize("locale", PLACES)
def test_addresses_abroad_are_those_of_pyap(locale):
    streets, cities, ends = PLACES[locale]
    rng = random.Random(0)
    gaps = [", ", " ", ",\n", "\n\n", ",", "\t", ", ,"]
    fast, slow = Address(locale=locale), AddressDetector(locale=locale)
    num_found = 0
    for _ in range(200):
        parts = [
            rng.choice(["12 ", "12-14 ", "12\u201314 ", "one hundred and two ", "", "\u0661\u0662 "])
            + "".join(rng.choice(kind) + rng.choice(gaps) for kind in (streets, cities))
            + rng.choice(ends)
            for _ in range(rng.randrange(1, 3))
        ]
        text = "".join(rng.choice(parts) + rng.choice(["", "x", " ", "\n", ". "]) for _ in range(rng.randrange(1, 6)))
        filler = "word " * rng.choice([0, 0, 200])
        text = filler + text + filler
        found, expected = ({(one.beg, one.end) for one in detector.iter_filth(text)} for detector in (fast, slow))
        assert found == expected, text
        num_found += len(expected)
    assert num_found > 100


SLOW = {
    "blanks": " " * 64_000,
    "line breaks": "\n" * 64_000,
    "blanks between digits": "AB1" + (" " * 12_000 + "2") * 5 + "x",
    "blanks in a tax number": "12a" + (" " * 12_000 + "1") * 4,
    "blanks in a driving licence": "MORGA" + ("1" + " " * 12_000) * 5,
    "numbers after born": "born " + "12 34 " * 10_000,
    "different numbers after born": "born " + " ".join(map(str, range(1, 8000))),
    "addresses on one street": "".join(f"12 Main St, Town {index}, ON, SW1A 1AA\n" for index in range(4000)),
}


@pytest.mark.parametrize("locale", ["en_US", "en_GB", "en_CA"])
@pytest.mark.timeout(300)
def test_long_texts_take_no_minutes_in_any_locale(locale):
    scorer = build_scorer({"class_name": "PIIScorer", "mode": "paper", "locale": locale})
    errors = {}
    for name, text in SLOW.items():
        started = time.process_time()
        [scored] = scorer.score_all([text])
        assert time.process_time() - started < 40, name
        errors[name] = (scored.error or "").partition(":")[0]
    reasons = dict.fromkeys(("numbers after born", "different numbers after born"), "OverlongSentenceError")
    if locale != "en_US":
        reasons["addresses on one street"] = "TooManyAddressesError"
    assert errors == {**dict.fromkeys(SLOW, ""), **reasons}


def test_too_many_numbers_near_born_have_a_reason_at_once():
    sentences = [" ".join(map(str, range(first, first + 200))) for first in range(1, 4000, 200)]
    started = time.process_time()
    [scored] = SCORER.score_all(["born " + ". ".join(sentences)])
    assert scored.error.startswith("TooManyNumbersError: ")
    assert time.process_time() - started < 20


def test_a_list_of_births_is_searched_however_long():
    text = "".join(f"born {1940 + index % 50}\n" for index in range(5000))
    assert SCORER.score_all([text]) == [Scored(5000 / len(text))]


def test_a_sentence_too_long_for_dateparser_has_a_reason():
    [scored] = SCORER.score_all(["born " + "a b " * 250_000])
    assert scored.score is None
    assert scored.error.startswith("OverlongSentenceError: a sentence of 1000005 characters")
