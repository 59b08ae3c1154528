"""The detectors of `mode: strict`: what scrubadub's miss because of what stands around it, and IP addresses.

With these detectors, a piece of personal data is found wherever in a segment it stands.
"""

import ipaddress
import itertools
import re
from collections.abc import Iterator

from scrubadub.detectors import CreditCardDetector, Detector, EmailDetector
from scrubadub.filth import CreditCardFilth, EmailFilth, Filth

from phf_ray.scorers.folding import MARKS
from phf_ray.scorers.pii_dates import DateOfBirth

LOCALES = ("en_US", "en_GB", "en_CA")


class CreditCard(CreditCardDetector):
    """Finds card numbers of the brands that scrubadub knows, without separators or in the groups of the card.

    scrubadub asks for white space before a number, and finds none at the beginning of a text or in groups.
    """

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        for match in _CARD.finditer(text):
            if not _BRAND.fullmatch(_SEPARATOR.sub("", match[0])):
                continue
            filth = CreditCardFilth(
                match=match, detector_name=self.name, document_name=document_name, locale=self.locale
            )
            # The check digit by Luhn's algorithm.
            if filth.is_valid():
                yield filth


class DateOfBirthNearWord(DateOfBirth):
    """Finds dates of birth near whole words: the paper's search finds `dob` in Adobe and `born` in airborne."""

    def is_context(self, text: str) -> bool:
        return _BIRTH.search(text) is not None


class Email(EmailDetector):
    """Also finds addresses with letters outside ASCII, before the @ or in the domain."""

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        yield from super().iter_filth(text, document_name=document_name)
        for match in _EMAIL.finditer(text) if not text.isascii() else ():
            yield EmailFilth(match=match, detector_name=self.name, document_name=document_name, locale=self.locale)


class IpAddressFilth(Filth):
    type = "ip_address"


class IpAddress(Detector):
    """Finds IPv4 and IPv6 addresses, except those that name no other machine: loopback and unspecified ones."""

    name = "ip_address"
    filth_cls = IpAddressFilth

    @classmethod
    def supported_locale(cls, locale: str) -> bool:
        return locale in LOCALES

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        for match in itertools.chain(_IPV4.finditer(text), _IPV6.finditer(text)):
            if _names_a_machine(match[0]):
                yield IpAddressFilth(
                    match=match, detector_name=self.name, document_name=document_name, locale=self.locale
                )


def _names_a_machine(candidate: str) -> bool:
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


_SEPARATOR = re.compile("[ \u00a0\u202f-]")
_S = _SEPARATOR.pattern
# A number is part of another one after a digit, after the point of a fraction, and after a group of four in hyphens.
_CARD = re.compile(
    rf"(?<![0-9])(?<![0-9]\.)(?<![0-9]{{4}}-)(?:[0-9]{{13,16}}"
    rf"|[0-9]{{4}}({_S})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}|[0-9]{{4}}({_S})[0-9]{{6}}\2[0-9]{{4,5}})(?![0-9])(?!-[0-9]{{4}})"
)
_BRAND = re.compile(CreditCardDetector.regex.pattern.removeprefix(r"(?<=\s)"), re.VERBOSE)

# A word ends where the next begins: at a character that is no letter, or at a capital letter, as in dateOfBirth.
_BIRTH = re.compile(
    r"(?:(?<![^\W\d_])|(?<=[a-z])(?=[A-Z]))(?i:born|births?|birth[- ]?(?:days?|dates?)|dob|d\.o\.b)"
    r"(?:(?![^\W\d_])|(?<=[a-z])(?=[A-Z]))"
)

_LETTER = rf"[\w{MARKS}]"
_LABEL = rf"[\w{MARKS}-]++"
# At most 64 characters stand before the @, as in scrubadub's pattern.
_EMAIL = re.compile(
    rf"(?<!{_LETTER}){_LETTER}[\w{MARKS}.%+'-]{{0,63}}+@{_LABEL}(?:\.{_LABEL})*\.[^\W\d_][\w{MARKS}-]*{_LETTER}"
)

_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.\w)")
# A name and a colon can stand before an address. One without a digit is rather a name in a program: dead::beef.
_IPV6 = re.compile(
    r"(?:(?<![\w.:])|(?<=[A-Za-z]:))(?=[a-fA-F:]{0,38}[0-9])(?:[0-9a-fA-F]{0,4}:){2,7}"
    r"(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-fA-F]{1,4})?(?![\w:]|\.\w)"
)
