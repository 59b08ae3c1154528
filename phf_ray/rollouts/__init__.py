"""Rollouts: completions are sampled, rewarded, and weighed by what they teach.

`plan.py` fixes the prompts and the number of steps, `round_maker.py` makes a round: `sampling.py` draws answers,
`rewards/` says what they are worth, `forward.py` computes their log-probabilities, and `rounds.py` stores all of it.
`algorithms/` has one file per algorithm, which says what of a round is learned and how it weighs, in pure numpy, and
`worker.py` trains on that; `guard/` watches, and `best_of_n/` picks without training. Here a reward is
higher-is-better. Letters of shapes: R rollouts (completions), T tokens, G prompts (groups), N samples of a prompt.
Losses of tokens belong to the objectives, which learn them, and are handed on here: `ppo_loss`, `value_loss`,
`aggregation_weights`, `kl_estimate`. Importing this package loads no torch. Open `round_maker.py` first, and
`algorithms/base.py` for what a round teaches.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "aggregation_weights": "phf_ray.objectives.aggregation",
    "Algorithm": "algorithms.base",
    "RolloutPrompt": "prompts",
    "RoundArrays": "algorithms.base",
    "SampledAnswer": "sampling",
    "SamplingSettings": "sampling",
    "Weighed": "algorithms.base",
    "build_algorithm": "algorithms.build",
    "gae": "generalized_advantage",
    "group_advantages": "group_baselines",
    "kl_estimate": "phf_ray.objectives.kl",
    "ppo_loss": "phf_ray.objectives.clipped_loss",
    "read_prompts": "prompts",
    "rloo_advantages": "group_baselines",
    "sample_seed": "sampling",
    "sample_with_engine": "sampling",
    "value_loss": "phf_ray.objectives.clipped_loss",
    "whitened": "whitening",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
