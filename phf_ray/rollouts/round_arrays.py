"""Made rounds as the arrays that algorithms read, and as figures that do not depend on the algorithm."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from phf_ray.measures.clusters import ClusteredMean
from phf_ray.measures.numbers import Floats
from phf_ray.rollouts.algorithms.base import RoundArrays
from phf_ray.rollouts.figures import RolloutRow, RoundFigures, round_figures
from phf_ray.rollouts.round_maker import MadeRound


def arrays_of(rounds: Sequence[MadeRound]) -> RoundArrays:
    """Return the rows of the rounds as those of one. A prompt counts as another in each round."""
    samples = [row for one in rounds for row in one.samples]
    logprobs = [row for one in rounds for row in one.logprobs]
    lengths = [len(row.completion_ids or ()) for row in samples]
    numbers: dict[tuple[int, str], int] = {}
    prompts = [
        numbers.setdefault((one.number, row.key.prompt_id), len(numbers)) for one in rounds for row in one.samples
    ]
    width = max(lengths, default=0)

    def table(rows: Sequence[NDArray[np.float32] | None]) -> Floats | None:
        if all(row is None for row in rows):
            return None
        table_RT = np.zeros((len(rows), width))
        for place, row in enumerate(rows):
            if row is not None:
                table_RT[place, : len(row)] = row
        return table_RT

    policy_RT = table([row.policy for row in logprobs])
    rewards = [np.nan if row.reward is None else row.reward for one in rounds for row in one.rewards]
    return RoundArrays(
        prompt_R=np.array(prompts, np.int64),
        sample_R=np.array([row.key.sample for row in samples], np.int64),
        rewards_R=np.array(rewards, np.float64),
        mask_RT=np.arange(width) < np.array(lengths, np.int64)[:, None],
        policy_RT=np.zeros((len(samples), width)) if policy_RT is None else policy_RT,
        reference_RT=table([row.reference for row in logprobs]),
        value_RT=table([row.value for row in logprobs]),
    )


def figures_of(made: MadeRound, *, weights: str) -> RoundFigures:
    rows = [
        RolloutRow(
            prompt_id=sample.key.prompt_id,
            sample=sample.key.sample,
            prompt=sample.prompt,
            completion=sample.completion,
            num_tokens=len(sample.completion_ids or ()),
            finish_reason=sample.finish_reason,
            weights=weights,
            reward=reward.reward,
            rewards=reward.by_name,
            gold=reward.gold,
            error=reward.error,
            policy=None if logprobs.policy is None else logprobs.policy.tolist(),
            reference=None if logprobs.reference is None else logprobs.reference.tolist(),
        )
        for sample, reward, logprobs in zip(made.samples, made.rewards, made.logprobs, strict=True)
    ]
    return round_figures(made.number, rows)


def round_metrics(figures: RoundFigures) -> dict[str, float]:
    """Return the figures under TRL's and AlpacaFarm's names; what is undefined is left out."""
    shortest, longest = figures.token_range or (None, None)
    kl, entropy = figures.kl, figures.entropy
    found = {
        "rollouts/answers": figures.num_answers,
        "rollouts/failed": figures.num_without_reward,
        "rollouts/gold": _mean(figures.gold),
        "rollouts/distinct_2": figures.distinct_2,
        "rollouts/duplicates": figures.duplicates,
        "rollouts/empty": figures.empty,
        "completions/mean_length": _mean(figures.num_tokens),
        "completions/min_length": shortest,
        "completions/max_length": longest,
        "completions/clipped_ratio": figures.truncated,
        **{f"rewards/{name}/mean": _mean(mean) for name, mean in figures.rewards.items()},
        "kl": _mean(kl),
        "objective/kl_sum_seq": _mean(kl),
        "objective/kl_avg_seq": figures.kl_per_token,
        "objective/entropies": entropy,
        "objective/ref_entropies": None if entropy is None or kl is None else entropy + kl.mean,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _mean(mean: ClusteredMean | None) -> float | None:
    return None if mean is None else mean.mean
