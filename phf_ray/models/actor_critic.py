"""A policy and its critic: a transformer of its own that says at each token what the rest of the answer is worth."""

from collections.abc import Mapping

from torch import Tensor

from phf_ray.models.language_model import LanguageModel
from phf_ray.models.recovery import reward_bias_of
from phf_ray.models.reward_model import RewardModel

CRITIC = "critic"
"""Folder of the critic in a checkpoint."""
CRITIC_PREFIX = "critic."
"""Beginning of its names in the state dict."""


class ActorCritic(LanguageModel):
    """The policy, whose values are the rewards that the critic says at each token.

    Both run in one forward call, so DDP and FSDP see all parameters. They share none: the loss of the values reaches
    the critic alone, and that of the tokens the policy alone.
    """

    def __init__(self, policy: LanguageModel, critic: RewardModel) -> None:
        """Takes over the policy's weights and adapter. All weights of the critic train."""
        super().__init__(policy.backbone, is_probed=False)
        self.logit_scale, self.adapter = policy.logit_scale, policy.adapter
        self.critic = critic
        # As RewardModelScorer reads it; transformers' heads have no place for it.
        self._bias = reward_bias_of(critic.backbone.config)

    def predict_values(self, input_ids_BS: Tensor, token_kinds_BS: Tensor) -> Tensor:
        return self.critic.predict_rewards(input_ids_BS, token_kinds_BS) + self._bias

    def token_values(self, _hidden_BSD: Tensor, input_ids_BS: Tensor, token_kinds_BS: Tensor) -> Tensor:
        return self.predict_values(input_ids_BS, token_kinds_BS)

    def parts(self) -> list[LanguageModel]:
        return [self, self.critic]

    def stored_tensors(self) -> dict[str, Tensor]:
        """Beside the policy's, all of the critic's: it has no frozen base."""
        tensors = self.state_dict(keep_vars=True)
        return super().stored_tensors() | critic_tensors(tensors)


def critic_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of the critic, by their names in the state dict."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(CRITIC_PREFIX)}
