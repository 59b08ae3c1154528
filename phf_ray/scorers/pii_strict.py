"""`mode: strict`: finds personal data wherever it stands in a text, and leaves what only looks like it.

Not the paper's detectors: dates need a day and a month, addresses a house number and a place, and numbers a checksum,
a form of their own, or a word that says what they are. Every detection has a confidence.
"""

import datetime
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping

from scrubadub.detectors import Detector as ScrubadubDetector

from phf_ray.scorers.pii_births import dates_of_birth
from phf_ray.scorers.pii_contacts import emails, skype_names, twitter_names, urls
from phf_ray.scorers.pii_detection import Detection, countable
from phf_ray.scorers.pii_detectors import fast_scrubber
from phf_ray.scorers.pii_numbers import credit_cards, ibans, ip_addresses, mac_addresses, social_security_numbers
from phf_ray.scorers.pii_phones import phones
from phf_ray.scorers.pii_places import addresses
from phf_ray.scorers.pii_secrets import api_keys, credentials, crypto_wallets

Detector = Callable[[str], Iterator[Detection]]


class StrictFinder:
    """The detectors of the entities, which are those of `PIIScorer.span_types` but for `spacy_entity`."""

    def __init__(self, *, locale: str, reference_date: datetime.date, entities: Collection[str]):
        makers: dict[str, Callable[[], Detector]] = {
            "address": lambda: addresses,
            "api_key": lambda: api_keys,
            "credential": lambda: credentials,
            "credit_card": lambda: credit_cards,
            "crypto_wallet": lambda: crypto_wallets,
            "date_of_birth": lambda: dates_of_birth(reference_date),
            "email": lambda: emails,
            "iban": lambda: ibans,
            "ip_address": lambda: ip_addresses,
            "mac_address": lambda: mac_addresses,
            "phone": lambda: phones(locale.removeprefix("en_")),
            "skype": lambda: skype_names,
            "social_security_number": lambda: social_security_numbers,
            "twitter": lambda: twitter_names,
            "url": lambda: urls,
        }
        british = _british_detectors(reference_date) if not set(entities) <= {*makers} else {}
        self._detectors: list[Detector] = [
            makers[entity]() if entity in makers else british[entity] for entity in sorted(entities)
        ]

    def add(self, detector: ScrubadubDetector, *, confidence: float) -> None:
        """Add a detector of another kind, all of whose detections have this confidence."""
        self._detectors.append(_as_strict(detector, confidence=confidence))

    def find(self, text: str) -> list[Detection]:
        """Return the detections in order. They overlap only if the inner one is the more certain of the two."""
        return countable(list(itertools.chain.from_iterable(detector(text) for detector in self._detectors)))


def _british_detectors(reference_date: datetime.date) -> Mapping[str, Detector]:
    detectors = fast_scrubber(locale="en_GB", reference_date=reference_date)._detectors.values()
    return {detector.name: _as_strict(detector, confidence=_BRITISH_CONFIDENCE) for detector in detectors}


def _as_strict(detector: ScrubadubDetector, *, confidence: float) -> Detector:
    """Return the detector without the detections that are a part of a word or number."""

    def strict(text: str) -> Iterator[Detection]:
        for filth in detector.iter_filth(text):
            is_part = text[filth.beg - 1 : filth.beg].isalnum() or text[filth.end : filth.end + 1].isalnum()
            if filth.is_valid() and not is_part:
                yield Detection(detector.name, filth.beg, filth.end, confidence)

    return strict


_BRITISH_CONFIDENCE = 0.5
"""A letter or two with the right number of digits is all that these numbers have; no corpus here measures them."""
