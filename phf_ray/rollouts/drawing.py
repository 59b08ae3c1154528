"""How the answers of a round are drawn, wherever that happens: in batches of whole prompts that no number of workers or
actors changes, each on an engine without a past."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phf_ray.config import Config
from phf_ray.judging.question import Failure
from phf_ray.rollouts.algorithms.build import build_algorithm
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rounds import RowKey, StoredSample
from phf_ray.rollouts.sampling import SampledAnswer, SamplingSettings, sample_seed, sample_with_engine
from phf_ray.rollouts.token_rows import TokenRows, token_rows

if TYPE_CHECKING:
    from phf_ray.generation.engine import Engine


class AnswerDrawing:
    """What the configuration says of the answers and their tokens."""

    def __init__(self, config: Config, *, tokenizer: Any):
        rollouts, section = config.rollouts, config.algorithm
        assert rollouts is not None
        assert section is not None
        algorithm = build_algorithm(section, compat=config.feedback_compat)
        self._settings, self._tokenizer, self._seed = rollouts, tokenizer, config.training.seed
        self._prefix = algorithm.sampling_prefix
        self._control = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in algorithm.control_tokens}
        pad_id = tokenizer.pad_token_id
        self._pad_id = int(tokenizer.eos_token_id if pad_id is None else pad_id)

    def batches(self, prompts: Sequence[RolloutPrompt]) -> list[Sequence[RolloutPrompt]]:
        """Return the prompts whose answers are drawn together."""
        size = max(1, self._settings.sampling_batch // self._settings.samples_per_prompt)
        return [prompts[begin : begin + size] for begin in range(0, len(prompts), size)]

    def prefix_of(self, number: int) -> str:
        """Return the control token before the prompts when the round's answers are drawn; empty: none."""
        return self._prefix if self._prefix is not None and number > 0 else ""

    def draw(self, engine: "Engine", number: int, prompts: Sequence[RolloutPrompt]) -> list[StoredSample]:
        """Draw the answers of a batch."""
        # Without the keys and values of earlier batches, so that every batch finds the engine as it was.
        engine.fail_all("a batch is over")
        settings, prefix = self._settings, self.prefix_of(number)
        numbers = range(settings.samples_per_prompt)
        answers = sample_with_engine(
            engine,
            [tuple(self._encode(prompt.text, prefix)) for prompt in prompts],
            seeds=[[sample_seed(self._seed, number, prompt.id, sample) for sample in numbers] for prompt in prompts],
            settings=SamplingSettings(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                control="none",
                banned_ids=tuple(self._control.values()),
                with_logprobs=settings.temperature == settings.top_p == 1,
            ),
        )
        return [
            _stored(RowKey(prompt.id, sample), prompt.text, answer)
            for prompt, own in zip(prompts, answers, strict=True)
            for sample, answer in enumerate(own)
        ]

    def rows(self, samples: Sequence[StoredSample], prefixes: Sequence[str]) -> TokenRows:
        """Return the tokens of the answers behind their prompts. `prefixes`: control token before each; empty: none."""
        asked = list(zip([row.prompt for row in samples], prefixes, strict=True))
        encoded = {each: self._encode(*each) for each in set(asked)}
        return token_rows(
            [encoded[each] for each in asked],
            [row.completion_ids or () for row in samples],
            pad_id=self._pad_id,
            has_control=[prefix != "" for prefix in prefixes],
        )

    def _encode(self, prompt: str, prefix: str) -> list[int]:
        """The end-of-text token, the control token if there is one, and the prompt."""
        before = [self._control[prefix]] if prefix else []
        ids = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        return [self._tokenizer.eos_token_id, *before, *ids]


def _stored(key: RowKey, prompt: str, answer: SampledAnswer | Failure) -> StoredSample:
    if isinstance(answer, Failure):
        return StoredSample(key, prompt, None, None, None, answer.reason)
    assert answer.completion_ids is not None
    sampler = None if answer.logprobs is None else np.array(answer.logprobs, np.float32)
    return StoredSample(key, prompt, answer.completion, answer.completion_ids, answer.finish_reason, sampler=sampler)
