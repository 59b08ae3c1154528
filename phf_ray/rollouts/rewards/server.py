"""Rewards from a server: OpenRLHF's remote reward model, or the scores of `phf serve`."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from phf_ray.config.rewards import GET_REWARD, SCORES, RewardServer
from phf_ray.errors import ServiceError
from phf_ray.generation.chat.prompts import prompt_text
from phf_ray.http.client import Client, RefusedError
from phf_ray.http.keys import Endpoint, parse_endpoint
from phf_ray.judging.question import Failure
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder


def endpoint_of(server: RewardServer) -> Endpoint:
    """Return the server and its key. Raises ConfigError if a key is missing or would travel unencrypted."""
    text = server.base_url if server.key_env is None else f"{server.base_url},key_env={server.key_env}"
    return parse_endpoint(text, option="reward url")


class ServerRewarder(Rewarder):
    def __init__(self, server: RewardServer):
        self._server = server
        self._away: Failure | None = None
        endpoint = endpoint_of(server)
        self._client = Client(endpoint.url, key=endpoint.key, patience_s=server.patience_s, timeout_s=server.timeout_s)

    @property
    def identity(self) -> dict[str, Any]:
        named = self._server.model_dump(mode="json", include={"scorer", "send_prompts"})
        return {"url": self._server.base_url + (SCORES if self._server.asks_scores else GET_REWARD), **named}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        size = self._server.batch_size
        batches = [answers[begin : begin + size] for begin in range(0, len(answers), size)]
        self._away = None
        with ThreadPoolExecutor(self._server.max_in_flight) as pool:
            return [reward for batch in pool.map(self._of_batch, batches) for reward in batch]

    def _of_batch(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        # A batch that waited in vain until the patience was over did so for all that were not sent yet.
        if self._away is not None:
            return [self._away] * len(answers)
        try:
            return self._scores(answers) if self._server.asks_scores else self._remote_rewards(answers)
        except RefusedError as error:
            # One text may be at fault.
            if error.status == 400 and len(answers) > 1:
                return [reward for answer in answers for reward in self._of_batch([answer])]
            return [Failure(f"refused: {error}")] * len(answers)
        except ServiceError as error:
            self._away = Failure(f"unanswered: {error}")
            return [self._away] * len(answers)

    def _remote_rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        prompts = [answer.prompt.text for answer in answers]
        whole = [prompt + answer.completion for prompt, answer in zip(prompts, answers, strict=True)]
        said = self._client.post(GET_REWARD, {"query": whole, "prompts": prompts})
        rewards, errors = said.get("rewards"), said.get("errors")
        if not isinstance(rewards, list) or len(rewards) != len(answers):
            raise RefusedError(f"{self._client.url}{GET_REWARD} answered with {str(said)[:200]}; it lacks rewards")
        reasons = errors if isinstance(errors, list) and len(errors) == len(rewards) else [None] * len(rewards)
        return [_number(reward, reason, sign=1) for reward, reason in zip(rewards, reasons, strict=True)]

    def _scores(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        body: dict[str, Any] = {
            "scorer": self._server.scorer,
            "input": [answer.completion for answer in answers],
            "segments": False,
        }
        if self._server.send_prompts:
            body["prompts"] = [prompt_text(answer.prompt.prompt) for answer in answers]
        said = self._client.post(SCORES, body)
        data = said.get("data")
        entries: list[Mapping[str, Any]] = [one for one in data if isinstance(one, dict)] if data else []
        by_index = {entry.get("index"): entry for entry in entries}
        if by_index.keys() != set(range(len(answers))):
            raise RefusedError(f"{self._client.url}{SCORES} answered with {str(said)[:200]}; it lacks scores")
        return [
            _number(by_index[place].get("score"), by_index[place].get("error"), sign=-1)
            for place in range(len(answers))
        ]


def _number(value: Any, reason: Any, *, sign: int) -> float | Failure:
    """Return the reward that a server sent; servers of others wrap it in a list."""
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    if value is None:
        return Failure(str(reason or "no_reward: the server gave none, and no reason"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return Failure(f"not_finite: the server said {value!r:.60}")
    return sign * float(value) + 0.0  # never -0.0
