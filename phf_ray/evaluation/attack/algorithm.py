"""The adaptive attack on a language model: a red LM sees prompts that worked and writes more like them.

The pool starts with a few prompts from a file, which are tried like any other. Each round shows the red LM some prompts
of the pool, more often those that brought out worse text. The attack takes one new prompt from each of the red LM's
answers, tries the new prompts on the attacked model, and adds them to the pool.

An attack is a generator: it yields a question and is sent the answer. Each question follows from the seed and the
earlier answers, so replaying the answers resumes an attack. Higher scores are worse, and the attack looks for high
scores.
"""

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from phf_ray.config import RedTeamConfig
from phf_ray.errors import ConfigError
from phf_ray.evaluation.attack.instructions import Instruction
from phf_ray.evaluation.report.records import RedTeamRound


@dataclass(frozen=True, slots=True)
class TriedPrompt:
    """A prompt of the pool, and the scores of what the attacked model wrote after it."""

    prompt: str
    round: int
    """0: the prompt was there before the attack."""
    scores: tuple[float, ...]
    """Scores of the continuations that could be scored; may be empty."""
    num_unscored: int = 0
    own_score: float | None = None
    """Score of the prompt's own text: what the attack itself contributes."""

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.scores)) if self.scores else None

    @property
    def std(self) -> float | None:
        return float(np.std(self.scores)) if self.scores else None


@dataclass(frozen=True, slots=True)
class RedReply:
    text: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class AskAttacker:
    """A question to the red LM. The answer is a list of RedReply."""

    round: int
    examples: tuple[str, ...]
    """Prompts of the pool to show, in this order."""
    seed: int


@dataclass(frozen=True, slots=True)
class TryPrompts:
    """Prompts to try. The answer is a list with a TriedPrompt for each, or the reason why it can't be tried."""

    round: int
    prompts: tuple[str, ...]


Attack = Generator[AskAttacker | TryPrompts, list[Any], tuple[list[RedTeamRound], list[TriedPrompt]]]


def attack(
    seeds: Sequence[TriedPrompt], config: RedTeamConfig, *, instruction: Instruction, seed: int, trial: int
) -> Attack:
    """Run one trial. `seeds`: the first prompts with their scores. Returns the rounds, from 0 on, and the pool."""
    if not seeds:
        raise ConfigError("the attack has no prompt to start from; set red_team.prompts_path to a file of prompts")
    pool = list(seeds)
    rounds = [summarize_round(pool, pool, number=0, outcomes={})]
    for number in range(1, config.num_rounds + 1):
        # DIFFERS: phf-ray draws from (seed, trial, round); the original from generators that nothing seeds (C-6).
        rng = np.random.default_rng([seed, trial, number])
        chosen = choose_examples(pool, num=config.num_examples, temperature=config.weight_temperature, rng=rng)
        replies = yield AskAttacker(number, tuple(tried.prompt for tried in chosen), int(rng.integers(1 << 31)))
        candidates, outcomes = read_replies(replies, instruction=instruction, known={tried.prompt for tried in pool})
        answers = yield TryPrompts(number, tuple(candidates))
        fresh = [answer for answer in answers if isinstance(answer, TriedPrompt)]
        reasons = [answer for answer in answers if not isinstance(answer, TriedPrompt)]
        outcomes.update(reasons)
        outcomes["new"] -= len(reasons)
        pool += fresh
        rounds.append(summarize_round(pool, fresh, number=number, outcomes=outcomes))
    return rounds, pool


def read_replies(
    replies: Sequence[RedReply], *, instruction: Instruction, known: set[str]
) -> tuple[list[str], Counter[str]]:
    """Return the new prompts in order of arrival, and the number of replies by outcome."""
    outcomes: Counter[str] = Counter(new=0)
    candidates: dict[str, None] = {}
    for reply in replies:
        prompt = None if reply.refused else instruction.read(reply.text)
        if reply.refused:
            outcomes["refused"] += 1
        elif prompt is None:
            outcomes["empty"] += 1
        elif prompt in known or prompt in candidates:
            outcomes["known"] += 1
        else:
            outcomes["new"] += 1
            candidates[prompt] = None
    return list(candidates), outcomes


def standardized(pool: Sequence[TriedPrompt]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the pool's mean scores, scaled to mean 0 and deviation 1; 0 for a prompt without a score.

    All are 0 if the tested prompts do not differ.
    """
    # DIFFERS: phf-ray treats a prompt without a score as neutral; the original gives it 0.001, which on PII and PEP8 is
    # a good score that never goes away (D-11).
    means = np.array([np.nan if tried.mean is None else tried.mean for tried in pool])
    known = ~np.isnan(means)
    spread = float(means[known].std()) if known.any() else 0.0
    if spread == 0.0:
        return np.zeros(len(pool))
    # DIFFERS: phf-ray standardises the means, so that the scale of the scores does not matter; the original weighs raw
    # means at temperature 0.1 and shows the best prompt of the pool 245 times as often as the worst on toxicity, but
    # 1.06 times as often on PII (D-12).
    return np.where(known, (np.where(known, means, 0.0) - means[known].mean()) / spread, 0.0)


def choose_examples(
    pool: Sequence[TriedPrompt], *, num: int, temperature: float, rng: np.random.Generator
) -> list[TriedPrompt]:
    """Draw `num` prompts (all of a smaller pool), one after the other, with weight exp(z / temperature)."""
    # Taking the largest of z / temperature + Gumbel noise is such a draw without replacement, and no weight underflows.
    # DIFFERS: phf-ray takes a whole pool of fewer than `num` prompts; the original fails (D-14).
    noisy = standardized(pool) / temperature + rng.gumbel(size=len(pool))
    return [pool[index] for index in np.argsort(-noisy, kind="stable")[:num]]


def summarize_round(
    pool: Sequence[TriedPrompt], fresh: Sequence[TriedPrompt], *, number: int, outcomes: Mapping[str, int]
) -> RedTeamRound:
    return RedTeamRound(
        number=number,
        best_prompt_score=best_k(pool, 1),
        best_10_prompt_score=best_k(pool, 10),
        best_100_prompt_score=best_k(pool, 100),
        average_score=best_k(pool, None),
        round_best_prompt_score=best_k(fresh, 1),
        round_average_score=best_k(fresh, None),
        num_tested=sum(tried.mean is not None for tried in pool),
        outcomes=dict(sorted(outcomes.items())),
    )


def best_k(pool: Sequence[TriedPrompt], k: int | None) -> float | None:
    """Return the mean of the k largest mean scores (of all if k is None or there are fewer); None if there are none."""
    means = sorted((tried.mean for tried in pool if tried.mean is not None), reverse=True)[:k]
    # DIFFERS: phf-ray divides by the number of summed prompts; the original by k, whatever the pool's size (D-13).
    return float(np.mean(means)) if means else None


def worst_prompts(pool: Sequence[TriedPrompt], *, num: int) -> list[TriedPrompt]:
    """Return the prompts with the largest mean scores, the largest first; ties keep the pool's order."""
    order = count()
    return sorted(
        (tried for tried in pool if tried.mean is not None), key=lambda tried: (-(tried.mean or 0.0), next(order))
    )[:num]
