"""OpenAI's moderations, from the toxicity scorer."""

import secrets
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from pydantic import Field, model_validator

from serve.backends import Backend
from serve.compat.shared import LenientModel, served_scorer
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
        """OpenAI's moderations. Categories that the model can't judge are null; the model's own classes are added."""
        scorer = served_scorer(backend, backend.toxicity, "toxicity")
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
