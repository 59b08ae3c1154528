"""Faster versions of the detectors in `pii_reference`; each finds exactly the same spans.

Every shortcut is either a necessary condition of a detection that is cheap to check, or a faster form of the same
search.
"""

import datetime
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import phonenumbers
import scrubadub
from scrubadub.detectors import (
    CredentialDetector,
    Detector,
    DriversLicenceDetector,
    PhoneDetector,
    SkypeDetector,
)
from scrubadub.detectors.en_GB import NationalInsuranceNumberDetector, TaxReferenceNumberDetector
from scrubadub.filth import Filth, PhoneFilth, SkypeFilth

from phf_ray.scorers.pii_addresses import Address
from phf_ray.scorers.pii_dates import DateOfBirth
from phf_ray.scorers.pii_words import is_likely_word

_SIX_DIGITS = r"(?:\s*+\d){6}\s*+"


def fast_scrubber(*, locale: str, reference_date: datetime.date) -> scrubadub.Scrubber:
    """Build a scrubber that finds what `reference_scrubber` finds."""
    scrubber = scrubadub.Scrubber(locale=locale)
    faster: list[type[Detector]] = [Credential, Phone]
    if locale == "en_GB":
        faster += [DriversLicence, NationalInsuranceNumber, TaxReferenceNumber]
    for detector in faster:
        scrubber.remove_detector(detector.name)
        scrubber.add_detector(detector(locale=locale))
    scrubber.add_detector(DateOfBirth(locale=locale, reference_date=reference_date))
    scrubber.add_detector(Skype(locale=locale))
    scrubber.add_detector(Address(locale=locale))
    return scrubber


class Skype(SkypeDetector):
    """Finds user names near the word skype: tokens that no edit of two letters turns into a single likely word."""

    _tokens = re.compile(SkypeDetector.SKYPE_TOKEN)

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        # Tokens are ASCII, so if one contains the word, the lower-cased text contains it too.
        if "skype" not in text.lower():
            return
        names = list(dict.fromkeys(self._user_names(self._tokens.findall(text))))
        # Names are not escaped, as in the original: a dot in a name matches any character.
        for match in re.compile("|".join(names)).finditer(text) if names else ():
            yield SkypeFilth(match=match, detector_name=self.name, document_name=document_name, locale=self.locale)

    def _user_names(self, tokens: list[str]) -> Iterator[str]:
        seen: set[str] = set()
        for index, token in enumerate(tokens):
            if "skype" not in token.lower():
                continue
            before = tokens[max(index - self.word_radius, 0) : index]
            after = tokens[index + 1 : index + self.word_radius + 1]
            for near in before + after:
                if near in seen:
                    continue
                seen.add(near)
                word = near.lower() if near.isupper() else near
                if self.SKYPE_USERNAME.match(near) and not is_likely_word(word):
                    yield word


class Credential(CredentialDetector):
    """Finds user names with passwords. scrubadub's pattern takes time cubic in the white space after the first word."""

    # Matches the same strings as scrubadub's pattern and prefers the same groups: a name if there is one. It takes the
    # white space before the name whole, because neither the name nor the next word contains any.
    regex = re.compile(
        r"""
        (username|login|u:)
        (?: \s*+ (?: : \s*+ )? (?P<username> [\w\-\.@+]++ ) \s++ | (?: \s*+ : )? \s++ )
        (password|pw|p:) \s*+ :? \s*+ (?P<password> .* )
        """,
        re.MULTILINE | re.VERBOSE | re.IGNORECASE,
    )


class DriversLicence(DriversLicenceDetector):
    """Finds British driving licences. scrubadub's pattern tries all ways to divide white space between two digits."""

    region_regex: ClassVar = {
        "GB": re.compile(rf"[a-zA-Z9]{{5}}{_SIX_DIGITS}[a-zA-Z9]{{2}}\w{{3}}\s?\d{{2}}", re.IGNORECASE)
    }


class NationalInsuranceNumber(NationalInsuranceNumberDetector):
    """Finds British national insurance numbers, without trying all ways to divide the white space."""

    region_regex: ClassVar = {
        "GB": re.compile(
            rf"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]{_SIX_DIGITS}[A-D]", re.IGNORECASE
        )
    }


class TaxReferenceNumber(TaxReferenceNumberDetector):
    """Finds British tax reference numbers, without trying all ways to divide the white space."""

    region_regex: ClassVar = {"GB": re.compile(r"\d{2}\s?[a-zA-Z](?:\s*+\d){5}\s*+", re.IGNORECASE)}


class Phone(PhoneDetector):
    """Finds phone numbers with Google's matcher, but skips candidates with too few digits."""

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        matcher = _NanpMatcher if self.region in ("US", "CA") else phonenumbers.PhoneNumberMatcher
        for match in matcher(text, self.region):
            yield PhoneFilth(
                beg=match.start,
                end=match.end,
                text=match.raw_string,
                detector_name=self.name,
                document_name=document_name,
                locale=self.locale,
            )


class _NanpMatcher(phonenumbers.PhoneNumberMatcher):
    """Requires the ten digits of North America, except for numbers abroad (plus or 011) and Canada's 310-xxxx."""

    def _extract_match(self, candidate: str, offset: int) -> Any:
        if candidate.isascii() and "+" not in candidate:
            digits = _NOT_DIGIT.sub("", candidate)
            if len(digits) < 10 and "011" not in digits and "310" not in digits:
                return None
        return super()._extract_match(candidate, offset)


_NOT_DIGIT = re.compile(r"[^0-9]+")
