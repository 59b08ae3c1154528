"""The detectors of `pii_reference`, faster: each finds exactly the same spans.

Every shortcut is a necessary condition of a detection that is cheap to check, or the same search done in less time.
"""

import copy
import datetime
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import lru_cache
from typing import Any

import phonenumbers
import pyap.source_US.data
import scrubadub
import textblob.en
from dateparser.conf import apply_settings
from dateparser.date import DateDataParser
from dateparser.languages.loader import LocaleDataLoader
from dateparser.search.search import _ExactLanguageSearch, _trim_connectors
from dateparser.utils import normalize_unicode
from scrubadub.detectors import CredentialDetector, PhoneDetector, SkypeDetector
from scrubadub.filth import AddressFilth, Filth, PhoneFilth, SkypeFilth

from phf_ray.errors import DataError
from phf_ray.scorers.pii_reference import (
    CONTEXT_WORDS,
    HYPHENS,
    LINES_AFTER,
    LINES_BEFORE,
    AddressDetector,
    DateOfBirthDetector,
    DateOfBirthFilth,
    date_settings,
    is_adult_birth_year,
)


def fast_scrubber(*, locale: str, reference_date: datetime.date) -> scrubadub.Scrubber:
    """Finds what `reference_scrubber` finds."""
    scrubber = scrubadub.Scrubber(locale=locale)
    for name in ("credential", "phone"):
        scrubber.remove_detector(name)
    scrubber.add_detector(Credential(locale=locale))
    scrubber.add_detector(Phone(locale=locale))
    scrubber.add_detector(DateOfBirth(locale=locale, reference_date=reference_date))
    scrubber.add_detector(Skype(locale=locale))
    scrubber.add_detector(Address(locale=locale))
    return scrubber


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Skype(SkypeDetector):
    """User names near the word skype: tokens that no edit of two letters turns into a single likely word."""

    _tokens = re.compile(SkypeDetector.SKYPE_TOKEN)

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        # Tokens are ASCII, so that a token with the word has it as such in the lower-cased text.
        if "skype" not in text.lower():
            return
        names = list(dict.fromkeys(self._user_names(self._tokens.findall(text))))
        # As the original, names are joined as they are: a dot in one of them matches any character.
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


@lru_cache(maxsize=100_000)
def is_likely_word(word: str) -> bool:
    """Whether textblob's best correction of the word, of six or more characters, has a confidence of at least 0.5.

    The corrections are textblob's own: the word itself if it is known, else the known words at one edit, else those at
    two. textblob spends most of a second on the latter, since it spells all 200,000 strings at two edits out.
    """
    known = _dictionary()
    if word in known:
        return True
    # An edit takes at most one character that is in no known word, and changes the length by at most one.
    if len(word) > _longest_known() + 2 or sum(char not in _LETTERS for char in word) > 2:
        return False
    at_one_edit = set(_edits(word))
    corrections = {edit for edit in at_one_edit if edit in known}
    if not corrections:
        corrections = {near for edit in at_one_edit for near in _known_at_one_edit(edit)}
    counts = [known[correction] for correction in corrections]
    return bool(counts) and max(counts) / float(sum(counts)) >= 0.5


@lru_cache(maxsize=1)
def _dictionary() -> dict[str, int]:
    textblob.en.spelling.load()
    return dict(textblob.en.spelling)


@lru_cache(maxsize=1)
def _longest_known() -> int:
    return max(map(len, _dictionary()))


@lru_cache(maxsize=1)
def _known_by_deletion() -> dict[str, list[str]]:
    """The known words by each string that is left of them when one character is deleted, and by themselves."""
    words: dict[str, list[str]] = {}
    for word in _dictionary():
        for shorter in {word, *_deletions(word)}:
            words.setdefault(shorter, []).append(word)
    return words


def _deletions(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place in range(len(word))]


def _edits(word: str) -> Iterator[str]:
    """All strings at one deletion, swap of neighbors, replacement by a letter or insertion of one."""
    yield from _deletions(word)
    for place in range(len(word) + 1):
        head, tail = word[:place], word[place:]
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]
        for letter in _LETTERS:
            yield head + letter + tail
            if tail:
                yield head + letter + tail[1:]


def _known_at_one_edit(word: str) -> Iterator[str]:
    """The known words that are an edit of the word."""
    by_deletion = _known_by_deletion()
    # Whatever the edit, the two words have a string in common that a deletion leaves of each, or that is one of them.
    for shorter in {word, *_deletions(word)}:
        for known in by_deletion.get(shorter, ()):
            if _is_edit(word, known):
                yield known


def _is_edit(word: str, other: str) -> bool:
    """Whether `other`, of letters a to z, is one edit away from the word or equal to it."""
    place = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    head, tail = word[place:], other[place:]
    if len(other) < len(word):
        return head[1:] == tail
    if len(other) > len(word):
        return head == tail[1:]
    return head[1:] == tail[1:] or head[2:] + head[:2] == tail[2:] + tail[1::-1]


class Credential(CredentialDetector):
    """User names with passwords. scrubadub's pattern takes time cubic in a run of white space after the first word."""

    # The same language and the same choice among its matches: a name if there is one, else none; the white space before
    # the name is taken whole, since neither the name nor the next word has any.
    regex = re.compile(
        r"""
        (username|login|u:)
        (?: \s*+ (?: : \s*+ )? (?P<username> [\w\-\.@+]++ ) \s++ | (?: \s*+ : )? \s++ )
        (password|pw|p:) \s*+ :? \s*+ (?P<password> .* )
        """,
        re.MULTILINE | re.VERBOSE | re.IGNORECASE,
    )


class Phone(PhoneDetector):
    """Phone numbers by Google's matcher, which is spared the candidates with too few digits."""

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
    """North America: ten digits, unless a plus or 011 leads abroad, or it is one of Canada's 310-xxxx."""

    def _extract_match(self, candidate: str, offset: int) -> Any:
        if candidate.isascii() and "+" not in candidate:
            digits = _NOT_DIGIT.sub("", candidate)
            if len(digits) < 10 and "011" not in digits and "310" not in digits:
                return None
        return super()._extract_match(candidate, offset)


_NOT_DIGIT = re.compile(r"[^0-9]+")


class Address(AddressDetector):
    """American addresses, sought only in front of the names of states."""

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        if self.region != "US":
            yield from super().iter_filth(text, document_name=document_name)
            return
        addresses = {address: _first_word(address) for address in _full_addresses(text)}
        places = _places_of(set(addresses.values()), text)
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
        # ways. Neither begins the rest of an address, so that taking the whole run at once finds the same.
        parts = [r"\s++".join(map(re.escape, part.split(" "))) for part in full_address.split(", ")]
        pattern = r"(?=\s*[\n,])[\s,]++".join(parts).replace(r"\-", f"[-{HYPHENS}]")
        return rf"\b{pattern}\b"


def _first_word(full_address: str) -> str:
    """An address begins with its street number, and what follows that in the text is no part of a word either."""
    match = _WORD.match(full_address)
    assert match is not None, full_address
    return match[0]


def _places_of(words: Set[str], text: str) -> dict[str, list[int]]:
    """Where each of the words stands: a list of addresses is not searched from end to end for every one of them."""
    places: dict[str, list[int]] = {word: [] for word in words}
    for match in _WORD.finditer(text) if words else ():
        if match[0] in places:
            places[match[0]].append(match.start())
    return places


def normalize_for_pyap(text: str) -> str:
    """What pyap makes of a text before it parses it, in time linear in the text: pyap's is quadratic in white space."""
    text = _WHITE_SPACE.sub(lambda run: ", " if "," in run[0] or "\n" in run[0] else " ", text)
    return text if text.isascii() else _DASHES.sub("-", text)


def _full_addresses(text: str) -> Iterator[str]:
    """The addresses that pyap finds in the text, but for those with the word coverage."""
    if not _state_places(text):
        return
    text = normalize_for_pyap(text)
    for begin, end in _address_windows(text):
        for match in _ADDRESS.finditer(text, begin, end):
            # pyap strips what it parsed in the same way.
            full_address = match["full_address"].strip(" ,;:")
            if "coverage" not in full_address.lower():
                yield full_address


def _address_windows(text: str) -> list[tuple[int, int]]:
    """The parts of a normalised text that hold all addresses, in order and apart from each other.

    An address ends in a state, and perhaps a postal code and a country, and is no longer than a window. Windows that
    overlap are joined, so that no address crosses a border.
    """
    if _LONG_RUN.search(text):
        # The names of routes and the numbers of floors and boxes have no longest one.
        return [(0, len(text))]
    windows: list[tuple[int, int]] = []
    for place in _state_places(text):
        begin, end = max(place - _CHARS_BEFORE_STATE, 0), place + _CHARS_AFTER_STATE
        if windows and begin <= windows[-1][1]:
            windows[-1] = (windows[-1][0], end)
        else:
            windows.append((begin, end))
    return windows


def _state_places(text: str) -> list[int]:
    """Where a state may stand, to within 30 characters: its abbreviation, or a word of its name in any case."""
    places = [match.start() for match in _STATE_ABBREVIATION.finditer(text)]
    lowered = text.lower()
    if len(lowered) != len(text):
        # A capital I with a dot is two characters in lower case, and shifts the rest.
        return sorted(places + [match.start() for match in _STATE_WORD.finditer(text)])
    for word in _STATE_WORDS:
        place = lowered.find(word)
        while place >= 0:
            places.append(place)
            place = lowered.find(word, place + 1)
    return sorted(places)


_WORD = re.compile(r"\w+")
_WHITE_SPACE = re.compile(r"[\s,]{2,}|[^\S ]|,")
_DASHES = re.compile(f"[{HYPHENS}]")
_LONG_RUN = re.compile("[A-Za-z0-9]{45}")
# Without such runs an address has at most 250 characters before its state, plus 3 x 45 for a route, a floor and a box.
_CHARS_BEFORE_STATE = 450
_CHARS_AFTER_STATE = 100
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
    """A pattern, for re.VERBOSE, of any of the words in any case; of two that begin alike the longer.

    The letters form a tree, so that where no word stands the first of them is enough to tell.
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
    """pyap's grammar with its two long lists, tried in vain almost everywhere, as trees: up to ten times as fast.

    A kind of street ends at the end of a word, so one at most fits; no name of a state begins with another's, and an
    abbreviation, which pyap tries first, ends the search: all that may follow it is optional.
    """
    grammar = pyap.source_US.data
    streets = grammar.street_type_list_to_regex(grammar.street_type_list)
    states = rf"(?P<region1>(?:{_STATE_ABBREVIATION.pattern})|{_any_case(_STATES)})"
    pattern: str = grammar.full_address.replace(streets, rf"\b{_any_case(grammar.street_type_list)}\b[\.\ ,]{{0,2}}")
    return pattern.replace(grammar.region1, states)


_ADDRESS = re.compile(_address_pattern(), re.VERBOSE)


class DateOfBirth(DateOfBirthDetector):
    """Dates of birth, sought in the sentences that can hold one, if the text has a context word at all."""

    def iter_filth(self, text: str, document_name: str | None = None) -> Iterator[Filth]:
        for found in dict.fromkeys(self.birth_dates(text)):
            if not _parses_to_birth_date(found, self._reference_date):
                continue
            for match in re.finditer(re.escape(found), text):
                yield CheckedDateOfBirthFilth(
                    match=match, detector_name=self.name, document_name=document_name, locale=self.locale
                )

    def birth_dates(self, text: str) -> Iterator[str]:
        lowered = text.lower()
        if any(word in lowered for word in CONTEXT_WORDS):
            yield from _search(self._reference_date).birth_dates(text, context_lines(text.split("\n")))


def context_lines(lines: list[str]) -> str:
    """The lines that have a context word near them, each on a line of its own.

    A date, which has no line break, is in the context of a word just if it is in one of these.
    """
    near: set[int] = set()
    for index, line in enumerate(lines):
        lowered = line.lower()
        if any(word in lowered for word in CONTEXT_WORDS):
            near.update(range(index - LINES_AFTER, index + LINES_BEFORE + 1))
    return "\n".join(lines[index] for index in sorted(near) if 0 <= index < len(lines))


class OverlongSentenceError(DataError):
    """dateparser's time grows with the square of a sentence's length."""


_MAX_SENTENCE_CHARS = 50_000


class _DateSearch:
    """dateparser's search for English dates, in the sentences that can matter, remembering what it has parsed.

    With RELATIVE_BASE set, dateparser treats the sentences of a text one by one, and each string by itself, except that
    it takes a trailing `and` from a date that another one follows.
    """

    def __init__(self, reference_date: datetime.date):
        self._reference_date = reference_date
        self._settings = _as_settings(settings=date_settings(reference_date))
        self._search = _ExactLanguageSearch(LocaleDataLoader())
        self._locale = self._search.get_current_language("en")
        self._skipped = {word.lower() for word in self._locale.info["skip"]}
        self._first_words = {entry.split(" ")[0] for entry in self._locale._get_dictionary(settings=self._settings)}
        self._parser = DateDataParser(languages=["en"], settings=self._settings)
        self._parser.get_date_data = lru_cache(maxsize=200_000)(self._parser.get_date_data)

    def birth_dates(self, text: str, context: str) -> Iterator[str]:
        """The strings that `search_dates` finds in the text and that are dates of birth in the context."""
        sentences = list(self._locale._sentence_split(text, settings=self._settings))
        relevant = [sentence for sentence in sentences if _is_relevant(sentence, context)]
        longest = max(map(len, relevant), default=0)
        # DIFFERS: ours gives no score to a text with a sentence of over 50,000 characters that has numbers near a word
        # such as born; original searches it for dates, in a time that grows with the square of its length.
        if longest > _MAX_SENTENCE_CHARS:
            raise OverlongSentenceError(
                f"a sentence of {longest} characters with numbers near a word such as born; "
                f"dates are sought in sentences of at most {_MAX_SENTENCE_CHARS}"
            )
        found = self._dates_in(relevant, is_relevant=self._has_birth_year)
        if any(self._may_be_trimmed(string, text, context) for string, date in found if self._is_birth(date)):
            found = self._dates_in(sentences, is_relevant=None)
            strings = _trim_connectors(text, [string for string, _ in found], self._skipped)
            found = list(zip(strings, [date for _, date in found], strict=True))
        for string, date in found:
            # An empty string is no place in the text, and dates rarely begin with a plus: phone numbers do.
            if self._is_birth(date) and string and not string.startswith("+") and string in context:
                yield string

    def _has_birth_year(self, chunk: str) -> bool:
        return _has_birth_year(chunk, self._reference_date)

    def _is_birth(self, date: datetime.datetime) -> bool:
        return is_adult_birth_year(date.year, self._reference_date)

    def _dates_in(
        self, sentences: list[str], *, is_relevant: Callable[[str], bool] | None
    ) -> list[tuple[str, datetime.datetime]]:
        """The dates in the sentences, in all chunks or in those that, as translated, are relevant."""
        locale = copy.copy(self._locale)
        # Cut alone, a sentence could be cut again: whether a full stop ends one depends on what stands before it.
        locale._sentence_split = lambda *_, **__: sentences
        chunks = zip(*locale.translate_search("", settings=self._settings), strict=True)
        relevant = [
            (translated, original) for translated, original in chunks if is_relevant is None or is_relevant(translated)
        ]
        translated = [chunk for chunk, _ in relevant]
        parsed, strings = self._search.parse_found_objects(
            parser=self._parser,
            to_parse=translated,
            original=[chunk for _, chunk in relevant],
            translated=translated,
            settings=self._settings,
            language=self._locale,
        )
        return [(string, date["date_obj"]) for string, (date, _) in zip(strings, parsed, strict=True)]

    def _may_be_trimmed(self, string: str, text: str, context: str) -> bool:
        """Whether dateparser could take the last word from the string, with the rest of it still in the context.

        It takes a skipped word that another date follows.
        """
        words = string.split(" ")
        while words and words[-1].lower() in self._skipped:
            words.pop()
        if not words or len(words) == string.count(" ") + 1 or " ".join(words) not in context:
            return False
        for match in re.finditer(re.escape(string) + r"[ (\[{\"']*(\S*)", text):
            word = match[1].lower().strip(".,:;()[]{}\"'-")
            if not word.isascii() or not word.isalpha() or word in self._first_words:
                return True
        return False


def _is_relevant(sentence: str, context: str) -> bool:
    """Whether a sentence can hold a birth date that also stands in the context.

    dateparser reads digits, and words for numbers and for spans of time; what it reports has one of them, unless its
    rewriting of the sentence changes the number of words, which lets it report the wrong ones.
    """
    plain = sentence if sentence.isascii() else normalize_unicode(sentence)
    numbers = _NUMBER.findall(plain)
    if not numbers or (len(numbers) == 1 and _SMALL_NUMBER.fullmatch(numbers[0])):
        return False
    if plain is not sentence or sentence in context or _REWRITTEN.search(sentence):
        return True
    return any(number in context for number in numbers)


def _has_birth_year(chunk: str, reference_date: datetime.date) -> bool:
    """Whether dateparser can read a birth year in a chunk, in which words for numbers are digits by now.

    Where no span of time is counted, one number is a year only if it has four digits or lies outside 1 to 68 (1969 to
    2068); two numbers up to 31 are a year only next to a month, and none next to a number of four digits.
    """
    numbers = _DIGITS.findall(chunk)
    if len(numbers) not in (1, 2) or _SPAN.search(chunk) or reference_date.year > _LAST_REFERENCE_YEAR:
        return bool(numbers)
    num_days = sum(len(number) < 3 and 0 < int(number) < 32 for number in numbers)
    num_other_years = sum(
        len(number) == 4 and not is_adult_birth_year(int(number), reference_date) for number in numbers
    )
    if len(numbers) == 1:
        return not num_other_years and (len(numbers[0]) > 2 or not 0 < int(numbers[0]) < 69)
    if num_days == 2:
        return _MONTH.search(chunk) is not None
    return not (num_days and num_other_years)


@lru_cache(maxsize=8)
def _search(reference_date: datetime.date) -> _DateSearch:
    return _DateSearch(reference_date)


@apply_settings
def _as_settings(settings: Any = None) -> Any:
    return settings


_DIGITS = re.compile(r"\d+")
_SMALL_NUMBER = re.compile(r"an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve", re.IGNORECASE)
_NUMBER = re.compile(
    rf"\d+|centur|decade|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
    rf"|\b(?:{_SMALL_NUMBER.pattern})\b",
    re.IGNORECASE,
)
# Thousands of days are years as well; thousands of hours are not.
_SPAN = re.compile(r"y(?:ea)?rs?|\by\b|decade|centur|month|week|wk|fortnight|\d(?:y|w|mos?)\b|\d{4}\W*d(?:ays?)?\b")
_MONTH = re.compile("jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec")
# Later, the numbers from 32 are the birth years of adults.
_LAST_REFERENCE_YEAR = 2049
# What dateparser rewrites in another number of words.
_REWRITTEN = re.compile(
    r"noon|midnight|tonight|in the|hours|from\s+now|less than|\d\s*mons?|\dh|(?:st|nd|rd|th) day"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty",
    re.IGNORECASE,
)


class CheckedDateOfBirthFilth(Filth):
    """A date of birth that was validated before."""

    type = "date_of_birth"


@lru_cache(maxsize=100_000)
def _parses_to_birth_date(found: str, reference_date: datetime.date) -> bool:
    """Whether the string alone, which may be read in any language, is an adult's date of birth."""
    return DateOfBirthFilth(beg=0, end=len(found), text=found, reference_date=reference_date).is_valid()
