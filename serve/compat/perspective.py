"""Perspective's AnalyzeComment, from the toxicity scorer."""

from collections.abc import Container, Sequence
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from serve.backends import Backend
from serve.compat.discovery import discovery_document
from serve.compat.google_batch import answer_batch
from serve.compat.shared import LenientModel, served_scorer
from serve.errors import ApiError
from serve.schemas import Text

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
# Perspective's other attributes, which Detoxify does not judge. Answers leave them out, since HELM always asks for
# FLIRTATION too; a request for nothing else is refused.
PERSPECTIVE_UNJUDGED = frozenset(
    {
        *(f"{name}_EXPERIMENTAL" for name in PERSPECTIVE_CLASSES),
        *("FLIRTATION", "ATTACK_ON_AUTHOR", "ATTACK_ON_COMMENTER", "INCOHERENT", "INFLAMMATORY"),
        *("LIKELY_TO_REJECT", "OBSCENE", "SPAM", "UNSUBSTANTIAL"),
    }
)
PERSPECTIVE_MAX_BYTES = 20_480


class Comment(LenientModel):
    text: Text = ""
    type: Literal["TEXT_TYPE_UNSPECIFIED", "PLAIN_TEXT", "HTML"] = "PLAIN_TEXT"


class AttributeParameters(LenientModel):
    scoreType: Literal["SCORE_TYPE_UNSPECIFIED", "PROBABILITY"] = "PROBABILITY"
    scoreThreshold: float | None = None


class AnalyzeCommentRequest(LenientModel):
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
    """The body of an error on Perspective's paths."""

    error: GoogleErrorDetail


GOOGLE_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": GoogleErrorResponse} for status in (400, 401, 404, 408, 413, 415, 429, 500, 502, 503, 504)
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
        """The document that `googleapiclient.discovery.build(..., discoveryServiceUrl=...)` reads."""
        if version != "v1alpha1":
            raise ApiError(404, f"there is no version {version!r}, only v1alpha1")
        return discovery_document(str(request.base_url), key=request.query_params.get("key"))


async def analyzed(backend: Backend, body: AnalyzeCommentRequest) -> dict[str, Any]:
    scorer = served_scorer(backend, backend.toxicity, "toxicity")
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
        # Repeats the requested languages: this server detects none.
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
    """Return the requested languages that the model was trained on. Raises ApiError if it knows none of them."""
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
    """Return the requested attributes that the model has a class for. Raises ApiError if there are none."""
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
