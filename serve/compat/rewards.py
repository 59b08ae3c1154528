"""OpenRLHF's remote reward model, from the served reward model."""

import json
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from serve.api.scores import prompts_beside
from serve.backends import Backend, ScorerBackend
from serve.compat.shared import LenientModel, served_scorer
from serve.errors import ApiError
from serve.schemas import MAX_BATCH, Text, texts_of

Texts = Text | Annotated[list[Text], Field(max_length=MAX_BATCH)]


class RewardRequest(LenientModel):
    query: Texts
    """Texts to judge."""
    prompts: Texts | None = None
    joined: bool = True
    """Whether each query holds its prompt, as OpenRLHF sends it. false: it is the answer to its prompt."""


class RewardResponse(BaseModel):
    rewards: list[float | None]
    """Higher is better; null if the text could not be judged, see `errors`."""
    scores: list[float | None]
    """The rewards again."""
    errors: list[str | None]
    extra_logs: dict[str, list[float]] = {}


def add_rewards(app: FastAPI, backend: Backend) -> None:
    @app.post("/get_reward")
    async def get_reward(body: RewardRequest, request: Request) -> RewardResponse:
        """OpenRLHF's remote reward model.

        A query is a whole text, prompt and answer in the words of the sender's template, and judged as it is; `prompts`
        beside it say nothing more. With `joined: false`, which is ours, it is the answer to its prompt, which the
        reward model's template puts into words. Nothing is guessed: an answer may begin like its prompt, and OpenRLHF's
        whole texts may begin with a special token.
        """
        scorer = served_scorer(backend, backend.reward, "reward model's")
        request.state.model = backend.reward
        queries = texts_of(body.query)
        prompts = prompts_beside(body.prompts, queries, field="query")
        if not body.joined and prompts is None:
            raise ApiError(400, "answers are judged with their prompts; give prompts, or leave out joined", "prompts")
        items = await _scores(scorer, queries, None if body.joined else prompts)
        rewards = [None if item["score"] is None else -item["score"] for item in items]
        return RewardResponse(rewards=rewards, scores=rewards, errors=[item["error"] for item in items])


async def _scores(scorer: ScorerBackend, texts: list[str], prompts: list[str] | None) -> list[dict[str, Any]]:
    scored = await scorer.score(texts, segments=False, prompts=prompts)
    items: list[dict[str, Any]] = json.loads(scored.data)
    return items
