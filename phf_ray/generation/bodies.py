"""Translates the body of an OpenAI completion request into generation requests."""

from collections.abc import Mapping
from typing import Any

from phf_ray.generation.requests import GenerationRequest

# Fields that have the same name in `GenerationRequest`.
_SAME_NAME = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "seed",
    "logit_bias",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
    "logprobs",
    "echo",
    "control",
)
_NONE: Mapping[str, Any] = {}


def prompts_of(body: Mapping[str, Any]) -> list[str | tuple[int, ...]]:
    """Return one entry per prompt: a text or token ids. A flat list of token ids is one prompt."""
    prompt = body["prompt"]
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [tuple(prompt)]
    return [one if isinstance(one, str) else tuple(one) for one in prompt]


def requests_from_body(body: Mapping[str, Any], *, defaults: Mapping[str, Any] = _NONE) -> list[GenerationRequest]:
    """Return one request per choice, prompt by prompt: `n` choices of the first prompt, then those of the second.

    `defaults`: values for fields that the body omits or sets to null; other fields use the defaults of
    `GenerationRequest`. Raises RequestError for a value that can't be served.
    """
    given = {**defaults, **{name: value for name, value in body.items() if value is not None}}
    fields: dict[str, Any] = {name: given[name] for name in _SAME_NAME if name in given}
    fields["top_k"] = max(0, given.get("top_k", 0))  # clients write -1 for no limit
    stop = given.get("stop", ())
    fields["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    fields["stop_token_ids"] = tuple(given.get("stop_token_ids", ()))
    num_choices = given.get("n", 1)
    return [
        GenerationRequest(
            prompt=prompt, choice=index * num_choices + number, policy=given.get("control_policy"), **fields
        )
        for index, prompt in enumerate(prompts_of(body))
        for number in range(num_choices)
    ]
