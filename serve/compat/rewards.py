"""OpenRLHF's remote reward model, from the served reward model."""

import json
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field

from serve.api.scores import prompts_beside
from serve.backends import Backend, ScorerBackend
from serve.compat.shared import LenientModel, served_scorer
from serve.schemas import MAX_BATCH, Text, texts_of

Texts = Text | Annotated[list[Text], Field(max_length=MAX_BATCH)]


class RewardRequest(LenientModel):
    query: Texts
    """Texts to judge: whole ones, or answers if `prompts` do not stand at their beginning."""
    prompts: Texts | None = None


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

        A query that begins with its prompt, as OpenRLHF sends both, is a whole text in the words of its template, and
        judged as it is. Another one is the answer to its prompt, which the reward model's template puts into words.
        """
        scorer = served_scorer(backend, backend.reward, "reward model's")
        request.state.model = backend.reward
        queries = texts_of(body.query)
        prompts = prompts_beside(body.prompts, queries, field="query") or [""] * len(queries)
        whole = [
            place for place, (prompt, text) in enumerate(zip(prompts, queries, strict=True)) if text.startswith(prompt)
        ]
        answers = sorted(set(range(len(queries))) - set(whole))
        found: dict[int, dict[str, Any]] = {}
        if whole:
            found |= dict(zip(whole, await _scores(scorer, [queries[place] for place in whole], None), strict=True))
        if answers:
            asked = [prompts[place] for place in answers]
            scored = await _scores(scorer, [queries[place] for place in answers], asked)
            found |= dict(zip(answers, scored, strict=True))
        items = [found[place] for place in range(len(queries))]
        rewards = [None if item["score"] is None else -item["score"] for item in items]
        return RewardResponse(rewards=rewards, scores=rewards, errors=[item["error"] for item in items])


async def _scores(scorer: ScorerBackend, texts: list[str], prompts: list[str] | None) -> list[dict[str, Any]]:
    scored = await scorer.score(texts, segments=False, prompts=prompts)
    items: list[dict[str, Any]] = json.loads(scored.data)
    return items
