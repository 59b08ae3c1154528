"""The PII detectors as the original code runs them, without shortcuts.

`phf_ray.scorers.pii` finds the same spans faster. Tests and benchmarks compare it with `reference_scrubber`.
"""

import datetime
import hashlib
import re
from collections.abc import Iterator
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
"""A date is a date of birth if a context word stands at most this many lines before or after its line."""

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
    """A date of birth, validated against the reference date, not the day of scoring."""

    type = "date_of_birth"

    def __init__(self, *, reference_date: datetime.date, **kwargs: Any):
        self._reference_date = reference_date
        super().__init__(**kwargs)

    def is_valid(self) -> bool:
        found = dateparser.parse(self.text, settings=date_settings(self._reference_date))
        return found is not None and is_adult_birth_year(found.year, self._reference_date)


class DateOfBirthDetector(Detector):
    """Finds dates by dateparser that make a person 18 to 100 years old and stand near a word such as `born`."""

    name = "date_of_birth"
    filth_cls = DateOfBirthFilth

    def __init__(self, *, reference_date: datetime.date, **kwargs: Any):
        super().__init__(**kwargs)
        # DIFFERS: phf-ray counts ages and relative dates from a configured date; the original counts from today, so its
        # scores change with the day.
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
        """Yield the strings in the text that are dates of birth, once for each time that dateparser finds them."""
        lines = text.split("\n")
        dates = search_dates(text, languages=["en"], settings=date_settings(self._reference_date)) or []
        for found, date in dates:
            # An empty string has no place in the text. A string that begins with a plus is usually a phone number.
            if not found or found.startswith("+") or not is_adult_birth_year(date.year, self._reference_date):
                continue
            if has_context(found, lines):
                yield found


class AddressDetector(Detector):
    """Finds addresses with pyap's grammar. The original has a cross-check by libpostal but switched it off."""

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
        """Return a pattern of the address in the original text: pyap has normalised its white space and hyphens."""
        pattern = re.escape(full_address)
        pattern = pattern.replace(",\\ ", r"\s*([\n,]\s*)+").replace("\\ ", r"\s+")
        # DIFFERS: phf-ray finds addresses with a hyphen; the original never does, because it replaces half of an escape
        #
        pattern = pattern.replace(r"\-", f"[-{HYPHENS}]")
        return rf"\b{pattern}\b"


HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2015"


class SpacyEntityDetector(Detector):
    """Finds named entities with a spaCy model. scrubadub's own plug-in needs a transformers that no longer installs."""

    name = "spacy_entity"

    def __init__(self, *, model: str, labels: tuple[str, ...], **kwargs: Any):
        import spacy

        super().__init__(**kwargs)
        self._pipeline = spacy.load(model)
        self._labels = frozenset(labels)
        # A piece is as long as the model accepts, and ends before white space if there is any.
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
        # Without the memory zone, spaCy keeps every word that it has ever seen.
        with self._pipeline.memory_zone():
            entities = self._pipeline(text).ents
            return [(entity.start_char, entity.end_char) for entity in entities if entity.label_ in self._labels]


class EntityFilth(Filth):
    type = "spacy_entity"


def folder_hash(folder: Path) -> str:
    """Return the sha256 over names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def reference_scrubber(*, locale: str, reference_date: datetime.date) -> scrubadub.Scrubber:
    """Build a scrubber with scrubadub's default detectors and those that the original adds, except named entities."""
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
