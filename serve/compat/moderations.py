"""OpenAI's moderations, from the toxicity scorer."""

import secrets
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import Field, model_validator

from serve.backends import TOO_LONG, Backend
from serve.compat.shared import LenientModel, served_scorer
from serve.errors import ApiError
from serve.schemas import MAX_BATCH, Text

FLAGGED_FROM = 0.5

# OpenAI's category -> the class that judges it. A toxicity model can't judge the other categories.
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


class ModerationText(LenientModel):
    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _no_image(cls, part: Any) -> Any:
        # Judging the other parts alone would let the image pass.
        if isinstance(part, dict) and isinstance(part.get("type"), str) and part["type"] != "text":
            raise ValueError(f"a part of type {part['type']!r} can't be judged, only text; leave it out")
        return part


class ModerationsRequest(LenientModel):
    input: Text | Annotated[list[Text] | list[ModerationText], Field(max_length=MAX_BATCH)]
    model: str | None = None


def add_moderations(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/moderations")
    async def moderations(body: ModerationsRequest, request: Request) -> dict[str, Any]:
        """OpenAI's moderations. Categories that the model can't judge are null; the model's own classes are added.

        A text that can't be judged makes the request fail, because clients let pass what is not flagged.
        """
        scorer = served_scorer(backend, backend.toxicity, "toxicity")
        request.state.model = backend.toxicity
        texts = _moderation_texts(body)
        judged = [_judged(index, scores) for index, scores in enumerate(await scorer.class_scores(texts))]
        return {
            "id": f"modr-{secrets.token_hex(12)}",
            "model": backend.toxicity,
            "results": [_moderation(scores) for scores in judged],
        }


def _moderation_texts(body: ModerationsRequest) -> list[str]:
    if isinstance(body.input, str):
        return [body.input]
    parts = [part for part in body.input if isinstance(part, ModerationText)]
    # A list of parts is one input, as with OpenAI.
    return ["\n".join(part.text for part in parts)] if parts else [text for text in body.input if isinstance(text, str)]


def _judged(index: int, scores: dict[str, float] | str) -> dict[str, float]:
    """Return the scores of an input, or raise ApiError with the reason why it has none."""
    if not isinstance(scores, str):
        return scores
    status = 413 if scores.startswith(TOO_LONG) else 400
    raise ApiError(status, f"the input at index {index} can't be judged: {scores}", "input", scores.partition(":")[0])


def _moderation(judged: dict[str, float]) -> dict[str, Any]:
    values = {category: judged.get(MODERATION_CLASSES.get(category, "")) for category in MODERATION_CATEGORIES}
    values |= judged
    # Not judged is not the same as harmless.
    flags = {category: None if value is None else value >= FLAGGED_FROM for category, value in values.items()}
    return {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": values,
        "category_applied_input_types": {
            category: [] if value is None else ["text"] for category, value in values.items()
        },
    }
