"""The critic that a configuration names: where it lies, what decides its values, and whether it fits the policy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phf_ray.config import Config
from phf_ray.errors import ConfigError, DataError
from phf_ray.models.actor_critic import CRITIC
from phf_ray.models.backbone import load_tokenizer_beside
from phf_ray.models.critic import critic_config, load_critic, planned_critic_shape
from phf_ray.models.positions import position_limit
from phf_ray.models.reward_model import RewardModel
from phf_ray.models.shape import ModelShape
from phf_ray.rollouts.rewards.identities import model_identity
from phf_ray.runs.checkpoints import find_checkpoint

_OPTION = "algorithm.critic.model"


@dataclass(frozen=True, slots=True)
class PlannedCritic:
    identity: str
    """Hash of its weights."""
    shape: ModelShape
    context: int | None
    """Positions that it has; None: its configuration names no limit."""


def plan_critic(config: Config, *, tokenizer: Any) -> PlannedCritic | None:
    """Check the critic against the policy's tokenizer, without loading a weight. None: the run has none.

    Raises ConfigError, which begins with the option, if there is no such model or its tokens are others.
    """
    if config.critic is None:
        return None
    folder = find_checkpoint(config.critic.model, option=_OPTION)
    _refuse_other_tokens(folder, tokenizer)
    shape = planned_critic_shape(folder)
    context, _ = position_limit(critic_config(folder).get_text_config())
    return PlannedCritic(model_identity(str(folder)), shape, context)


def starting_critic(config: Config, *, tokenizer: Any) -> RewardModel:
    """Load the critic before the first step."""
    assert config.critic is not None
    folder = find_checkpoint(config.critic.model, option=_OPTION)
    # DIFFERS: phf-ray's critic begins with the values that the reward model's head says, as TRL's does; AlpacaFarm's
    # with a new head that says 0, as here with compat: alpaca_farm.
    return load_critic(folder, tokenizer=tokenizer, starts_at_zero=config.feedback_compat == "alpaca_farm")


def resumed_critic(checkpoint: Path, *, tokenizer: Any) -> RewardModel:
    """Load the critic of a run's checkpoint, to continue the run. Raises DataError if it is gone."""
    if not (checkpoint / CRITIC / "config.json").is_file():
        raise DataError(
            f"{checkpoint} has no {CRITIC}/, which was learned beside its policy; restore it, or remove this checkpoint"
        )
    return load_critic(checkpoint / CRITIC, tokenizer=tokenizer)


def _refuse_other_tokens(folder: Path, tokenizer: Any) -> None:
    """Raise ConfigError unless each of the policy's tokens has the same id in the critic's tokenizer: values are said
    token by token, so the critic reads the policy's ids."""
    theirs, ours = load_tokenizer_beside(folder).get_vocab(), tokenizer.get_vocab()
    other = sorted(token for token, number in ours.items() if theirs.get(token) != number)
    if other:
        raise ConfigError(
            f"{_OPTION} {folder}: {len(other)} of the policy's {len(ours)} tokens have no or another id in its "
            f"tokenizer, such as {other[0]!r}, and it judges answers token by token; give a critic that was trained "
            "with the policy's tokenizer, or learn values by model.model_kwargs.value_head_config: "
            "{is_bounded: false}"
        )
