"""The server that a page talks to: its models and scorers, answers as they come, scores of sentences."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from phf_ray.chat.conversation import ChatAnswer, Control, ScoredSentence, SentenceScores
from phf_ray.errors import ConfigError, ServiceError
from phf_ray.http.client import Client, RefusedError, is_on_this_machine
from phf_ray.http.keys import Endpoint
from phf_ray.http.openai_async import AsyncOpenAIClient

CONTROLS: tuple[Control, ...] = get_args(Control)
PATIENCE_S = 5.0
ANSWER_S = 600.0
SCORES_S = 60.0
"""A person waits for the page; the answers themselves come first."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    id: str
    controls: tuple[Control, ...] = ()
    """Empty: the model has no control tokens, and its template no markers of good and bad answers."""


class ChatServer:
    """An OpenAI-compatible server, and the one that scores answers: phf-ray's own, by default the same."""

    def __init__(self, endpoint: Endpoint, *, scores: Endpoint | None = None, allow_plain_http: bool = False):
        self.endpoint = endpoint
        self._scores = scores or endpoint
        self._allow_plain_http = allow_plain_http

    def list_models(self) -> list[ListedModel]:
        """Return the models that the server lists. Raises ServiceError if it doesn't answer or refuses."""
        client = Client(self.endpoint.url, key=self.endpoint.key, patience_s=PATIENCE_S, timeout_s=PATIENCE_S)
        cards = client.get("/v1/models").get("data")
        found = [_listed(card) for card in cards if isinstance(card, dict)] if isinstance(cards, list) else []
        return [model for model in found if model is not None]

    def list_scorers(self) -> list[str]:
        """Return the names of the scorers; empty if the server has none, as other servers have not."""
        client = Client(self._scores.url, key=self._scores.key, patience_s=PATIENCE_S, timeout_s=PATIENCE_S)
        try:
            cards = client.get("/v1/scorers").get("data")
        except RefusedError as error:
            if error.status in (404, 405):
                return []
            raise
        return [str(card["id"]) for card in cards if "id" in card] if isinstance(cards, list) else []

    def checked_key(self, key: str) -> str | None:
        """Return the key that a person gave on the page, None for an empty one. Raises ConfigError for a bad one."""
        key = key.strip()
        if not key:
            return None
        url = self.endpoint.url
        if url.startswith("http://") and not is_on_this_machine(url) and not self._allow_plain_http:
            raise ConfigError(
                f"the key was not sent: it would travel unencrypted to {url}; use https://, or start the page with "
                "--allow-plain-http in a network that you trust"
            )
        if not key.isascii() or not key.isprintable():
            raise ConfigError("the key was not sent: it has characters that no key has; copy it once more")
        return key

    @contextlib.asynccontextmanager
    async def connected(self, key: str | None = None) -> AsyncIterator["ChatConnection"]:
        """Open connections for one turn. `key`: in place of the one that the page was started with."""
        chats = _client(Endpoint(self.endpoint.url, key or self.endpoint.key), timeout_s=ANSWER_S)
        same = self._scores.url == self.endpoint.url
        scores = _client(Endpoint(self._scores.url, (same and key) or self._scores.key), timeout_s=SCORES_S)
        try:
            yield ChatConnection(chats, scores)
        finally:
            await chats.close()
            await scores.close()


class ChatConnection:
    def __init__(self, chats: AsyncOpenAIClient, scores: AsyncOpenAIClient):
        self._chats, self._scores = chats, scores

    async def fill(self, answer: ChatAnswer) -> None:
        """Let the answer grow until it is done. Raises ServiceError if the server refuses or breaks it off."""
        async for event in self._chats.stream("/v1/chat/completions", body_of(answer)):
            choice = _first_choice(event)
            delta = choice.get("delta")
            text = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(text, str):
                answer.text += text
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        if answer.finish_reason is None:
            raise ServiceError(
                f"{self._chats.url} ended the answer without saying that it was done; part may be missing"
            )

    async def score(self, scorer: str, text: str) -> SentenceScores:
        """Return the scores of a text and of its sentences. Raises ServiceError."""
        body = {"scorer": scorer, "input": text, "segments": True}
        said = await self._scores.post("/v1/scores", body)
        try:
            (one,) = said["data"]
            unit = str(said.get("scorer", {}).get("unit", "score"))
            sentences = tuple(
                ScoredSentence(int(part["begin"]), int(part["end"]), part["score"], part.get("error"))
                for part in one.get("segments") or ()
            )
            return SentenceScores(scorer, unit, one["score"], sentences)
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceError(f"{self._scores.url}/v1/scores answered in another format ({error!r})") from None


def body_of(answer: ChatAnswer) -> dict[str, Any]:
    """Return what the server is sent, without what it shall decide itself."""
    arm = answer.arm
    wanted = {"temperature": arm.temperature, "max_tokens": arm.max_tokens, "control": arm.control}
    return {
        "model": arm.model,
        "messages": [{"role": message.role, "content": message.content} for message in answer.asked],
        **{name: value for name, value in wanted.items() if value is not None},
    }


def split_control(name: str, listed: Sequence[ListedModel]) -> tuple[str, Control | None]:
    """Return the model of `NAME` or `NAME:good`, and the control. Raises ConfigError if the server lists others only.

    A model with control tokens or markers gets `good`, the server's own default, if the name has none.
    """
    known = {model.id: model for model in listed}
    if name in known or not known:
        return name, "good" if name in known and known[name].controls else None
    model, _, control = name.rpartition(":")
    if model in known and control in known[model].controls:
        return model, next(one for one in CONTROLS if one == control)
    raise ConfigError(f"--model {name}: the server lists {', '.join(known)}; take one of them")


def _listed(card: Mapping[str, Any]) -> ListedModel | None:
    if not isinstance(card.get("id"), str):
        return None
    control, chat = card.get("control"), card.get("chat")
    has_token = isinstance(control, dict) and "suffixes" in control
    has_marker = isinstance(chat, dict) and chat.get("reads_control") is True
    return ListedModel(card["id"], CONTROLS if has_token or has_marker else ())


def _first_choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _client(endpoint: Endpoint, *, timeout_s: float) -> AsyncOpenAIClient:
    return AsyncOpenAIClient(endpoint.url, key=endpoint.key, patience_s=PATIENCE_S, timeout_s=timeout_s)
