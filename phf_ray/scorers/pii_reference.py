"""The PII detectors as the original code runs them, without any shortcut.

`phf_ray.scorers.pii` finds the same spans faster; tests and benchmarks compare it with `reference_scrubber`.
"""

import datetime
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dateparser
import pyap
import pyap.source_GB.data
import scrubadub
from dateparser.search import search_dates
from scrubadub.detectors import Detector, PostalCodeDetector, SkypeDetector
from scrubadub.filth import AddressFilth, Filth

LOCALES = ("en_US", "en_GB", "en_CA")

MIN_AGE_YEARS, MAX_AGE_YEARS = 18, 100
CONTEXT_WORDS = ("birth", "born", "dob", "d.o.b.")
LINES_BEFORE, LINES_AFTER = 2, 1
"""A date is a date of birth where one of the words stands at most this many lines before or after its own line."""

# pyap's own pattern for British postal codes misses most of them; the original replaces it in the same way.
pyap.source_GB.data.full_address = r"""
    (?P<full_address>
        {full_street}
        (?: {part_divider} {city} )?
        (?: {part_divider} {region1} )?
        {part_divider}? {postal_code}
        (?: {part_divider} {country} )?
    )
""".format(
    full_street=pyap.source_GB.data.full_street,
    part_divider=pyap.source_GB.data.part_divider,
    city=pyap.source_GB.data.city,
    region1=pyap.source_GB.data.region1,
    country=pyap.source_GB.data.country,
    postal_code=f"(?P<postal_code>{PostalCodeDetector.region_regex['GB'].pattern})",
)


class DateOfBirthFilth(Filth):
    """A date of birth; whether it is one depends on the reference date, not on the day of scoring."""

    type = "date_of_birth"

    def __init__(self, *, reference_date: datetime.date, **kwargs: Any):
        self._reference_date = reference_date
        super().__init__(**kwargs)

    def is_valid(self) -> bool:
        found = dateparser.parse(self.text, settings=date_settings(self._reference_date))
        return found is not None and is_adult_birth_year(found.year, self._reference_date)


class DateOfBirthDetector(Detector):
    """Dates that dateparser finds, of a person of 18 to 100 years, near a word such as `born`."""

    name = "date_of_birth"
    filth_cls = DateOfBirthFilth

    def __init__(self, *, reference_date: datetime.date, **kwargs: Any):
        super().__init__(**kwargs)
        # DIFFERS: ours counts ages and relative dates from a configured date; original from today, so that scores
        # change with the day.
        self._reference_date = reference_date

    @classmethod
    def supported_locale(cls, locale: str) -> bool:
        return locale in LOCALES

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        for found in self.birth_dates(text):
            for match in re.finditer(re.escape(found), text):
                yield DateOfBirthFilth(
                    match=match,
                    reference_date=self._reference_date,
                    detector_name=self.name,
                    document_name=document_name,
                    locale=self.locale,
                )

    def birth_dates(self, text: str) -> Iterator[str]:
        """The strings of the text that are dates of birth, as often as they are found."""
        lines = text.split("\n")
        dates = search_dates(text, languages=["en"], settings=date_settings(self._reference_date)) or []
        for found, date in dates:
            # An empty string is no place in the text, and dates rarely begin with a plus: phone numbers do.
            if not found or found.startswith("+") or not is_adult_birth_year(date.year, self._reference_date):
                continue
            if has_context(found, lines):
                yield found


class AddressDetector(Detector):
    """Addresses by pyap's grammar, without the original's cross-check by libpostal, which it had switched off."""

    name = "address"
    filth_cls = AddressFilth

    @classmethod
    def supported_locale(cls, locale: str) -> bool:
        return locale in LOCALES

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        for address in pyap.parse(text, country=self.region):
            if "coverage" in address.full_address.lower():
                continue
            for match in re.finditer(self.pattern(address.full_address), text):
                yield AddressFilth(
                    match=match, detector_name=self.name, document_name=document_name, locale=self.locale
                )

    def pattern(self, full_address: str) -> str:
        """What the address may look like in the text, whose white space and hyphens pyap has normalised."""
        pattern = re.escape(full_address)
        pattern = pattern.replace(",\\ ", r"\s*([\n,]\s*)+").replace("\\ ", r"\s+")
        # DIFFERS: ours finds addresses with a hyphen; original never does, since it replaces half of an escape.
        pattern = pattern.replace(r"\-", f"[-{HYPHENS}]")
        return rf"\b{pattern}\b"


HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2015"


class SpacyEntityDetector(Detector):
    """Named entities of a spaCy model. scrubadub's own plug-in needs a transformers that no longer installs."""

    name = "spacy_entity"

    def __init__(self, *, model: str, labels: tuple[str, ...], **kwargs: Any):
        import spacy

        super().__init__(**kwargs)
        self._pipeline = spacy.load(model)
        self._labels = frozenset(labels)
        # A piece is what the model takes at once; it ends before white space where there is any.
        most = self._pipeline.max_length
        self._piece = re.compile(rf".{{1,{most}}}(?=\s|\Z)|.{{1,{most}}}", re.DOTALL)
        self.weights_hash = folder_hash(self._pipeline.path)

    @classmethod
    def supported_locale(cls, locale: str) -> bool:
        return locale in LOCALES

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        for piece in self._piece.finditer(text):
            for begin, end in self._entities(piece[0]):
                yield EntityFilth(
                    beg=piece.start() + begin,
                    end=piece.start() + end,
                    text=piece[0][begin:end],
                    detector_name=self.name,
                    document_name=document_name,
                    locale=self.locale,
                )

    def _entities(self, text: str) -> list[tuple[int, int]]:
        # Without the zone spaCy keeps every word that it ever saw.
        with self._pipeline.memory_zone():
            entities = self._pipeline(text).ents
            return [(entity.start_char, entity.end_char) for entity in entities if entity.label_ in self._labels]


class EntityFilth(Filth):
    type = "spacy_entity"


def folder_hash(folder: Path) -> str:
    """sha256 over names and contents of the files of a model."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def reference_scrubber(*, locale: str, reference_date: datetime.date) -> scrubadub.Scrubber:
    """scrubadub's default detectors and the three that the original adds, except for named entities."""
    scrubber = scrubadub.Scrubber(locale=locale)
    scrubber.add_detector(DateOfBirthDetector(locale=locale, reference_date=reference_date))
    scrubber.add_detector(SkypeDetector(locale=locale))
    scrubber.add_detector(AddressDetector(locale=locale))
    return scrubber


def date_settings(reference_date: datetime.date) -> dict[str, Any]:
    return {"RELATIVE_BASE": datetime.datetime.combine(reference_date, datetime.time())}


def is_adult_birth_year(year: int, reference_date: datetime.date) -> bool:
    return MIN_AGE_YEARS <= reference_date.year - year <= MAX_AGE_YEARS


def has_context(found: str, lines: list[str]) -> bool:
    """Whether a context word stands near any line that contains `found`."""
    return any(
        any(
            word in " ".join(lines[max(index - LINES_BEFORE, 0) : index + LINES_AFTER + 1]).lower()
            for word in CONTEXT_WORDS
        )
        for index, line in enumerate(lines)
        if found in line
    )


def texts_with_personal_data(count: int, *, seed: int, background: Sequence[str]) -> Iterator[str]:
    """Texts to compare detectors on: pieces of the background, and in every second text personal data, some of it
    damaged, so that near misses of every kind occur.
    """
    rng = random.Random(seed)
    for number in range(count):
        pieces = [_piece(rng.choice(background), rng) for _ in range(rng.randrange(1, 4))]
        if number % 2:
            positive = "".join(rng.choice(choices) for choices in rng.choice(_POSITIVES))
            for _ in range(rng.randrange(3)):
                place = rng.randrange(len(positive))
                positive = positive[:place] + rng.choice(_DAMAGE) + positive[place + rng.randrange(2) :]
            pieces.insert(rng.randrange(len(pieces) + 1), positive)
        yield rng.choice(_JOINTS).join(pieces)


def _piece(text: str, rng: random.Random) -> str:
    begin = rng.randrange(max(len(text) - 50, 1))
    return text[begin : begin + rng.randrange(20, 300)]


_JOINTS = ("", " ", "\n", "\n\n", ". ", ", ", "\n\n\n\n", "\r\n", "\t")
_DAMAGE = (
    *"0159,.-/:;()'\" +@\n\t",
    "  ",
    " and ",
    "\u2013",
    "\u00bd",
    "\u0661",
    "\u00a0",
    "\u017f",
    "a ",
    "th",
    "\n\n",
    "19",
)
_DAYS = ("4", "04", "12", "31", "1st of", "the 22nd of", "thirty", "two")
_MONTHS = ("March", "may", "Dec.", "September", "feb", "SEP", "Monday")
_YEARS = ("1950", "1926", "2008", "2009", "1925", "50", "'69", "07", "2024", "1999 and", "two thousand")
_STREETS = (
    "Main Street",
    "Oak Ave",
    "St. Johns Rd.",
    "Old Mill Way",
    "5th Ave",
    "Broadway",
    "High St Suite 5",
    "Elm st, Apt. 4",
)
_STATES = ("IL", "New York", "california", "CA 90210", "West  Virginia", "MA 02139-4307", "TX, USA", "Guam", "XX")
_POSITIVES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        (
            "Born ",
            "born on ",
            "Date of birth: ",
            "DOB ",
            "d.o.b. ",
            "birthday:\n",
            "stillborn\n\n",
            "Bought ",
            "adobe ",
        ),
        _DAYS,
        (" ",),
        _MONTHS,
        (" ", ", ", " of "),
        _YEARS,
        ("", " in Ohio", ", aged 5", " and 1960", "\nborn"),
    ),
    (
        ("DOB: ", "born ", "Birth\n\n\n"),
        (
            "06/12/1950",
            "1950-06-12",
            "12.06.50",
            "6-12-07",
            "19500612",
            "twenty years ago",
            "two decades ago",
            "last century",
            "30 y ago",
            "a century before",
            "one two three",
            "1/2/3",
            "-58.5 06 Mar 2009",
        ),
        (" ", ". 1950", "\n"),
    ),
    (
        ("He is from 1950. ", "In 1950\n"),
        ("text\n", "text. "),
        ("\n", "\n\n\n"),
        ("She was born in 1950", "born 11950"),
    ),
    (
        ("Lives at ", "At\n", "", "and "),
        ("12 ", "12-14 ", "1022 ", "One thousand ", "85 1190 ", "7", "and "),
        _STREETS,
        (", ", " ", "\n", ",\n\n ", ". "),
        ("Springfield", "St. Louis", "New York", "Coverage", "O'Fallon"),
        (", ", " ", "\n"),
        _STATES,
    ),
    (
        ("Call ", "Tel:", "(", "+"),
        (
            "1-800-555-0199",
            "(212) 555-0187",
            "212.555.0187",
            "+44 20 7946 0958",
            "310-1234",
            "555-0187",
            "011 49 30 901820",
            "2012-01-02 08:00",
            "20 7946 0958",
            "49 30 12",
            "1 (650) 253 0000 ext. 12",
        ),
        (" now", "", ")"),
    ),
    (
        ("Skype: ", "my skype is ", "SKYPE name "),
        ("ada.lovelace", "live:ada", "babbage_1", "engine", "grace-h"),
        (" ok", ", call", ""),
    ),
    (
        ("mail ", "<"),
        ("ada@example.org", "ada at example dot org", "@ada_l", "http://www.example.org/a?b=c", "www.example.org"),
        (">", " "),
    ),
    (
        ("login: ada ", "username ada\n", "u: ada "),
        ("password: engine", "pw engine", "p: engine 1"),
        ("", "\n", " SSN 078-05-1120"),
    ),
    (
        ("card 4012888888881881", "card 378282246310005", " 4012888888881882"),
        (" ", "\n"),
        ("SSN 219-09-9999", "219 09 9999", "000-00-0000"),
    ),
)
