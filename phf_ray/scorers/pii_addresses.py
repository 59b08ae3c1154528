"""Finds the postal addresses that pyap finds, but searches only near what every address ends with.

That is the name of a state or province in the United States and Canada, and a postal code in Great Britain.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any, NamedTuple

import pyap.source_CA.data
import pyap.source_GB.data
import pyap.source_US.data
from scrubadub.detectors import PostalCodeDetector
from scrubadub.filth import AddressFilth, Filth

from phf_ray.errors import DataError
from phf_ray.scorers.pii_reference import HYPHENS, AddressDetector


class TooManyAddressesError(DataError):
    """A text has so many addresses with the same first word that finding them again takes quadratic time."""


_MAX_PLACES = 10_000_000


class Address(AddressDetector):
    """Finds addresses by searching only before the names of states, of provinces, or postal codes."""

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        addresses = {address: _first_word(address) for address in _full_addresses(text, _GRAMMARS[self.region])}
        places = _places_of(set(addresses.values()), text)
        num_places = sum(len(places[first_word]) for first_word in addresses.values())
        # DIFFERS: phf-ray gives no score to a text in which the first words of its addresses have more than 10,000,000
        # places, counted once for each address; the original takes hours.
        if num_places > _MAX_PLACES:
            raise TooManyAddressesError(
                f"{len(addresses)} addresses could stand at {num_places} places, the limit is {_MAX_PLACES}; "
                "score the text in parts"
            )
        for full_address, first_word in addresses.items():
            pattern, end = re.compile(self.pattern(full_address)), 0
            for place in places[first_word]:
                match = pattern.match(text, place) if place >= end else None
                if match is not None:
                    end = match.end()
                    yield AddressFilth(
                        match=match, detector_name=self.name, document_name=document_name, locale=self.locale
                    )

    def pattern(self, full_address: str) -> str:
        # The original's separator, white space with at least one comma or line break, matches n line breaks in 2^n
        # ways. The rest of an address begins with none of these, so taking the whole run at once finds the same.
        parts = [r"\s++".join(map(re.escape, part.split(" "))) for part in full_address.split(", ")]
        pattern = r"(?=\s*[\n,])[\s,]++".join(parts).replace(r"\-", f"[-{HYPHENS}]")
        return rf"\b{pattern}\b"


def _first_word(full_address: str) -> str:
    """Return the word that an address begins with, or its first character if that is in no word.

    In the text, too, the word begins and ends with a word: the end is that of the address, or something in the address
    that is in no word.
    """
    match = _WORD.match(full_address)
    return full_address[0] if match is None else match[0]


def _places_of(words: Set[str], text: str) -> dict[str, list[int]]:
    """Return the places of each word, in one pass, so that the text is not searched once per address."""
    places: dict[str, list[int]] = {word: [] for word in words}
    for match in _WORD_OR_CHARACTER.finditer(text) if words else ():
        if match[0] in places:
            places[match[0]].append(match.start())
    return places


def normalize_for_pyap(text: str) -> str:
    """Normalize a text as pyap does before parsing, in linear time; pyap's own takes time quadratic in white space."""
    text = _WHITE_SPACE.sub(lambda run: ", " if "," in run[0] or "\n" in run[0] else " ", text)
    return text if text.isascii() else _DASHES.sub("-", text)


class _Grammar(NamedTuple):
    """How pyap finds the addresses of a country, all in texts that pyap has normalised."""

    address: re.Pattern[str]
    ends: Callable[[str], list[int]]
    """Returns a place within 30 characters of each possible state, province or British postal code, in order."""
    chars_before: int
    """An address has at most so many characters before such a place, if no run of letters and digits has 45."""


def _full_addresses(text: str, grammar: _Grammar) -> Iterator[str]:
    """Yield the addresses that pyap finds in the text, except those with the word coverage."""
    text = normalize_for_pyap(text)
    for begin, end in _address_windows(text, grammar):
        for match in grammar.address.finditer(text, begin, end):
            # pyap strips its matches in the same way.
            full_address = match["full_address"].strip(" ,;:")
            if "coverage" not in full_address.lower():
                yield full_address


def _address_windows(text: str, grammar: _Grammar) -> list[tuple[int, int]]:
    """Return the parts of a normalised text that hold all addresses: (begin, end), in order, without overlap.

    An address ends with a state and perhaps a postal code and a country, or with a British postal code and perhaps a
    country, and is no longer than a window. Overlapping windows are joined, so that no address crosses the border of a
    window.
    """
    places = grammar.ends(text)
    if places and _LONG_RUN.search(text):
        # Names of routes and numbers of floors and boxes have no maximum length.
        return [(0, len(text))]
    windows: list[tuple[int, int]] = []
    for place in places:
        begin, end = max(place - grammar.chars_before, 0), place + _CHARS_AFTER
        if windows and begin <= windows[-1][1]:
            windows[-1] = (windows[-1][0], end)
        else:
            windows.append((begin, end))
    return windows


def _state_places(text: str) -> list[int]:
    """Return places within 30 characters of each possible state: an abbreviation, or a word of a name in any case."""
    places = [match.start() for match in _STATE_ABBREVIATION.finditer(text)]
    lowered = text.lower()
    if len(lowered) != len(text):
        # A capital I with a dot becomes two characters in lower case, which shifts the rest.
        return sorted(places + [match.start() for match in _STATE_WORD.finditer(text)])
    for word in _STATE_WORDS:
        place = lowered.find(word)
        while place >= 0:
            places.append(place)
            place = lowered.find(word, place + 1)
    return sorted(places)


def _province_places(text: str) -> list[int]:
    """Like `_state_places`, for the provinces of Canada."""
    return [match.start() for match in _PROVINCE.finditer(text)]


def _postal_code_places(text: str) -> list[int]:
    """Return the places of British postal codes."""
    return [match.start() for match in _BRITISH_POSTAL_CODE.finditer(text)]


_WORD = re.compile(r"\w+")
_WORD_OR_CHARACTER = re.compile(r"\w+|\S")
_WHITE_SPACE = re.compile(r"[\s,]{2,}|[^\S ]|,")
_DASHES = re.compile(f"[{HYPHENS}]")
_LONG_RUN = re.compile(r"[A-Za-z\d]{45}")
_CHARS_AFTER = 100
_STATE_ABBREVIATION = re.compile(
    "A[KLRSZ]|C[AOT]|D[CE]|FL|G[AU]|HI|I[ADLN]|K[SY]|LA|M[ADEINOPST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[AIT]"
    + "|W[AIVY]"
)
# fmt: off
_STATES = (
    "alabama", "alaska", "arizona", "arkansas", "california", "colorado", "connecticut", "delaware",
    "district of columbia", "florida", "georgia", "hawaii", "idaho", "illinois", "indiana", "iowa", "kansas",
    "kentucky", "louisiana", "maine", "maryland", "massachusetts", "michigan", "minnesota", "mississippi", "missouri",
    "montana", "nebraska", "nevada", "new hampshire", "new jersey", "new mexico", "new york", "north carolina",
    "north dakota", "ohio", "oklahoma", "oregon", "pennsylvania", "rhode island", "south carolina", "south dakota",
    "tennessee", "texas", "utah", "vermont", "virginia", "washington", "west virginia", "wisconsin", "wyoming",
    "american samoa", "guam", "northern mariana islands", "puerto rico", "virgin islands",
)
_STATE_WORDS = (
    "alabama", "alaska", "arizona", "arkansas", "california", "colorado", "connecticut", "delaware", "columbia",
    "florida", "georgia", "hawaii", "idaho", "illinois", "indiana", "iowa", "kansas", "kentucky", "louisiana", "maine",
    "maryland", "massachusetts", "michigan", "minnesota", "mississippi", "missouri", "montana", "nebraska", "nevada",
    "hampshire", "jersey", "mexico", "york", "carolina", "dakota", "ohio", "oklahoma", "oregon", "pennsylvania",
    "rhode", "tennessee", "texas", "utah", "vermont", "virgin", "washington", "wisconsin", "wyoming", "samoa", "guam",
    "mariana", "puerto",
)
# fmt: on
_STATE_WORD = re.compile("|".join(_STATE_WORDS), re.IGNORECASE)


def _any_case(words: Iterable[str]) -> str:
    """Return a pattern for re.VERBOSE that matches any of the words in any case, and the longest that fits.

    The letters form a tree, so if no word begins with the first letter, no other letter is tried.
    """
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for letter in word.lower():
            node = node.setdefault(letter, {})
        node[""] = {}
    return _any_of(tree)


def _any_of(tree: Mapping[str, Any]) -> str:
    branches = [
        (f"[{letter.upper()}{letter}]" if letter != " " else r"\ ") + _any_of(rest)
        for letter, rest in tree.items()
        if letter
    ]
    if not branches:
        return ""
    return f"(?:{'|'.join(branches)})" + ("?" if "" in tree else "")


def _address_pattern() -> str:
    """Return pyap's grammar with its two long lists as trees, which is up to ten times as fast.

    The lists are tried almost everywhere and rarely match. The order of a list does not matter: a street type ends at
    the end of a word, so at most one fits; no state's name begins with another state's name; and a match of an
    abbreviation, which pyap tries first, ends the search, because everything after it is optional.
    """
    grammar = pyap.source_US.data
    streets = grammar.street_type_list_to_regex(grammar.street_type_list)
    states = rf"(?P<region1>(?:{_STATE_ABBREVIATION.pattern})|{_any_case(_STATES)})"
    pattern: str = grammar.full_address.replace(streets, rf"\b{_any_case(grammar.street_type_list)}\b[\.\ ,]{{0,2}}")
    return pattern.replace(grammar.region1, states)


_ADDRESS = re.compile(_address_pattern(), re.VERBOSE)
_PROVINCE = re.compile(
    r"A\.?B|B\.?C|M\.?B|N\.?[BLTSU]|O\.?N|P\.?E|Q\.?C|S\.?K|Y\.?T|(?i:alberta|columbia|manitoba|brunswick|newfoundland"
    "|territor|scotia|nunavut|ontario|edward|qu[e\u00e9]bec|saskatchewan|yukon|colombie|nouve|terre|prince)"
)
_BRITISH_POSTAL_CODE = PostalCodeDetector.region_regex["GB"]
# Without long runs, an address has at most 250 characters before its state or province (300 before a British postal
# code), plus 3 x 45 for a route, floor and box.
_GRAMMARS = {
    "US": _Grammar(_ADDRESS, _state_places, chars_before=450),
    "CA": _Grammar(re.compile(pyap.source_CA.data.full_address, re.VERBOSE), _province_places, chars_before=450),
    # pii_reference has replaced its pattern of postal codes.
    "GB": _Grammar(re.compile(pyap.source_GB.data.full_address, re.VERBOSE), _postal_code_places, chars_before=600),
}
