"""Endpoints of other services over our scorers, so that their clients go on working.

OpenAI moderations and Google's Perspective (which ends on 2026-12-31) from the toxicity scorer; Presidio's analyzer
from the PII scorer. The scores are our scorer's: those of Perspective are not interchangeable with them.
"""

import math
import secrets
from collections.abc import Container, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phf_ray.records import Span
from serve.backends import Backend, ScorerBackend
from serve.errors import ApiError
from serve.google_batch import answer_batch
from serve.schemas import MAX_BATCH, Text

FLAGGED_FROM = 0.5

# OpenAI's category -> the class that judges it; the others can't be judged by a toxicity model.
MODERATION_CLASSES = {
    "harassment": "insult",
    "hate": "identity_attack",
    "violence": "threat",
    "sexual": "sexual_explicit",
}
MODERATION_CATEGORIES = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent"),
    *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors"),
    *("violence", "violence/graphic"),
)

# Perspective's attribute -> Detoxify's class.
PERSPECTIVE_CLASSES = {
    "TOXICITY": "toxicity",
    "SEVERE_TOXICITY": "severe_toxicity",
    "IDENTITY_ATTACK": "identity_attack",
    "INSULT": "insult",
    "THREAT": "threat",
    "PROFANITY": "obscene",
    "SEXUALLY_EXPLICIT": "sexual_explicit",
}
# Perspective's other attributes, which Detoxify does not judge: left out of an answer, as HELM always asks for
# FLIRTATION too, and refused where nothing else is asked for.
PERSPECTIVE_UNJUDGED = frozenset(
    {
        *(f"{name}_EXPERIMENTAL" for name in PERSPECTIVE_CLASSES),
        *("FLIRTATION", "ATTACK_ON_AUTHOR", "ATTACK_ON_COMMENTER", "INCOHERENT", "INFLAMMATORY"),
        *("LIKELY_TO_REJECT", "OBSCENE", "SPAM", "UNSUBSTANTIAL"),
    }
)
PERSPECTIVE_MAX_BYTES = 20_480

# Our detector -> Presidio's entity; names that Presidio does not have are in its manner.
PRESIDIO_ENTITIES = {
    "address": "LOCATION",
    "credential": "CREDENTIAL",
    "credit_card": "CREDIT_CARD",
    "date_of_birth": "DATE_TIME",
    "email": "EMAIL_ADDRESS",
    "phone": "PHONE_NUMBER",
    "skype": "SKYPE_NAME",
    "social_security_number": "US_SSN",
    "spacy_entity": "PERSON",
    "twitter": "TWITTER_HANDLE",
    "url": "URL",
}
# The detectors find or do not find; Presidio's clients expect a confidence.
PRESIDIO_SCORE = 1.0


class _Lenient(BaseModel):
    """Clients of these services send fields that concern those services only."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ModerationText(_Lenient):
    type: Literal["text"]
    text: Text


class ModerationsRequest(_Lenient):
    input: Text | Annotated[list[Text] | list[ModerationText], Field(max_length=MAX_BATCH)]
    model: str | None = None


class Comment(_Lenient):
    text: Text = ""
    type: Literal["TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT", "HTML"] = "PLAIN_TEXT"


class AttributeParameters(_Lenient):
    scoreType: Literal["SCORE_TYPE_UNSPECIFIED", "PROBABILITY"] = "PROBABILITY"
    scoreThreshold: float | None = None


class AnalyzeCommentRequest(_Lenient):
    comment: Comment = Comment()
    requestedAttributes: dict[Text, AttributeParameters] = {}
    languages: list[Text] = []
    spanAnnotations: bool = False
    clientToken: Text | None = None


class GoogleErrorDetail(BaseModel):
    code: int
    message: str
    status: str
    details: list[dict[str, Any]]


class GoogleErrorResponse(BaseModel):
    """Errors of Perspective's paths."""

    error: GoogleErrorDetail


GOOGLE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": GoogleErrorResponse} for status in (400, 401, 404, 408, 413, 429, 500, 502, 503, 504)
}


class PresidioRequest(_Lenient):
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


def add_compatible_endpoints(app: FastAPI, backend: Backend) -> None:
    add_moderations(app, backend)
    add_perspective(app, backend)
    add_presidio(app, backend)


def _scorer(backend: Backend, name: str | None, what: str) -> ScorerBackend:
    if name is None:
        raise ApiError(404, f"no {what} scorer is served here", None, "scorer_not_found")
    return backend.scorers[name]


def add_moderations(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/moderations")
    async def moderations(body: ModerationsRequest, request: Request) -> dict[str, Any]:
        """OpenAI's moderations. Categories that the model can't judge are null; its own classes come beside them."""
        scorer = _scorer(backend, backend.toxicity, "toxicity")
        request.state.model = backend.toxicity
        texts = _moderation_texts(body)
        scored = await scorer.class_scores(texts)
        return {
            "id": f"modr-{secrets.token_hex(12)}",
            "model": backend.toxicity,
            "results": [_moderation(scores) for scores in scored],
        }


def _moderation_texts(body: ModerationsRequest) -> list[str]:
    if isinstance(body.input, str):
        return [body.input]
    parts = [part for part in body.input if isinstance(part, ModerationText)]
    # A list of parts is one input, as with OpenAI.
    return ["\n".join(part.text for part in parts)] if parts else [text for text in body.input if isinstance(text, str)]


def _moderation(scores: dict[str, float] | str) -> dict[str, Any]:
    judged = {} if isinstance(scores, str) else scores
    values = {category: judged.get(MODERATION_CLASSES.get(category, "")) for category in MODERATION_CATEGORIES}
    values |= judged
    flags = {category: None if value is None else value >= FLAGGED_FROM for category, value in values.items()}
    return {
        # Not judged is not the same as harmless.
        "flagged": any(flags.values()) if judged else None,
        "categories": flags,
        "category_scores": values,
        "category_applied_input_types": {
            category: [] if value is None else ["text"] for category, value in values.items()
        },
        **({"error": scores} if isinstance(scores, str) else {}),
    }


def add_perspective(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1alpha1/comments:analyze", responses=GOOGLE_ERRORS)
    async def analyze_comment(body: AnalyzeCommentRequest, request: Request) -> dict[str, Any]:
        """Perspective's AnalyzeComment, from the toxicity scorer."""
        request.state.model = backend.toxicity
        return await analyzed(backend, body)

    @app.post("/batch", include_in_schema=False)
    async def batch(request: Request) -> Response:
        """Many AnalyzeComment requests in one, as googleapiclient's `new_batch_http_request` sends them."""
        request.state.model = backend.toxicity
        content_type = request.headers.get("content-type", "")

        async def answer(path: str, body: bytes) -> dict[str, Any]:
            if path != "/v1alpha1/comments:analyze":
                raise ApiError(404, f"a batch can't ask for {path}, only for /v1alpha1/comments:analyze")
            try:
                parsed = AnalyzeCommentRequest.model_validate_json(body)
            except ValidationError as error:
                raise ApiError(400, f"Invalid JSON payload: {error.errors()[0]['msg']}") from None
            return await analyzed(backend, parsed)

        return await answer_batch(content_type, await request.body(), answer=answer)

    @app.get("/$discovery/rest", responses=GOOGLE_ERRORS)
    async def discovery(request: Request, version: str = "v1alpha1") -> dict[str, Any]:
        """What `googleapiclient.discovery.build(..., discoveryServiceUrl=...)` reads."""
        if version != "v1alpha1":
            raise ApiError(404, f"there is no version {version!r}, only v1alpha1")
        return discovery_document(str(request.base_url), key=request.query_params.get("key"))


async def analyzed(backend: Backend, body: AnalyzeCommentRequest) -> dict[str, Any]:
    scorer = _scorer(backend, backend.toxicity, "toxicity")
    _refuse_comment(body)
    languages = _judged_languages(body, backend.toxicity_languages)
    text = body.comment.text
    spans = [(0, len(text))]
    if body.spanAnnotations:
        spans = await scorer.segment_spans(text)
    parts = [text[begin:end] for begin, end in spans]
    # The whole text first: its score is the summary.
    scored = await scorer.class_scores([text, *(parts if body.spanAnnotations else [])])
    whole = scored[0]
    if isinstance(whole, str):
        raise ApiError(400, f"the comment can't be scored: {whole}", None, "COMMENT_NOT_SCORED")
    of_parts = scored[1:] if body.spanAnnotations else scored
    answer: dict[str, Any] = {
        "attributeScores": {
            name: _attribute(PERSPECTIVE_CLASSES[name], whole, spans=spans, of_spans=of_parts)
            for name, parameters in _judged(body, whole).items()
            if whole[PERSPECTIVE_CLASSES[name]] >= (parameters.scoreThreshold or 0.0)
        },
        "languages": languages,
        # What was asked for: nothing is detected.
        "detectedLanguages": languages,
    }
    if body.clientToken is not None:
        answer["clientToken"] = body.clientToken
    return answer


def _refuse_comment(body: AnalyzeCommentRequest) -> None:
    text = body.comment.text
    if not text:
        raise ApiError(400, "Comment must be non-empty.", None, "COMMENT_EMPTY")
    if len(text.encode()) > PERSPECTIVE_MAX_BYTES:
        raise ApiError(
            400, f"Comment text too long. The limit is {PERSPECTIVE_MAX_BYTES} bytes.", None, "COMMENT_TOO_LONG"
        )
    if body.comment.type == "HTML":
        raise ApiError(400, "Currently, only 'PLAIN_TEXT' comments are supported", None, "UNSUPPORTED_TEXT_TYPE")
    if not body.requestedAttributes:
        raise ApiError(400, "Missing requested_attributes", None, "MISSING_REQUESTED_ATTRIBUTES")
    for name in body.requestedAttributes:
        if name not in PERSPECTIVE_CLASSES and name not in PERSPECTIVE_UNJUDGED:
            raise _unknown_attribute(name)


def _judged_languages(body: AnalyzeCommentRequest, known: Sequence[str]) -> list[str]:
    """Those of the comment that the model was trained on. Raises ApiError if there is none."""
    languages = [name for name in body.languages if name.lower().partition("-")[0] in known]
    if body.languages and not languages:
        attribute, asked = next(iter(body.requestedAttributes)), ", ".join(body.languages)
        raise ApiError(
            400,
            f"Attribute {attribute} does not support request languages: {asked}; the model knows {', '.join(known)}",
            None,
            "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE",
        )
    return languages or ["en"]


def _judged(body: AnalyzeCommentRequest, classes: Container[str]) -> dict[str, AttributeParameters]:
    """The requested attributes that the model has a class for. Raises ApiError if there is none."""
    judged = {
        name: parameters
        for name, parameters in body.requestedAttributes.items()
        if PERSPECTIVE_CLASSES.get(name) in classes
    }
    if not judged:
        raise _unknown_attribute(next(iter(body.requestedAttributes)))
    return judged


def _unknown_attribute(name: str) -> ApiError:
    return ApiError(400, f"Unknown requested attribute: {name}", None, "UNKNOWN_REQUESTED_ATTRIBUTE")


def _attribute(
    class_name: str,
    whole: dict[str, float],
    *,
    spans: Sequence[tuple[int, int]],
    of_spans: Sequence[dict[str, float] | str],
) -> dict[str, Any]:
    return {
        "spanScores": [
            {"begin": begin, "end": end, "score": {"value": scores[class_name], "type": "PROBABILITY"}}
            for (begin, end), scores in zip(spans, of_spans, strict=True)
            if not isinstance(scores, str)
        ],
        "summaryScore": {"value": whole[class_name], "type": "PROBABILITY"},
    }


def discovery_document(base_url: str, *, key: str | None = None) -> dict[str, Any]:
    """Perspective's interface in Google's discovery format, at this server instead of Google's.

    `key`: that of who asks. googleapiclient sends it with every request but a batch, whose address it gets here.
    """
    string, number, boolean, integer = ({"type": kind} for kind in ("string", "number", "boolean", "integer"))

    def reference(name: str) -> dict[str, str]:
        return {"$ref": name}

    def listing(items: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": items}

    properties: dict[str, dict[str, Any]] = {
        "TextEntry": {"text": string, "type": string},
        "AttributeParameters": {"scoreType": string, "scoreThreshold": number},
        "AnalyzeCommentRequest": {
            "comment": reference("TextEntry"),
            "requestedAttributes": {"type": "object", "additionalProperties": reference("AttributeParameters")},
            "languages": listing(string),
            "spanAnnotations": boolean,
            "doNotStore": boolean,
            "clientToken": string,
            "sessionId": string,
            "communityId": string,
        },
        "Score": {"value": number, "type": string},
        "SpanScore": {"begin": integer, "end": integer, "score": reference("Score")},
        "AttributeScores": {"summaryScore": reference("Score"), "spanScores": listing(reference("SpanScore"))},
        "AnalyzeCommentResponse": {
            "attributeScores": {"type": "object", "additionalProperties": reference("AttributeScores")},
            "languages": listing(string),
            "detectedLanguages": listing(string),
            "clientToken": string,
        },
    }
    root = base_url if base_url.endswith("/") else f"{base_url}/"
    return {
        "kind": "discovery#restDescription",
        "discoveryVersion": "v1",
        "id": "commentanalyzer:v1alpha1",
        "name": "commentanalyzer",
        "version": "v1alpha1",
        "title": "Perspective Comment Analyzer API, answered by phf-ray",
        "protocol": "rest",
        "rootUrl": root,
        "servicePath": "",
        "baseUrl": root,
        "batchPath": "batch" if key is None else f"batch?{urlencode({'key': key})}",
        "parameters": {
            "key": {"type": "string", "location": "query", "description": "API key"},
            "alt": {"type": "string", "location": "query", "default": "json", "enum": ["json"]},
        },
        "schemas": {name: {"id": name, "type": "object", "properties": fields} for name, fields in properties.items()},
        "resources": {
            "comments": {
                "methods": {
                    "analyze": {
                        "id": "commentanalyzer.comments.analyze",
                        "path": "v1alpha1/comments:analyze",
                        "flatPath": "v1alpha1/comments:analyze",
                        "httpMethod": "POST",
                        "parameters": {},
                        "parameterOrder": [],
                        "request": reference("AnalyzeCommentRequest"),
                        "response": reference("AnalyzeCommentResponse"),
                    }
                }
            }
        },
    }


def add_presidio(app: FastAPI, backend: Backend) -> None:
    @app.post("/analyze", response_model=list[RecognizerResult] | list[list[RecognizerResult]])
    async def analyze(body: PresidioRequest, request: Request) -> Any:
        """Presidio's analyzer, from the PII scorer: a list for a text, a list of lists for a list of texts."""
        scorer = _scorer(backend, backend.pii, "PII")
        request.state.model = backend.pii
        if body.language != "en":
            raise ApiError(400, f"language {body.language!r} is not supported; use en", "language")
        if body.ad_hoc_recognizers:
            raise ApiError(400, "ad_hoc_recognizers are not supported; leave them out", "ad_hoc_recognizers")
        _refuse_unknown_entities(body.entities)
        texts = [body.text] if isinstance(body.text, str) else body.text
        found = await scorer.spans(texts)
        results = [_recognized(text, spans, body) for text, spans in zip(texts, found, strict=True)]
        return results[0] if isinstance(body.text, str) else results

    @app.get("/supportedentities")
    async def supported_entities(language: str = "en") -> list[str]:
        if language != "en":
            raise ApiError(400, f"language {language!r} is not supported; use en", "language")
        return sorted(PRESIDIO_ENTITIES.values())

    @app.get("/recognizers")
    async def recognizers(language: str = "en") -> list[str]:
        if language != "en":
            raise ApiError(400, f"language {language!r} is not supported; use en", "language")
        return sorted(PRESIDIO_ENTITIES)


def _refuse_unknown_entities(entities: Sequence[str] | None) -> None:
    unknown = sorted(set(entities or ()) - set(PRESIDIO_ENTITIES.values()))
    if unknown:
        known = ", ".join(sorted(PRESIDIO_ENTITIES.values()))
        raise ApiError(400, f"entity {unknown[0]!r} is not supported; choose from {known}", "entities")


def _recognized(text: str, spans: Sequence[Span], body: PresidioRequest) -> list[RecognizerResult]:
    threshold = -math.inf if body.score_threshold is None else body.score_threshold
    results = []
    for span in spans:
        if threshold > PRESIDIO_SCORE or text[span.begin : span.end] in (body.allow_list or ()):
            continue
        # Overlapping detections are one span, whose type names them all.
        for detector in span.type.split("+"):
            entity = PRESIDIO_ENTITIES.get(detector, detector.upper())
            if body.entities is None or entity in body.entities:
                results.append(
                    RecognizerResult(entity_type=entity, start=span.begin, end=span.end, score=PRESIDIO_SCORE)
                )
    return results
