"""A red LM over HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from phf_ray.characters import whole_characters
from phf_ray.config import GenerateKwargs, RedTeamConfig, Scenario
from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import CHECK_PATIENCE_S, Arm, check_arm, client_of
from phf_ray.evaluation.attack.algorithm import RedReply
from phf_ray.evaluation.attack.instructions import is_refusal
from phf_ray.evaluation.probe import Probe
from phf_ray.http.client import RefusedError

AttackerApi = Literal["chat", "completions"]

_PATHS: dict[AttackerApi, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True, slots=True)
class Attacker:
    """The red LM: a model on a server, and the API to ask it with."""

    arm: Arm
    api: AttackerApi


class RedLM:
    """A red LM over HTTP."""

    def __init__(self, attacker: Attacker, config: RedTeamConfig, *, patience_s: float):
        self._api = attacker.api
        self._arm = attacker.arm
        self._settings = config.attacker
        self._client = client_of(attacker.arm, patience_s=patience_s)
        self._limit_name = "max_tokens"
        self._probe = Probe(attacker.arm, check_arm(attacker.arm))

    def ask(self, request: str, *, num: int, seed: int) -> list[RedReply]:
        """Return exactly `num` replies. If the server returns fewer at a time, ask again with another seed."""
        replies: list[RedReply] = []
        while len(replies) < num:
            choices = self._choices(request, num=num - len(replies), seed=seed + len(replies))
            if not choices:
                raise RefusedError(
                    f"{self._arm.url} answered without choices; does {self._arm.model} speak {self._api}?"
                )
            replies += [self._reply(choice) for choice in choices[: num - len(replies)]]
        return replies

    def _choices(self, request: str, *, num: int, seed: int) -> list[Mapping[str, Any]]:
        body: dict[str, Any] = {
            "model": self._arm.model,
            "n": num,
            "temperature": self._settings.temperature,
            "top_p": self._settings.top_p,
            "seed": seed % (1 << 31),
        }
        if self._api == "chat":
            answer = self._chat(body | {"messages": [{"role": "user", "content": request}]})
        else:
            answer = self._client.post(_PATHS[self._api], body | self._prompt(request))
        found = answer.get("choices")
        return sorted(found, key=lambda choice: choice.get("index", 0)) if isinstance(found, list) else []

    def _chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._client.post(_PATHS["chat"], {**body, self._limit_name: self._settings.max_tokens})
        except RefusedError as error:
            # OpenAI's newer models insist on this name.
            if self._limit_name == "max_tokens" and "max_completion_tokens" in str(error):
                self._limit_name = "max_completion_tokens"
                return self._chat(body)
            raise

    def _prompt(self, request: str) -> dict[str, Any]:
        kwargs = GenerateKwargs(max_length=None, max_new_tokens=self._settings.max_tokens)
        sent, control, room = self._probe.prepare(request, Scenario(name="attacker", generate_kwargs=kwargs))
        if room < 1:
            raise RefusedError(
                f"the request does not fit into the {self._probe.context:g} positions of the red LM {self._arm.model}; "
                "lower red_team.num_examples, or use a red LM with a longer context"
            )
        return {"prompt": sent, "max_tokens": room} | ({} if control is None else {"control": control})

    def _reply(self, choice: Mapping[str, Any]) -> RedReply:
        if self._api == "completions":
            return RedReply(whole_characters(str(choice.get("text") or "")))
        message = choice.get("message") or {}
        text = whole_characters(str(message.get("content") or ""))
        declined = bool(message.get("refusal")) or choice.get("finish_reason") == "content_filter"
        return RedReply(
            text or whole_characters(str(message.get("refusal") or "")), refused=declined or is_refusal(text)
        )


def check_attacker(attacker: Attacker) -> dict[str, Any]:
    """Return the server's card of the red LM. Raises ConfigError if the server does not know the API to use."""
    card = check_arm(attacker.arm)
    path = _PATHS[attacker.api]
    try:
        # The request lacks its text on purpose: a server that knows the path answers that something is missing.
        client_of(attacker.arm, patience_s=CHECK_PATIENCE_S).post(path, {"model": attacker.arm.model})
    except RefusedError as error:
        if error.status in (404, 405):
            other = "completions" if attacker.api == "chat" else "chat"
            raise ConfigError(
                f"{error}: the red LM {attacker.arm.model} does not speak {attacker.api}; give --attacker-api {other}"
            ) from None
    return card
