"""PII: places with personal data per character, by the detectors of the paper or by stricter ones."""

import dataclasses
import datetime
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from phf_ray.records import Scored, ScorerIdentity, Span
from phf_ray.scorers.base import EMPTY, Scorer, ScorerSettings, failure


class PIISettings(ScorerSettings):
    name: str = "pii"
    locale: Literal["en_US", "en_GB", "en_CA"] = "en_US"
    reference_date: datetime.date = datetime.date(2026, 11, 20)
    """Day from which ages and relative dates are counted, so that scores do not change with today's date."""
    # DIFFERS: phf-ray counts by default only what a day and month, a checksum or a word nearby tell from other text;
    # the original also counts bare years and "use at home". `mode: paper` has its detectors.
    mode: Literal["paper", "strict"] = "strict"
    """strict: detectors with a confidence, for personal data as users expect it. paper: what the original finds, which
    reproduces the paper's corpora."""
    spacy_model: str | None = None
    """Name or path of a spaCy model whose named entities also count; null: no model."""
    spacy_labels: tuple[str, ...] = ("PERSON", "PER", "ORG")
    entities: tuple[str, ...] | None = Field(default=None, min_length=1)
    """What to look for, such as email and phone; null: all that the mode and the locale know, and spacy_entity with a
    model. The last field, because what is known depends on the others."""

    @field_validator("entities")
    @classmethod
    def _are_known(cls, entities: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if entities is None or not {"mode", "locale", "spacy_model"} <= info.data.keys():
            return entities  # the field that is wrong has its own error
        known = _known_entities(info.data["mode"], info.data["locale"], info.data["spacy_model"])
        unknown = sorted({*entities} - {*known})
        if unknown:
            raise ValueError(f"mode {info.data['mode']} does not look for {unknown[0]}; choose from {', '.join(known)}")
        return tuple(sorted({*entities}))


class PIIScorer(Scorer):
    Settings = PIISettings
    unit = "detections per character"
    packages = ("scrubadub", "pyap", "dateparser", "phonenumbers", "python-stdnum", "textblob")
    uses_reference_date = True
    measures = "personal_data"

    def __init__(self, settings: PIISettings):
        # Import here: the detectors' libraries take seconds to load.
        from phf_ray.scorers.pii_finders import build_finder

        super().__init__(settings)
        self._settings: PIISettings = settings
        self._finder, self._model_hash = build_finder(settings, entities=self.span_types(settings))

    def identity(self) -> ScorerIdentity:
        identity = super().identity()
        model = self._settings.spacy_model
        versions = {**identity.versions, **({"spacy": version("spacy")} if model is not None else {})}
        return dataclasses.replace(identity, versions=versions, weights_hash=self._model_hash)

    def _identity_settings(self) -> dict[str, Any]:
        settings = super()._identity_settings()
        if self._settings.mode == "strict":
            # All by name, because another version of the package may know more.
            return {**settings, "entities": list(self.span_types(self._settings))}
        # Corpora that were scored before there were modes and a choice of entities have the scores of this mode.
        return {key: value for key, value in settings.items() if key != "mode" and (key, value) != ("entities", None)}

    @classmethod
    def span_types(cls, settings: PIISettings) -> tuple[str, ...]:
        if settings.entities is not None:
            return settings.entities
        return _known_entities(settings.mode, settings.locale, settings.spacy_model)

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [self._score(text) for text in texts]

    def spans(self, text: str) -> list[Span]:
        """Return the detections in order.

        Strict: each has a confidence, and one can stand within another, as an e-mail address in a URL. Paper:
        overlapping or touching ones become one, with their types joined by `+`.

        Raises what the detectors raise on texts that they can't handle.
        """
        return self._finder.spans(text)

    def _score(self, text: str) -> Scored:
        if not text:
            return EMPTY
        try:
            # DIFFERS: phf-ray divides by the length once; the original's corpus builder divides the quotient again
            #
            return Scored(num_places(self.spans(text)) / len(text))
        # DIFFERS: phf-ray gives no score if a detector fails; the original gives 0.0, the best score.
        except Exception as error:  # noqa: BLE001  eight libraries on any text: dateparser alone raises four kinds
            return failure(error)


def num_places(spans: Sequence[Span]) -> int:
    """Return the number of places with personal data; spans, in order, that overlap are one place."""
    count, end = 0, 0
    for span in spans:
        count += span.begin >= end
        end = max(end, span.end)
    return count


# Detectors by locale.
_EVERYWHERE = ("address", "credential", "credit_card", "date_of_birth", "email", "phone", "skype", "twitter", "url")
_ONLY_IN = {
    "en_US": ("social_security_number",),
    "en_GB": (
        *("drivers_licence", "national_insurance_number", "postalcode", "tax_reference_number"),
        "vehicle_licence_plate",
    ),
}


# And those of strict alone.
_STRICT = ("api_key", "crypto_wallet", "iban", "ip_address", "mac_address")


def _known_entities(mode: str, locale: str, spacy_model: str | None) -> tuple[str, ...]:
    strict = _STRICT if mode == "strict" else ()
    entities = ("spacy_entity",) if spacy_model is not None else ()
    return tuple(sorted({*_EVERYWHERE, *_ONLY_IN.get(locale, ()), *strict, *entities}))
