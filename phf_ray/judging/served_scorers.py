"""The scorers behind URLs of a pool: who they are, by what their servers say, and how they are asked."""

from collections.abc import Mapping
from dataclasses import replace

from phf_ray.config import ScorerServer, ScoreServer
from phf_ray.errors import ServiceError
from phf_ray.http.client import Client
from phf_ray.http.keys import Endpoint, parse_endpoint
from phf_ray.judging.endpoint import MalformedAnswerError
from phf_ray.judging.pool import Pool
from phf_ray.judging.score_server import (
    Identity,
    ScoreServerSettings,
    bare_url,
    body_of_scores,
    identity_in,
    path_of_scores,
    read_scores,
    scoring_question,
)

_TRIED = "x = 1\n"


def identified(pool: Pool, *, allow_plain_http: bool = False) -> Pool:
    """Return the pool with what the servers of its scorers say of them, so that a scorer is known by what it is.

    Each is asked for the score of one text, which finds a wrong URL, key or name before anything is judged. Raises
    ConfigError if a URL or key can't be used, and ServiceError, with the server's words, if it doesn't answer.
    """
    found: dict[str, Identity | None] = {}
    asked: dict[str, Identity | None] = {}
    for annotator in pool.config.annotators:
        server = annotator.judge.score_server
        if server is None:
            continue
        same = server.model_dump_json()
        if same not in asked:
            asked[same] = _identity(server, _endpoint(server, allow_plain_http=allow_plain_http))
        found[annotator.name] = asked[same]
    return replace(pool, identities=found)


def scorers_of(pool: Pool, *, allow_plain_http: bool = False) -> dict[str, ScoreServerSettings]:
    """Return how the scorers behind URLs are asked, by whom questions name as their judge. The pool is `identified`."""
    servers = {name: server for name, server in pool.score_servers.items() if name in pool.identities}
    made = (
        ScoreServerSettings(server, _endpoint(server, allow_plain_http=allow_plain_http), pool.identities[name])
        for name, server in servers.items()
    )
    return {one.judge: one for one in made}


def _endpoint(server: ScoreServer, *, allow_plain_http: bool) -> Endpoint:
    url = bare_url(server)
    text = url if server.key_env is None else f"{url},key_env={server.key_env}"
    return parse_endpoint(text, option=f"judge {path_of_scores(server)}:", allow_plain_http=allow_plain_http)


def _identity(server: ScoreServer, endpoint: Endpoint) -> Identity | None:
    client = Client(endpoint.url, key=endpoint.key, patience_s=server.patience_s, timeout_s=server.timeout_s)
    question = scoring_question("", server, instruction="Write code.", answer=_TRIED)
    said = client.post(path_of_scores(server), body_of_scores(server, [question]))
    try:
        identity = identity_in(said) if isinstance(server, ScorerServer) else None
        read_scores(ScoreServerSettings(server, endpoint, identity), said, num=1)
    except MalformedAnswerError as error:
        raise ServiceError(f"{endpoint.url}{path_of_scores(server)}: {error}; is this the right server?") from None
    return identity


def identities_json(pool: Pool) -> Mapping[str, Identity]:
    """Return what is known of the scorers behind URLs, by annotator; empty for a pool without."""
    return {name: identity for name, identity in pool.identities.items() if identity is not None}
