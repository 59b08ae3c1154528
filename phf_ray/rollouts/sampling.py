"""Samples answers to prompts: what a sample is, where its random numbers come from, and how an engine draws them.

A sample's random numbers depend on the seed, the round, the prompt and its number alone. So neither the order of
prompts, nor the process that samples, nor a restart changes it. The training workers and the jobs call
`sample_with_engine` with their own engine; `by_url.py` samples from servers. Only a function that gets an engine needs
torch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from phf_ray.characters import whole_characters
from phf_ray.checkpoint import ControlChoice
from phf_ray.generation.requests import GenerationRequest, RequestError
from phf_ray.judging.question import Failure
from phf_ray.rollouts.prompts import RolloutPrompt

if TYPE_CHECKING:
    from phf_ray.generation.engine import Engine

PROMPT_TOO_LONG = "prompt_too_long"
"""Kind of the failure of a prompt that leaves no room for an answer of the wanted length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """How answers are drawn. The defaults are AlpacaFarm's."""

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 0
    """0: no limit."""
    max_tokens: int = 300
    stop: tuple[str, ...] = ()
    control: ControlChoice | None = None
    """Control token to condition on; None: good if the model has such tokens."""
    banned_ids: tuple[int, ...] = ()
    """Tokens that are not drawn."""
    with_logprobs: bool = False
    """Also return the log-probability of each token, of the raw logits."""


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    completion: str
    completion_ids: tuple[int, ...] | None
    """Tokens, with the end of text if the model ended its answer; None if a server does not say."""
    finish_reason: str
    """stop or length."""
    logprobs: tuple[float, ...] | None = None
    """Of each token, by the sampler; None: not asked for."""


class Sampler(Protocol):
    """Draws answers."""

    def sample(
        self, prompts: Sequence[RolloutPrompt], *, seeds: Sequence[Sequence[int]]
    ) -> list[list[SampledAnswer | Failure]]:
        """Return for each prompt one answer per seed, in their order. Equal seeds give equal answers."""
        ...


def sample_seed(seed: int, round_: int, prompt_id: str, sample: int) -> int:
    """Return the seed of a sample: of 63 bits, which every server takes. Nothing else may decide its random numbers."""
    hashed = hashlib.blake2b(f"{seed}\0{round_}\0{prompt_id}\0{sample}".encode(), digest_size=8)
    return int.from_bytes(hashed.digest(), "big") >> 1


def seeds_of(prompts: Sequence[RolloutPrompt], *, num_samples: int, seed: int, round_: int = 0) -> list[list[int]]:
    """Return the seeds of the samples 0 .. num_samples - 1 of each prompt."""
    return [[sample_seed(seed, round_, prompt.id, sample) for sample in range(num_samples)] for prompt in prompts]


def sample_with_engine(
    engine: "Engine",
    prompts: Sequence[str | tuple[int, ...]],
    *,
    seeds: Sequence[Sequence[int]],
    settings: SamplingSettings,
) -> list[list[SampledAnswer | Failure]]:
    """Return for each prompt, a text or token ids, one answer per seed.

    All requests share the engine's batch; equal prompts one prefill.
    The model stays in the mode (training or not) that it has. A prompt that is too long for its answer is a Failure
    of kind `prompt_too_long`.
    """
    was_training = engine.model.training
    engine.model.eval()
    try:
        return _sampled(engine, prompts, seeds, settings)
    except BaseException:
        # What is left in its batch would be drawn on with the next call.
        engine.fail_all("sampling was interrupted")
        raise
    finally:
        engine.model.train(was_training)


def _sampled(
    engine: "Engine",
    prompts: Sequence[str | tuple[int, ...]],
    seeds: Sequence[Sequence[int]],
    settings: SamplingSettings,
) -> list[list[SampledAnswer | Failure]]:
    found: list[list[SampledAnswer | Failure | None]] = []
    running = []
    for place, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
        found.append([None] * len(own))
        for number, seed in enumerate(own):
            try:
                active = engine.prepare(_request(prompt, seed, settings))
            except RequestError as error:
                # Of a prompt with tokens that the model lacks, there is no talk of its context.
                kind = PROMPT_TOO_LONG if "context" in error.message else "refused"
                found[place][number] = Failure(f"{kind}: {error}")
                continue
            engine.add(active)
            running.append((place, number, active))
    while not all(active.is_finished for _, _, active in running):
        engine.step()
    for place, number, active in running:
        if active.error is not None:
            found[place][number] = Failure(f"model_failed: {active.cause or active.error}")
            continue
        said = active.completion()
        logprobs = tuple(record[1] for record in active.records) if settings.with_logprobs else None
        found[place][number] = SampledAnswer(whole_characters(said.text), said.token_ids, said.finish_reason, logprobs)
    return [[_there(one) for one in samples] for samples in found]


def _there(one: SampledAnswer | Failure | None) -> SampledAnswer | Failure:
    assert one is not None
    return one


def _request(prompt: str | tuple[int, ...], seed: int, settings: SamplingSettings) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt,
        seed=seed,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        stop=settings.stop,
        control=settings.control,
        logit_bias=dict.fromkeys(settings.banned_ids, -100.0),
        logprobs=0 if settings.with_logprobs else None,
    )


class EngineSampler:
    """A `Sampler` over an engine of this process."""

    def __init__(self, engine: "Engine", settings: SamplingSettings):
        self._engine, self._settings = engine, settings

    def sample(
        self, prompts: Sequence[RolloutPrompt], *, seeds: Sequence[Sequence[int]]
    ) -> list[list[SampledAnswer | Failure]]:
        return sample_with_engine(
            self._engine, [prompt.text for prompt in prompts], seeds=seeds, settings=self._settings
        )


def length_of_prompts(engine: "Engine", prompts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each prompt, as the engine reads it."""
    return [len(engine.strings.encode(prompt)[0]) for prompt in prompts]
