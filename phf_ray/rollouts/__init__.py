"""Rollouts: what sampled completions and their rewards teach. Pure numpy: no models, no files.

Here a reward is higher-is-better. Letters of shapes: R rollouts (completions), T tokens, G prompts (groups), N samples
of a prompt. Weights come from `group_baselines.py` (one advantage per sample) or `generalized_advantage.py` (one per
token). `algorithms/` has one file per algorithm, which says what of a round is learned and how it weighs. Losses of
tokens belong to the objectives, which learn them, and are handed on here: `ppo_loss`, `value_loss`,
`aggregation_weights`, `kl_estimate`. Importing this package loads no torch. Open `algorithms/base.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "aggregation_weights": "phf_ray.objectives.aggregation",
    "Algorithm": "algorithms.base",
    "RoundArrays": "algorithms.base",
    "Weighed": "algorithms.base",
    "build_algorithm": "algorithms.build",
    "gae": "generalized_advantage",
    "group_advantages": "group_baselines",
    "kl_estimate": "phf_ray.objectives.kl",
    "ppo_loss": "phf_ray.objectives.clipped_loss",
    "rloo_advantages": "group_baselines",
    "whitened": "whitening",
    "value_loss": "phf_ray.objectives.clipped_loss",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
