"""Rewards: what an answer to a prompt is worth, higher for better ones. `build.py` builds the rewarders of specs.

A reward that can't be given is a Failure with its reason. Importing this package loads nothing heavy. Open `base.py`
first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "AnsweredPrompt": "base",
    "Rewarder": "base",
    "Rewards": "weighted",
    "WeighedRewarders": "weighted",
    "build_rewarder": "build",
    "build_rewarders": "build",
    "check_spec": "build",
    "named_rewards": "build",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
