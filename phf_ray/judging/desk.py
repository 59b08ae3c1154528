"""The desk where questions of a pool are handed in: the store, its ledger, and an endpoint for each judge behind a URL.

Each process that opens a cache has one. On Ray it stands in an actor of its own, and workers hand in by messages.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from phf_ray.config import JudgeServer
from phf_ray.http.keys import parse_endpoint
from phf_ray.judging.budget import Budget, Price
from phf_ray.judging.dispatch import AskerByJudge
from phf_ray.judging.endpoint import EndpointSettings, JudgeEndpoint
from phf_ray.judging.importing import find_known
from phf_ray.judging.ledger import CallObserver, Ledger
from phf_ray.judging.pairs import Judgement
from phf_ray.judging.pool import Pool
from phf_ray.judging.question import Answer, Failure, Question
from phf_ray.judging.score_asker import ScoreAsker
from phf_ray.judging.score_server import ScoreServerSettings
from phf_ray.judging.store import Store
from phf_ray.judging.stored_asker import StoredAsker


class Desk(Protocol):
    """An `Asker` that also knows judgements from elsewhere."""

    async def ask(self, question: Question) -> Answer | Failure: ...

    async def known(self, asked: Mapping[str, str]) -> dict[str, Judgement]:
        """Return the known judgements of {known_key: annotator}, by key."""
        ...

    async def close(self) -> None:
        """Close connections. What was handed in is answered first."""
        ...


@dataclass(frozen=True, slots=True)
class DeskSettings:
    """What a desk is opened with, in any process."""

    cache: str
    """Folder of the store."""
    endpoints: Mapping[str, EndpointSettings]
    """Whom questions name as their judge -> how it is asked."""
    budget: Budget | None = None
    scorers: Mapping[str, ScoreServerSettings] = field(default_factory=dict)
    """The same for scorers behind URLs."""


class StoreDesk:
    """A desk in this process."""

    def __init__(self, settings: DeskSettings, *, observer: CallObserver | None = None):
        self.store = Store(settings.cache)
        self.ledger = Ledger(self.store, settings.budget, observer=observer)
        self._askers: dict[str, StoredAsker | ScoreAsker] = {
            judge: StoredAsker(self.store, JudgeEndpoint(endpoint), self.ledger)
            for judge, endpoint in settings.endpoints.items()
        }
        self._askers |= {judge: ScoreAsker(self.store, scorer) for judge, scorer in settings.scorers.items()}
        self._asker = AskerByJudge(self._askers)

    async def ask(self, question: Question) -> Answer | Failure:
        return await self._asker.ask(question)

    async def known(self, asked: Mapping[str, str]) -> dict[str, Judgement]:
        return find_known(self.store, asked)

    async def close(self) -> None:
        for asker in self._askers.values():
            await asker.close()


def endpoints_of(pool: Pool, *, allow_plain_http: bool = False) -> dict[str, EndpointSettings]:
    """Return how the judges of a pool that are behind URLs are asked.

    Raises ConfigError if a URL is none, or a key is missing or would travel unencrypted.
    """
    return {judge: _settings(server, allow_plain_http=allow_plain_http) for judge, server in pool.endpoints.items()}


def _settings(server: JudgeServer, *, allow_plain_http: bool) -> EndpointSettings:
    text = str(server.url) if server.key_env is None else f"{server.url},key_env={server.key_env}"
    endpoint = parse_endpoint(text, option=f"judge {server.model}:", allow_plain_http=allow_plain_http)
    return EndpointSettings(
        endpoint=endpoint,
        model=str(server.model),
        price=None if server.price is None else Price(server.price.input, server.price.output),
        max_in_flight=server.max_in_flight,
        patience_s=server.patience_s,
        timeout_s=server.timeout_s,
    )


def default_cache() -> str:
    """Return the folder that keeps answers where no other is named."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phf_ray" / "judgements")
