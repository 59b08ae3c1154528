"""Rewards by a scorer, a reward model among them: minus the score.

Answers are judged as texts. So a reward model may have another tokenizer than the policy: what the policy wrote is
decoded, and the reward model encodes it with its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import Prompt, prompt_text
from phf_ray.judging.question import Failure
from phf_ray.records import Scored
from phf_ray.rollouts.rewards.base import AnsweredPrompt, Rewarder
from phf_ray.scorers import build_scorer
from phf_ray.scorers.base import ReadsPrompts, failure


class ScorerRewarder(Rewarder):
    def __init__(self, scorer: Mapping[str, Any], *, use_prompt_for_scoring: bool = False):
        """`scorer`: the config of one. Raises ConfigError if it can't be built."""
        self._scorer: Any = build_scorer(scorer)
        self._with_prompt = use_prompt_for_scoring
        self._is_whole = self._with_prompt or not _knows_prompts(self._scorer)

    @property
    def identity(self) -> dict[str, Any]:
        return {"scorer": self._scorer.identity().to_json(), "use_prompt_for_scoring": self._with_prompt}

    def rewards(self, answers: Sequence[AnsweredPrompt]) -> list[float | Failure]:
        try:
            scored = self._scored(answers)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  libraries can raise anything; the other answers are judged
            if len(answers) == 1:
                scored = [failure(error)]
            else:
                return [reward for answer in answers for reward in self.rewards([answer])]
        return [_reward(one) for one in scored]

    def _scored(self, answers: Sequence[AnsweredPrompt]) -> list[Scored]:
        if not self._is_whole:
            asked: list[tuple[Prompt, str]] = [(answer.prompt.prompt, answer.completion) for answer in answers]
            if hasattr(self._scorer, "score_prompts"):
                return list(self._scorer.score_prompts(asked))
            return list(self._scorer.score_answers([(prompt_text(prompt), text) for prompt, text in asked]))
        texts = [answer.completion for answer in answers]
        if self._with_prompt or isinstance(self._scorer, ReadsPrompts):
            texts = [answer.prompt.text + text for answer, text in zip(answers, texts, strict=True)]
        return list(self._scorer.score_all(texts))


def _knows_prompts(scorer: Any) -> bool:
    """Whether the scorer reads prompts, and knows how to put them into words.

    A reward model that does not is shown the policy's words, as AlpacaFarm's always are.
    """
    if not isinstance(scorer, ReadsPrompts):
        return False
    if not hasattr(scorer, "template"):
        return True
    try:
        scorer.template()
    except ConfigError:
        return False
    return True


def _reward(scored: Scored) -> float | Failure:
    if scored.score is None:
        return Failure(str(scored.error))
    return 0.0 - scored.score  # never -0.0
