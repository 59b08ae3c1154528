"""A model and a scorer in this process that answer like servers.

They answer the same paths as a server. So the requests, their seeds, the scores and the figures are the same as in
`jobs.evaluate_lm` for the same checkpoint.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.config import Config
from phf_ray.generation.bodies import requests_from_body
from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.requests import Completion
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask, without_gpus


class InProcessModel:
    """A model that answers like a server. Several threads may call it; the engine answers one call at a time."""

    def __init__(self, name: str, engine: Engine):
        self._name = name
        self._engine = engine
        self._lock = threading.Lock()

    def get(self, path: str) -> dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": self._name, "owned_by": "phf-ray", "max_model_len": self._engine.context}]}
        assert path.startswith("/tokenizer_info"), path
        tokenizer = self._engine.strings.tokenizer
        return {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            return {"tokens": self._tokenize(body["prompt"], add_special_tokens=body["add_special_tokens"])}
        assert path == "/v1/completions", path
        [choices] = self.complete([body])
        return {"choices": choices}

    def complete(self, bodies: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        """Return the choices of each completion request; all requests share the engine's batch."""
        requests = [requests_from_body(_without_logprobs_of_samples(body)) for body in bodies]
        with self._lock:
            completions = iter(generate(self._engine, [request for group in requests for request in group]))
        return [[self._choice(index, next(completions)) for index in range(len(group))] for group in requests]

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        strings = self._engine.strings
        if add_special_tokens:
            return strings.encode(text)[0]
        return list(strings.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        strings = self._engine.strings
        if completion.logprobs is None:
            logprobs: dict[str, Any] = {"tokens": [strings.text_of(token_id) for token_id in completion.token_ids]}
        else:
            logprobs = {
                "tokens": [record.token for record in completion.logprobs],
                "token_logprobs": [record.logprob for record in completion.logprobs],
                "text_offset": [record.text_offset for record in completion.logprobs],
            }
        return {
            "index": index,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "logprobs": logprobs,
            "token_ids": list(completion.token_ids),
        }


def _without_logprobs_of_samples(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Drop `logprobs` unless the prompt is echoed: samples need it only to count tokens, which is known here."""
    return body if body.get("echo") else {**body, "logprobs": None}


class InProcessScores:
    """A scorer that answers like a server. It runs in its own process: if it hangs on a text, that text has no score
    but a reason."""

    def __init__(self, config: Config, *, has_gpu: bool):
        """`has_gpu`: whether this process has a GPU."""
        setup = ScoringSetup(
            (dict(config.evaluation_scorer),), segmenter="document", text_timeout_s=config.scoring.text_timeout_s
        )
        self._process = ScoringProcess(setup if has_gpu else without_gpus(setup))
        [identity] = self._process.identities
        self.identity = identity.to_json()
        self.name = identity.name

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == "/v1/scores", path
        self._process.submit([ScoringTask(texts=(text,)) for text in body["input"]])
        scored = [outcome.scores[self.name] for outcome in self._process.collect().outcomes]
        data = [
            {"index": index, "score": scores[0], "error": errors[0]} for index, (scores, errors) in enumerate(scored)
        ]
        return {"scorer": self.identity, "data": data}

    def close(self) -> None:
        self._process.close()
