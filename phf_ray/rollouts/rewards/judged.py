"""Rewards from judges: how much each answer is preferred to a fixed one to the same prompt.

Judges can't say what a single answer is worth. A fixed reference, such as the answers of the model before training,
makes their preferences comparable between samples of one prompt.
"""

from collections.abc import Sequence
from typing import Any

from phf_ray.config.rewards import JudgedReward
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import InstructionPrompt, prompt_text
from phf_ray.judging.api import PairwiseAutoAnnotator
from phf_ray.judging.board.outputs import one_model, read_outputs
from phf_ray.judging.pool import load_pool
from phf_ray.judging.question import Failure
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder
from phf_ray.storage.hashing import digest

_OPTION = "annotators.reference"


def check_judged(settings: JudgedReward) -> None:
    """Raise ConfigError or DataError if the pool or the reference answers can't be used."""
    load_pool(settings.pool)
    if not references_of(settings):
        raise ConfigError(f"{_OPTION} {settings.reference}: the model answered no prompt; give one that did")


class JudgedRewarder(Rewarder):
    def __init__(self, settings: JudgedReward):
        self._annotator = PairwiseAutoAnnotator(
            settings.pool, seed=settings.seed, caching_path=settings.cache or "auto", max_failed_fraction=1.0
        )
        self._references = references_of(settings)
        self._seed = settings.seed

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "annotators": self._annotator.pool.identity,
            "reference": digest(sorted(self._references.items())),
            "seed": self._seed,
        }

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        pairs: dict[tuple[str, str], dict[str, Any]] = {}
        for answer in answers:
            asked = prompt_text(answer.prompt.prompt)
            if asked in self._references and answer.completion != self._references[asked]:
                pairs[asked, answer.completion] = {
                    "instruction": answer.prompt.instruction,
                    "input": answer.prompt.input,
                    "output_1": self._references[asked],
                    "output_2": answer.completion,
                }
        judged = self._annotator.annotate_pairs(list(pairs.values()))
        verdicts = dict(zip(pairs, map(_reward, judged), strict=True))
        return [self._reward_of(answer, verdicts) for answer in answers]

    def _reward_of(self, answer: AnsweredPrompt, verdicts: dict[tuple[str, str], float | Failure]) -> float | Failure:
        asked = prompt_text(answer.prompt.prompt)
        if asked not in self._references:
            return Failure(f"no_reference: {_OPTION} has no answer to {asked!r:.80}")
        if answer.completion == self._references[asked]:
            return 0.5
        return verdicts[asked, answer.completion]


def references_of(settings: JudgedReward) -> dict[str, str]:
    """Return the fixed answers by the texts of their prompts; none where the model gave none."""
    outputs = one_model(read_outputs([settings.reference], option=_OPTION), option=_OPTION).outputs
    return {
        prompt_text(InstructionPrompt(one["instruction"], one["input"])): one["output"]
        for one in reversed(outputs)
        if "error" not in one
    }


def _reward(judged: dict[str, Any]) -> float | Failure:
    """The honest preference for the second answer; AlpacaFarm's numbers for a tie and no verdict are undone by the
    annotator."""
    if judged["preference"] is None:
        return Failure(str(judged["error"] or "no_preference: the judge gave none, and no reason"))
    return float(judged["preference"]) - 1
