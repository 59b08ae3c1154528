"""One request for samples: how it is sent, and how its answer becomes samples.

A request's seed depends on (sampling seed, scenario, first sample), not on the arm: all arms get the same prompts and
the same random numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from phf_ray.characters import whole_characters
from phf_ray.checkpoint import ControlChoice
from phf_ray.config import GenerateKwargs, Scenario
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.chats import PATH, answer_of, chat_body, num_answer_tokens
from phf_ray.evaluation.report.records import Sample
from phf_ray.http.client import RefusedError
from phf_ray.storage.hashing import digest

Post = Callable[[str, Mapping[str, Any]], dict[str, Any]]

SAMPLES_PER_REQUEST = 16
"""Samples of one prompt in one request; a failed request loses all of them."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One request: `count` samples of one prompt, with indices from `start`."""

    arm: str
    scenario: str
    seed: int
    start: int
    count: int
    prompt_index: int | None
    prompt: str
    sent: str
    """The prompt as sent, with a prefix that is text. For some models it is not empty even without a prompt."""
    control: ControlChoice | None
    """The control token to ask for; None: not sent."""
    max_tokens: int

    @property
    def key(self) -> str:
        return digest([self.arm, self.scenario, self.seed, self.start])

    @property
    def request_seed(self) -> int:
        """The same for every arm; below 2**31, which all servers accept."""
        return int(digest([self.scenario, self.seed, self.start]), 16) % (1 << 31)


def request_body(unit: SampleRequest, scenario: Scenario, arm: Arm, *, start: int = 0) -> dict[str, Any]:
    """Return OpenAI's request, with vLLM's `min_tokens` and `top_k` and jobs.serve's `control` if needed.

    `start`: number of the unit's samples that earlier requests returned.
    """
    kwargs = scenario.generate_kwargs
    count, seed = unit.count - start, unit.request_seed + start
    if arm.api == "chat":
        sampling = _sampling(unit, kwargs, arm, count=count, seed=seed)
        return chat_body(sampling, unit.sent, arm, max_tokens=unit.max_tokens)
    return completion_body(unit, kwargs, arm, count=count, seed=seed)


class Sendable(Protocol):
    """A prompt as `Probe.prepare` has it."""

    @property
    def sent(self) -> str: ...

    @property
    def control(self) -> ControlChoice | None: ...

    @property
    def max_tokens(self) -> int: ...


def completion_body(asked: Sendable, kwargs: GenerateKwargs, arm: Arm, *, count: int, seed: int) -> dict[str, Any]:
    """Return the request for `count` texts after a prompt."""
    return {
        **_sampling(asked, kwargs, arm, count=count, seed=seed),
        "prompt": asked.sent,
        "max_tokens": asked.max_tokens,
        # Only to count the tokens of each text: `usage` gives just their total.
        "logprobs": 0,
    }


def _sampling(asked: Sendable, kwargs: GenerateKwargs, arm: Arm, *, count: int, seed: int) -> dict[str, Any]:
    """Return what completions and chats have in common."""
    body: dict[str, Any] = {
        "model": arm.model,
        "n": count,
        "temperature": kwargs.temperature if kwargs.do_sample else 0.0,
        "top_p": kwargs.top_p,
        "seed": seed,
    }
    if kwargs.min_length and arm.knows_vllms_fields:
        # DIFFERS: phf-ray draws at least min_length new tokens; the original counts the prompt's tokens too (D-10).
        body["min_tokens"] = min(kwargs.min_length, asked.max_tokens)
    if kwargs.top_k or arm.knows_vllms_fields:
        body["top_k"] = kwargs.top_k
    if asked.control is not None:
        body["control"] = asked.control
    return body


def draw_unit(
    unit: SampleRequest, *, scenario: Scenario, arm: Arm, ask: Post, score: Post, scorer: str
) -> list[Sample]:
    """Return the samples of one request, scored. Raises ServiceError if a server fails, RefusedError if it refuses."""
    is_chat = arm.api == "chat"
    path = PATH if is_chat else "/v1/completions"
    choices: list[Mapping[str, Any]] = []
    while len(choices) < unit.count:
        # A server that does not know `n` returns one text at a time.
        got = choices_of(ask(path, request_body(unit, scenario, arm, start=len(choices))), arm)
        choices += got[: unit.count - len(choices)]
    texts = [whole_characters(answer_of(choice, arm) if is_chat else text_of(choice, arm)) for choice in choices]
    before = f"{unit.prompt}\n\n" if is_chat else unit.prompt
    scored = score(
        "/v1/scores",
        {
            "scorer": scorer,
            "input": [before + text if scenario.use_prompt_for_scoring else text for text in texts],
            "segments": False,
        },
    )
    by_index = {entry["index"]: entry for entry in scored["data"]}
    return [
        Sample(
            arm=unit.arm,
            scenario=unit.scenario,
            seed=unit.seed,
            index=unit.start + number,
            prompt_index=unit.prompt_index,
            prompt=unit.prompt,
            text=text,
            finish_reason=choice.get("finish_reason"),
            num_tokens=num_answer_tokens(choice) if is_chat else num_tokens_of(choice),
            score=by_index[number]["score"],
            error=by_index[number].get("error"),
        )
        for number, (text, choice) in enumerate(zip(texts, choices, strict=True))
    ]


def choices_of(answer: Mapping[str, Any], arm: Arm) -> list[Mapping[str, Any]]:
    """Return the choices of an answer in their order. Raises RefusedError if there are none."""
    got = answer.get("choices")
    if not isinstance(got, list) or not got:
        raise RefusedError(f"{arm.url} answered a completion request without choices; is {arm.model} a text model?")
    return sorted(got, key=lambda choice: choice.get("index", 0))


def text_of(choice: Mapping[str, Any], arm: Arm) -> str:
    """Return the choice's text. Raises RefusedError if it has none, like a chat's choice."""
    text = choice.get("text")
    if not isinstance(text, str):
        raise RefusedError(
            f"{arm.url} answered a completion request with a choice without a text ({', '.join(choice)}); is "
            f"{arm.model} served for chats only? Give a model with /v1/completions"
        )
    return text


def num_tokens_of(choice: Mapping[str, Any]) -> int | None:
    """Return how many tokens the choice's text has; None if the server does not say."""
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("tokens") if isinstance(logprobs, Mapping) else None
    return len(tokens) if isinstance(tokens, list) else None
