"""Builds what finds the spans of `PIIScorer`: the paper's detectors, or the strict ones."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

import scrubadub
from scrubadub.filth import Filth, MergedFilth

from phf_ray.errors import ConfigError
from phf_ray.records import Span
from phf_ray.scorers.pii_detectors import fast_scrubber
from phf_ray.scorers.pii_reference import SpacyEntityDetector
from phf_ray.scorers.pii_strict import StrictFinder

if TYPE_CHECKING:
    from phf_ray.scorers.pii import PIISettings


class Finder(Protocol):
    def spans(self, text: str) -> list[Span]: ...


class StrictSpans:
    def __init__(self, finder: StrictFinder):
        self._finder = finder

    def spans(self, text: str) -> list[Span]:
        return [Span(one.type, one.begin, one.end, one.confidence) for one in self._finder.find(text)]


class PaperSpans:
    """Detections that overlap or touch are one span, whose type joins theirs by `+`, as scrubadub merges them."""

    def __init__(self, scrubber: scrubadub.Scrubber):
        self._scrubber = scrubber

    def spans(self, text: str) -> list[Span]:
        found = self._scrubber.iter_filth(text, run_post_processors=False)
        return [Span(_type_of(filth), filth.beg, filth.end) for filth in found]


def build_finder(settings: "PIISettings", *, entities: Collection[str]) -> tuple[Finder, str | None]:
    """Return the finder of these entities, and the hash of the spaCy model if it uses one.

    Raises ConfigError if the model can't be loaded.
    """
    model = None
    if settings.spacy_model is not None and "spacy_entity" in entities:
        model = _entity_detector(settings.spacy_model, settings)
    others = [entity for entity in entities if entity != "spacy_entity"]
    locale, reference_date = settings.locale, settings.reference_date
    if settings.mode == "strict":
        finder = StrictFinder(locale=locale, reference_date=reference_date, entities=others)
        if model is not None:
            finder.add(model, confidence=_ENTITY_CONFIDENCE)
        return StrictSpans(finder), None if model is None else model.weights_hash
    scrubber = fast_scrubber(locale=locale, reference_date=reference_date)
    for name in sorted({detector.name for detector in scrubber._detectors.values()} - {*others}):
        scrubber.remove_detector(name)
    if model is not None:
        scrubber.add_detector(model)
    return PaperSpans(scrubber), None if model is None else model.weights_hash


def _entity_detector(model: str, settings: "PIISettings") -> SpacyEntityDetector:
    try:
        return SpacyEntityDetector(locale=settings.locale, model=model, labels=settings.spacy_labels)
    except OSError as error:
        raise ConfigError(f"spacy_model {model!r} can't be loaded: {error}") from None


def _type_of(filth: Filth) -> str:
    parts = filth.filths if isinstance(filth, MergedFilth) else [filth]
    return "+".join(sorted({part.detector_name for part in parts}))


_ENTITY_CONFIDENCE = 0.85
"""spaCy's models give no confidence; the F score of the English ones on OntoNotes is about 0.85."""
