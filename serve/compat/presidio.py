"""Presidio's analyzer, from the PII scorer."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from phf_ray.records import Span
from serve.backends import Backend
from serve.compat.shared import LenientModel, served_scorer
from serve.errors import ApiError
from serve.schemas import MAX_BATCH, Text

# This project's detector -> Presidio's entity. Names that Presidio lacks follow its style.
PRESIDIO_ENTITIES = {
    "address": "LOCATION",
    "api_key": "API_KEY",
    "credential": "CREDENTIAL",
    "credit_card": "CREDIT_CARD",
    "crypto_wallet": "CRYPTO",
    "date_of_birth": "DATE_TIME",
    "drivers_licence": "UK_DRIVING_LICENCE",
    "email": "EMAIL_ADDRESS",
    "iban": "IBAN_CODE",
    "ip_address": "IP_ADDRESS",
    "mac_address": "MAC_ADDRESS",
    "national_insurance_number": "UK_NINO",
    "phone": "PHONE_NUMBER",
    "postalcode": "UK_POSTCODE",
    "skype": "SKYPE_NAME",
    "social_security_number": "US_SSN",
    "spacy_entity": "PERSON",
    "tax_reference_number": "UK_TAX_REFERENCE",
    "twitter": "TWITTER_HANDLE",
    "url": "URL",
    "vehicle_licence_plate": "UK_VEHICLE_REGISTRATION",
}


class PresidioRequest(LenientModel):
    text: Text | Annotated[list[Text], Field(max_length=MAX_BATCH)]
    language: str
    entities: list[str] | None = None
    score_threshold: float | None = None
    correlation_id: str | None = None
    return_decision_process: bool = False
    ad_hoc_recognizers: list[Any] | None = None
    context: list[str] | None = None
    allow_list: list[str] | None = None


class RecognizerResult(BaseModel):
    entity_type: str
    start: int
    end: int
    score: float
    analysis_explanation: dict[str, Any] | None = None


def add_presidio(app: FastAPI, backend: Backend) -> None:
    detectors = sorted(PRESIDIO_ENTITIES if backend.pii_types is None else backend.pii_types)
    recognized = sorted({_entity(detector) for detector in detectors})

    @app.post("/analyze", response_model=list[RecognizerResult] | list[list[RecognizerResult]])
    async def analyze(body: PresidioRequest, request: Request) -> Any:
        """Presidio's analyzer, from the PII scorer: a list for a text, a list of lists for a list of texts."""
        scorer = served_scorer(backend, backend.pii, "PII")
        request.state.model = backend.pii
        if body.language != "en":
            raise ApiError(400, f"language {body.language!r} is not supported; use en", "language")
        if body.ad_hoc_recognizers:
            raise ApiError(400, "ad_hoc_recognizers are not supported; leave them out", "ad_hoc_recognizers")
        _refuse_entities(body.entities, recognized)
        texts = [body.text] if isinstance(body.text, str) else body.text
        found = await scorer.spans(texts)
        results = [_recognized(text, spans, body) for text, spans in zip(texts, found, strict=True)]
        return results[0] if isinstance(body.text, str) else results

    @app.get("/supportedentities")
    async def supported_entities(language: str = "en") -> list[str]:
        if language != "en":
            raise ApiError(400, f"language {language!r} is not supported; use en", "language")
        return recognized

    @app.get("/recognizers")
    async def recognizers(language: str = "en") -> list[str]:
        if language != "en":
            raise ApiError(400, f"language {language!r} is not supported; use en", "language")
        return detectors


def _entity(detector: str) -> str:
    return PRESIDIO_ENTITIES.get(detector, detector.upper())


def _refuse_entities(entities: Sequence[str] | None, recognized: Sequence[str]) -> None:
    """Raise ApiError if the scorer can't find one of the entities: an empty answer would say that there is none."""
    unknown = sorted(set(entities or ()) - set(recognized))
    if unknown:
        raise ApiError(400, f"entity {unknown[0]!r} is not supported; choose from {', '.join(recognized)}", "entities")


def _recognized(text: str, spans: Sequence[Span], body: PresidioRequest) -> list[RecognizerResult]:
    threshold = -math.inf if body.score_threshold is None else body.score_threshold
    results = []
    for span in spans:
        if threshold > span.confidence or text[span.begin : span.end] in (body.allow_list or ()):
            continue
        # In the paper's mode overlapping detections are one span, whose type names them all.
        for detector in span.type.split("+"):
            entity = _entity(detector)
            # No entities, or an empty list, means all of them, as with Presidio.
            if not body.entities or entity in body.entities:
                results.append(
                    RecognizerResult(entity_type=entity, start=span.begin, end=span.end, score=span.confidence)
                )
    return results
