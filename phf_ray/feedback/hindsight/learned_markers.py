"""Finds the words before questions and answers in a corpus of records, with which a trained model is asked later."""

import itertools
from collections.abc import Iterator, Mapping
from typing import get_args

from phf_ray.config import FeedbackForm, Phrases, load_phrases
from phf_ray.config.hindsight import Markers
from phf_ray.feedback.hindsight.settings import HINDSIGHT, ORDERS, HindsightSettings
from phf_ray.feedback.manifest import FeedbackManifest
from phf_ray.feedback.reader import read_feedback
from phf_ray.feedback.rows import Example

_MOST_RECORDS = 1000
_FORMS: tuple[FeedbackForm, ...] = get_args(FeedbackForm)


def learned_markers(corpus: str, manifest: FeedbackManifest) -> Markers:
    """Return the markers of a corpus of records.

    Of several pairs, as sentences of hindsight are, they are those of the first record. What records of others don't
    name `marker_user`, `marker_gpt` and `marker_gpt_bad` is ours.
    """
    stored = manifest.config["settings"].get("hindsight")
    if stored is None:
        return _of_others(corpus)
    settings = HindsightSettings.from_json(stored)
    words = settings.words
    if not {*settings.kinds}.intersection(ORDERS):
        return _markers(words, words.rating.marker(words.rating.best), words.rating.marker(0))
    return _of_sentences(corpus, words) if HINDSIGHT in settings.kinds else words.markers


def _of_sentences(corpus: str, words: Phrases) -> Markers:
    pairs = [pair for form in _FORMS for pair in words.marker_pairs(form, is_hindsight=True)]
    for texts in _texts(corpus):
        for good, bad in pairs:
            if texts.get("marker_gpt") == good or texts.get("marker_gpt_bad") == bad:
                return _markers(words, good, bad)
    return words.markers


def _of_others(corpus: str) -> Markers:
    found: dict[str, str] = {}
    for texts in _texts(corpus):
        found = {**texts, **found}
        if {"marker_user", "marker_gpt", "marker_gpt_bad"} <= found.keys():
            break
    ours = load_phrases().markers
    named = {"user": "marker_user", "good": "marker_gpt", "bad": "marker_gpt_bad"}
    own = {name: found[key] for name, key in named.items() if found.get(key, "").strip()}
    return ours.model_copy(update=own)


def _texts(corpus: str) -> Iterator[Mapping[str, str]]:
    for row in itertools.islice(read_feedback(corpus), _MOST_RECORDS):
        if isinstance(row, Example) and row.record is not None:
            yield row.record.texts


def _markers(words: Phrases, good: str, bad: str) -> Markers:
    return words.markers.model_copy(update={"good": good, "bad": bad})
