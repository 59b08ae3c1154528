"""Rounds of rollouts made on the spot: rows, their figures, and the files of a run."""

from collections.abc import Sequence

import numpy as np

from phf_ray.rollouts.figures import RolloutRow, RoundFigures, round_figures


def rollout_row(prompt_id="p", sample=0, *, completion="a b c", reward=0.0, logprobs=None, **changes) -> RolloutRow:
    """`logprobs`: (policy, reference) of each token."""
    policy, reference = zip(*logprobs, strict=True) if logprobs else (None, None)
    values = {
        "prompt": f"prompt {prompt_id}",
        "num_tokens": len(logprobs) if logprobs else len((completion or "").split()),
        "finish_reason": "stop",
        "weights": "step-00000000",
        "rewards": {},
        "gold": None,
        "error": None,
        **changes,
    }
    return RolloutRow(
        prompt_id=prompt_id, sample=sample, completion=completion, reward=reward, policy=policy, reference=reference,
        **values,
    )  # fmt: skip


def gold_round(
    number: int, gold: Sequence[float], *, kl: float = 0.0, reward: float = 0.0, text="a b c"
) -> RoundFigures:
    """Figures of a round with one answer for each prompt; prompts of different rounds differ."""
    rows = [
        rollout_row(
            f"{number}-{place}", gold=float(value), reward=reward, logprobs=[(-1.0, -1.0 - kl)], completion=text
        )
        for place, value in enumerate(gold)
    ]
    return round_figures(number, rows)


def gold_curve(means: Sequence[float], *, num_prompts: int, noise: float, seed: int = 0, kls=None, rewards=None):
    """Rounds whose gold rewards have these means but for noise, whose standard deviation is given."""
    rng = np.random.default_rng(seed)
    return [
        gold_round(
            number,
            mean + noise * rng.normal(size=num_prompts),
            kl=kls[number] if kls else 0.0,
            reward=rewards[number] if rewards else 0.0,
        )
        for number, mean in enumerate(means)
    ]
