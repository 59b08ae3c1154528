"""Finds numbers that a checksum or a fixed form tells from others: cards, IBANs, SSNs, IP and MAC addresses.

Each is part of no longer number or word. Checksums are python-stdnum's, which scrubadub already needs.
"""

import ipaddress
import re
from collections.abc import Iterator

from scrubadub.detectors import CreditCardDetector
from stdnum import iban, luhn

from phf_ray.scorers.pii_detection import Detection, stands_after


def credit_cards(text: str) -> Iterator[Detection]:
    """Find card numbers of the brands that scrubadub knows, without separators or in the groups of the card."""
    for match in _CARD.finditer(text):
        number = _SEPARATOR.sub("", match[0])
        if _BRAND.fullmatch(number) and luhn.is_valid(number):
            yield Detection("credit_card", *match.span(), 0.95)


def ibans(text: str) -> Iterator[Detection]:
    """Find bank accounts whose check digits, length and form are those of their country.

    After the word IBAN the check digits may be wrong: a mistyped account is one too.
    """
    for match in _IBAN.finditer(text):
        end = _end_of_iban(text, match)
        if end is not None:
            yield Detection("iban", match.start(), end, 0.99)
        elif stands_after(_IBAN_WORD, text, match.start(), chars=20):
            yield Detection("iban", *match.span(), 0.6)


def _end_of_iban(text: str, match: re.Match[str]) -> int | None:
    """Return where the account ends: a word or number that follows it can look like one of its groups."""
    begin, end = match.span()
    while end - begin >= _MIN_IBAN_CHARS:
        if iban.is_valid(text[begin:end], check_country=False):
            return end
        end = max(text.rfind(" ", begin, end), text.rfind("-", begin, end))
    return None


def social_security_numbers(text: str) -> Iterator[Detection]:
    """Find American social security numbers, and taxpayers' numbers of the same form, which begin with 9."""
    for match in _SSN.finditer(text):
        # Points and spaces divide many other numbers in the same way.
        if match["separator"] == "-":
            yield Detection("social_security_number", *match.span(), 0.85)
        elif stands_after(_SSN_WORD, text, match.start(), chars=40):
            yield Detection("social_security_number", *match.span(), 0.8)


def ip_addresses(text: str) -> Iterator[Detection]:
    """Find IPv4 and IPv6 addresses, except loopback and unspecified ones, which name no other machine."""
    for match in _IPV4.finditer(text):
        if not _names_a_machine(match[0]) or stands_after(_VERSION, text, match.start(), chars=20):
            continue
        if not _is_like_a_version(match[0]) or stands_after(_ADDRESS_WORD, text, match.start(), chars=30):
            yield Detection("ip_address", *match.span(), 0.9)
    for match in _IPV6.finditer(text):
        if _names_a_machine(match[0]):
            yield Detection("ip_address", *match.span(), 0.95)


def mac_addresses(text: str) -> Iterator[Detection]:
    """Find hardware addresses of 48 bits, except those that name no machine: all zeros, and broadcast."""
    for match in _MAC.finditer(text):
        if len({*match[0].lower()} - {*":-."}) > 1:
            yield Detection("mac_address", *match.span(), 0.95)


def _names_a_machine(candidate: str) -> bool:
    try:
        address = ipaddress.ip_address(candidate)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _is_like_a_version(address: str) -> bool:
    """Whether all four numbers are small. 2 of 100,000 random addresses are so, besides 10.x and those like 8.8.8.8."""
    parts = [int(part) for part in address.split(".")]
    return max(parts) < 20 and parts[0] != 10 and len({*parts}) > 1


_SEPARATOR = re.compile("[ \u00a0\u202f-]")
_S = _SEPARATOR.pattern
# A number is part of another one after a digit, after the point of a fraction, and after a group of four in hyphens.
_CARD = re.compile(
    rf"(?<![0-9])(?<![0-9]\.)(?<![0-9]{{4}}-)(?:[0-9]{{13,16}}"
    rf"|[0-9]{{4}}({_S})[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}|[0-9]{{4}}({_S})[0-9]{{6}}\2[0-9]{{4,5}})(?![0-9])(?!-[0-9]{{4}})"
)
_BRAND = re.compile(CreditCardDetector.regex.pattern.removeprefix(r"(?<=\s)"), re.VERBOSE)

_MIN_IBAN_CHARS = 15
# Groups of four with spaces or hyphens, or none. Lower case only throughout, so that words do not continue an account.
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?"
    r"|[a-z]{2}[0-9]{2}[a-z0-9]{11,30})(?![A-Za-z0-9])"
)
_IBAN_WORD = re.compile(r"\biban\b", re.IGNORECASE)

_SSN = re.compile(
    r"(?<![\w.])(?<!\d[-.])(?!000|666)[0-9]{3}(?P<separator>[-. ])(?!00)[0-9]{2}(?P=separator)(?!0000)[0-9]{4}"
    r"(?!\w|[-.]\d)"
)
_SSN_WORD = re.compile(r"\bssn\b|social security", re.IGNORECASE)

_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.\w)")
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|release|section|sec|chapter|clause|table|figure|build|firmware)\.?|\u00a7)[ \t]*\Z",
    re.IGNORECASE,
)
_ADDRESS_WORD = re.compile(
    r"(?<![a-z])(?:ip(?:v4)?|address(?:es)?|host|server|gateway|dns|ping|from|client)\b", re.IGNORECASE
)
# A name and a colon can stand before an address. One without a digit is rather a name in a program: dead::beef.
_IPV6 = re.compile(
    r"(?:(?<![\w.:])|(?<=[A-Za-z]:))(?=[a-fA-F:]{0,38}[0-9])(?:[0-9a-fA-F]{0,4}:){2,7}"
    r"(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9a-fA-F]{1,4})?(?![\w:]|\.\w)"
)
_MAC = re.compile(
    r"(?<![\w:.-])(?:[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}|(?:[0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4})"
    r"(?![\w:-]|\.\w)"
)
