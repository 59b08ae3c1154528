"""`/v1/scores`."""

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve.backends import Backend
from serve.errors import ApiError
from serve.schemas import ScorerCard, ScorerList, ScoresRequest, ScoresResponse, texts_of


def add_scores(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/scorers")
    async def list_scorers() -> ScorerList:
        """List the names that `/v1/scores` takes as `scorer`."""
        return ScorerList(data=[ScorerCard(id=name) for name in backend.scorers])

    @app.post("/v1/scores", response_model=ScoresResponse)
    async def scores(body: ScoresRequest, request: Request) -> Response:
        """Score texts; higher is worse. A text that can't be scored has score null and an error."""
        if body.scorer not in backend.scorers:
            known = ", ".join(sorted(backend.scorers)) or "none"
            raise ApiError(
                404, f"there is no scorer {body.scorer!r}; served scorers: {known}", "scorer", "scorer_not_found"
            )
        request.state.model = body.scorer
        prompts = prompts_beside(body.prompts, body.texts, field="input")
        if prompts is not None and body.segments:
            raise ApiError(
                400,
                "a segment is judged by itself, without a prompt; leave out segments to have each text judged as the "
                "answer to its prompt, or prompts to have scores of segments",
                "segments",
            )
        scored = await backend.scorers[body.scorer].score(body.texts, segments=body.segments, prompts=prompts)
        return Response(b'{"scorer":%b,"data":%b}' % (scored.identity, scored.data), media_type="application/json")


def prompts_beside(prompts: str | list[str] | None, texts: list[str], *, field: str) -> list[str] | None:
    """Return one prompt for each text of the field, None if there are none. Raises ApiError for another number."""
    if prompts is None:
        return None
    found = texts_of(prompts)
    if len(found) != len(texts):
        raise ApiError(400, f"{len(found)} prompts for {len(texts)} texts in {field}; give one for each", "prompts")
    return found
