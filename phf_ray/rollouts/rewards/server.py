"""Rewards from a server: OpenRLHF's remote reward model, or the scores of `phf serve`."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from phf_ray.config.rewards import GET_REWARD, SCORES, RewardEndpoint
from phf_ray.errors import ServiceError
from phf_ray.generation.chat.prompts import prompt_text
from phf_ray.http.client import Client, RefusedError
from phf_ray.http.keys import Endpoint, parse_endpoint
from phf_ray.judging.endpoint import MalformedAnswerError
from phf_ray.judging.question import Failure
from phf_ray.judging.score_server import UNSCORED, scores_body, scores_in
from phf_ray.judging.stored_asker import OF_THIS_QUESTION
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder


def endpoint_of(server: RewardEndpoint) -> Endpoint:
    """Return the server and its key. Raises ConfigError if a key is missing or would travel unencrypted."""
    text = server.base_url if server.key_env is None else f"{server.base_url},key_env={server.key_env}"
    return parse_endpoint(text, option="reward url")


class ServerRewarder(Rewarder):
    def __init__(self, server: RewardEndpoint):
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
            if error.status not in OF_THIS_QUESTION or len(answers) == 1:
                return [Failure(f"refused: {error}")] * len(answers)
            # One text may be at fault, or all of them together.
            half = len(answers) // 2
            return [*self._of_batch(answers[:half]), *self._of_batch(answers[half:])]
        except MalformedAnswerError as error:
            return [Failure(f"malformed: {error}")] * len(answers)
        except ServiceError as error:
            self._away = Failure(f"unanswered: {error}")
            return [self._away] * len(answers)

    def _remote_rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        prompts = [answer.prompt.text for answer in answers]
        whole = [prompt + answer.completion for prompt, answer in zip(prompts, answers, strict=True)]
        said = self._client.post(GET_REWARD, scores_body(whole, prompts, scorer=None))
        return [_reward(score) for score in scores_in(said, num=len(answers), is_reward=True)]

    def _scores(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        texts = [answer.completion for answer in answers]
        prompts = [prompt_text(answer.prompt.prompt) for answer in answers] if self._server.send_prompts else None
        said = self._client.post(SCORES, scores_body(texts, prompts, scorer=self._server.scorer))
        return [_reward(score) for score in scores_in(said, num=len(answers), is_reward=False)]


def _reward(score: float | Failure) -> float | Failure:
    if isinstance(score, Failure):
        # The server's own kind, such as too_long, says more.
        return Failure(score.reason.removeprefix(f"{UNSCORED}: "))
    return 0.0 - score  # never -0.0
