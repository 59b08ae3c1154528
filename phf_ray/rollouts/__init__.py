"""Rollouts: completions are sampled, rewarded, and weighed by what they teach.

`prompts.py` reads what is to be answered, `sampling.py` draws answers, `rewards/` says what they are worth. What they
teach is pure numpy, without models and files: weights come from `group_baselines.py` (one advantage per sample) or
`generalized_advantage.py` (one per token); `clipped_loss.py` is PPO's loss with its slope, `aggregation.py` averages
over tokens or sequences, and `kl.py` estimates divergences. Here a reward is higher-is-better. Letters of shapes: R
rollouts (completions), T tokens, G prompts (groups), N samples of a prompt. Importing this package loads no torch. Open
`group_baselines.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "RolloutPrompt": "prompts",
    "SampledAnswer": "sampling",
    "SamplingSettings": "sampling",
    "aggregation_weights": "aggregation",
    "gae": "generalized_advantage",
    "group_advantages": "group_baselines",
    "kl_estimate": "kl",
    "ppo_loss": "clipped_loss",
    "read_prompts": "prompts",
    "rloo_advantages": "group_baselines",
    "sample_seed": "sampling",
    "sample_with_engine": "sampling",
    "value_loss": "clipped_loss",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
