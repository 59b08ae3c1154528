"""Code that the compatible endpoints share."""

from pydantic import ConfigDict

from serve.backends import Backend, ScorerBackend
from serve.errors import ApiError
from serve.request_body import RequestBody


class LenientModel(RequestBody):
    """Ignores unknown fields: clients of these services send some that concern only those services."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def served_scorer(backend: Backend, name: str | None, what: str) -> ScorerBackend:
    if name is None:
        raise ApiError(404, f"no {what} scorer is served here", None, "scorer_not_found")
    return backend.scorers[name]
