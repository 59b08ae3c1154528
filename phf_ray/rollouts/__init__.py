"""Rollouts: what sampled completions and their rewards teach. Pure numpy: no models, no files.

Here a reward is higher-is-better. Letters of shapes: R rollouts (completions), T tokens, G prompts (groups), N samples
of a prompt. Weights come from `group_baselines.py` (one advantage per sample) or `generalized_advantage.py` (one per
token); `clipped_loss.py` is PPO's loss with its slope, `aggregation.py` averages over tokens or sequences, and `kl.py`
estimates divergences. Importing this package loads no torch. Open `group_baselines.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "aggregation_weights": "aggregation",
    "gae": "generalized_advantage",
    "group_advantages": "group_baselines",
    "kl_estimate": "kl",
    "ppo_loss": "clipped_loss",
    "rloo_advantages": "group_baselines",
    "value_loss": "clipped_loss",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
