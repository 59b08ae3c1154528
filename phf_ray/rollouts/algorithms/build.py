"""Builds algorithms from section `algorithm` of the configuration.

algorithm = build_algorithm({"name": "rloo", "kl_coef": 0.05})
weighed = algorithm.weigh(arrays, state)
objective = build_objective(algorithm.objective())
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from phf_ray.config import FeedbackCompat
from phf_ray.config.algorithms import AlgorithmConfig, GRPOConfig
from phf_ray.errors import ConfigError
from phf_ray.rollouts.algorithms.base import Algorithm
from phf_ray.rollouts.algorithms.best_of_group import RAFT, ExpertIteration
from phf_ray.rollouts.algorithms.grpo import GRPO
from phf_ray.rollouts.algorithms.online_dpo import OnlineDPO
from phf_ray.rollouts.algorithms.ppo import PPO
from phf_ray.rollouts.algorithms.quark import Quark, RewardConditioning
from phf_ray.rollouts.algorithms.reinforce import REINFORCE
from phf_ray.rollouts.algorithms.reinforce_pp import REINFORCEPlusPlus
from phf_ray.rollouts.algorithms.rloo import RLOO

_ADAPTER: TypeAdapter[Any] = TypeAdapter(AlgorithmConfig)
_CLASSES: dict[str, Callable[[Any], Algorithm]] = {
    "ppo": PPO,
    "rloo": RLOO,
    "reinforce": REINFORCE,
    "reinforce_pp": REINFORCEPlusPlus,
    "expert_iteration": ExpertIteration,
    "raft": RAFT,
    "quark": Quark,
    "reward_conditioning": RewardConditioning,
    "online_dpo": OnlineDPO,
}


def build_algorithm(config: Mapping[str, Any] | BaseModel, *, compat: FeedbackCompat = None) -> Algorithm:
    """Build the algorithm of a config section; `compat` is that of the whole configuration.

    Raises ConfigError for unknown names and keys, and for settings whose gradient is not what they say.
    """
    values = config.model_dump() if isinstance(config, BaseModel) else dict(config)
    try:
        section = _ADAPTER.validate_python(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        raise ConfigError(f"algorithm {values!r}: {problems}") from None
    if isinstance(section, GRPOConfig):
        return GRPO(section, compat=compat)
    return _CLASSES[section.name](section)
