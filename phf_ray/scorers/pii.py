"""PII: detections of personal data per character, by scrubadub and the detectors that the original code adds."""

import dataclasses
import datetime
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from phf_ray.errors import ConfigError
from phf_ray.records import Scored, ScorerIdentity, Span
from phf_ray.scorers.base import EMPTY, Scorer, ScorerSettings, failure

if TYPE_CHECKING:
    from scrubadub.filth import Filth


class PIISettings(ScorerSettings):
    name: str = "pii"
    locale: Literal["en_US", "en_GB", "en_CA"] = "en_US"
    reference_date: datetime.date = datetime.date(2026, 11, 20)
    """Day from which ages and relative dates are counted, so that scores do not change with today's date."""
    mode: Literal["paper", "strict"] = "paper"
    """paper: what the original finds. strict: also card numbers that follow no white space or are written in groups,
    e-mail addresses with letters outside ASCII, and IP addresses; words such as born count only as whole words."""
    spacy_model: str | None = None
    """Name or path of a spaCy model whose named entities also count; null: no model."""
    spacy_labels: tuple[str, ...] = ("PERSON", "PER", "ORG")


class PIIScorer(Scorer):
    Settings = PIISettings
    unit = "detections per character"
    packages = ("scrubadub", "pyap", "dateparser", "phonenumbers", "python-stdnum", "textblob")
    uses_reference_date = True
    measures = "personal_data"

    def __init__(self, settings: PIISettings):
        # Import here: the detectors' libraries take seconds to load.
        from phf_ray.scorers.pii_detectors import fast_scrubber, strict_scrubber

        super().__init__(settings)
        self._settings: PIISettings = settings
        locale = settings.locale
        self._model_hash: str | None = None
        build = strict_scrubber if settings.mode == "strict" else fast_scrubber
        self._scrubber = build(locale=locale, reference_date=settings.reference_date)
        if settings.spacy_model is not None:
            from phf_ray.scorers.pii_reference import SpacyEntityDetector

            try:
                entities = SpacyEntityDetector(locale=locale, model=settings.spacy_model, labels=settings.spacy_labels)
            except OSError as error:
                raise ConfigError(f"spacy_model {settings.spacy_model!r} can't be loaded: {error}") from None
            self._model_hash = entities.weights_hash
            self._scrubber.add_detector(entities)

    def identity(self) -> ScorerIdentity:
        identity = super().identity()
        model = self._settings.spacy_model
        versions = {**identity.versions, **({"spacy": version("spacy")} if model is not None else {})}
        return dataclasses.replace(identity, versions=versions, weights_hash=self._model_hash)

    def _identity_settings(self) -> dict[str, Any]:
        settings = super()._identity_settings()
        # Corpora that were scored before there were modes have the scores of this one.
        return {key: value for key, value in settings.items() if (key, value) != ("mode", "paper")}

    @classmethod
    def span_types(cls, settings: PIISettings) -> tuple[str, ...]:
        strict = ("ip_address",) if settings.mode == "strict" else ()
        entities = ("spacy_entity",) if settings.spacy_model is not None else ()
        return tuple(sorted({*_EVERYWHERE, *_ONLY_IN.get(settings.locale, ()), *strict, *entities}))

    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        return [self._score(text) for text in texts]

    def spans(self, text: str) -> list[Span]:
        """Return the detections in order. Overlapping or touching ones become one, with their types joined by `+`.

        Raises what the detectors raise on texts that they can't handle.
        """
        return [
            Span(_type_of(filth), filth.beg, filth.end)
            for filth in self._scrubber.iter_filth(text, run_post_processors=False)
        ]

    def _score(self, text: str) -> Scored:
        if not text:
            return EMPTY
        try:
            # DIFFERS: phf-ray divides by the length once; the original's corpus builder divides the quotient again
            #
            return Scored(len(self.spans(text)) / len(text))
        # DIFFERS: phf-ray gives no score if a detector fails; the original gives 0.0, the best score.
        except Exception as error:  # noqa: BLE001  eight libraries on any text: dateparser alone raises four kinds
            return failure(error)


# Detectors by locale.
_EVERYWHERE = ("address", "credential", "credit_card", "date_of_birth", "email", "phone", "skype", "twitter", "url")
_ONLY_IN = {
    "en_US": ("social_security_number",),
    "en_GB": (
        *("drivers_licence", "national_insurance_number", "postalcode", "tax_reference_number"),
        "vehicle_licence_plate",
    ),
}


def _type_of(filth: "Filth") -> str:
    from scrubadub.filth import MergedFilth

    parts = filth.filths if isinstance(filth, MergedFilth) else [filth]
    return "+".join(sorted({part.detector_name for part in parts}))
