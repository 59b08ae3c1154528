"""Likelihood of the kept rollouts, each token with its weight; with the exact KL to a reference and entropy (Quark)."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from phf_ray.errors import ConfigError
from phf_ray.objectives.base import FurtherLoss, Objective, Rules, Targets, Weights, ratio, total
from phf_ray.objectives.divergence import Operands, divergence_loss
from phf_ray.records import TokenKind

WEIGHT = "weight"


class ReferenceStates(Protocol):
    """Runs the reference on a micro-batch, without gradient. `LanguageModel.operands` of a frozen model is one."""

    def __call__(self, input_ids_BS: Tensor, token_kinds_BS: Tensor, /) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return hidden states (B, S, D), head (V, D) and bias (V) whose plain product is the logits."""
        ...


class WeightedLikelihood(Objective):
    """L = sum_t w_t (-log p_t + kl_coef KL_t - entropy_coef H_t) / sum_t w_t, t over the learned tokens.

    KL_t and H_t are of the whole distribution over the tokens that the reference has: control tokens that were added
    for the policy count in neither, and the reference does not see them.
    """

    reads_scores = False
    channels = (WEIGHT,)

    def __init__(self, rules: Rules, *, kl_coef: float = 0.0, entropy_coef: float = 0.0) -> None:
        super().__init__(rules)
        self.kl_coef, self.entropy_coef = kl_coef, entropy_coef
        self.without_dropout = kl_coef > 0
        # A tuple hides the reference from nn.Module: its weights are no part of the objective.
        self._reference: tuple[ReferenceStates, int] | None = None

    def compare_with(self, reference: ReferenceStates, *, num_tokens: int) -> None:
        """Set the reference; the KL counts the token ids below `num_tokens`, which both models know."""
        self._reference = (reference, num_tokens)

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        weights_N = torch.where(targets.valid_N, targets.channels[WEIGHT].to(targets.scores_N.dtype), 0.0)
        return Weights(weights_N, torch.zeros_like(weights_N), num_targets=total(weights_N))

    def further_loss(
        self, operands: Operands, targets: Targets, input_ids_BS: Tensor, token_kinds_BS: Tensor, /
    ) -> FurtherLoss | None:
        if not self.kl_coef and not self.entropy_coef:
            return None
        if self._reference is None and self.kl_coef:
            raise ConfigError("objective WeightedLikelihood has a kl_coef and no reference; call compare_with first")
        learned = targets.valid_N.nonzero().squeeze(1)
        weights_M = targets.channels[WEIGHT][learned]
        policy = operands._replace(hidden_ND=operands.hidden_ND[learned])
        if self._reference is None:
            # Entropy alone: compared with itself, whose KL is 0 and has weight 0.
            reference = policy
        else:
            states, num_tokens = self._reference
            found_BSD, other_VD, other_V = _without_control(states, input_ids_BS, token_kinds_BS)
            found_MD = found_BSD[:, :-1].flatten(0, 1)[learned]
            reference = _first_rows(Operands(found_MD, other_VD, other_V), num_tokens)
            policy = _first_rows(policy, num_tokens)
        divergence = divergence_loss(
            policy,
            reference,
            kl_weight_N=self.kl_coef * weights_M,
            entropy_weight_N=-self.entropy_coef * weights_M,
        )
        sums = {"kl": weights_M * divergence.kl_N, "entropy": weights_M * divergence.entropy_N}
        return FurtherLoss(divergence.loss, {f"sum/{name}": total(sum_M) for name, sum_M in sums.items()})

    def _summarize(self, total: Mapping[str, float], _num_valid: float, /) -> dict[str, float]:
        names = {"sum/kl": "kl", "sum/entropy": "entropy"}
        return {shown: ratio(total[name], total["sum/num_targets"]) for name, shown in names.items() if name in total}


def _first_rows(operands: Operands, num_tokens: int) -> Operands:
    bias_V = operands.bias_V
    if num_tokens == len(operands.head_VD):  # a part's gradient would be copied into one of the whole
        return operands
    return Operands(operands.hidden_ND, operands.head_VD[:num_tokens], None if bias_V is None else bias_V[:num_tokens])


def _without_control(
    reference: ReferenceStates, input_ids_BS: Tensor, token_kinds_BS: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run the reference on the micro-batch without its control tokens; states are where they were, 0 at control."""
    keep_BS = token_kinds_BS != int(TokenKind.CONTROL)
    order_BS = torch.argsort(~keep_BS, dim=1, stable=True)
    kinds_BS = torch.where(keep_BS, token_kinds_BS, int(TokenKind.PAD)).gather(1, order_BS)
    # An id that the reference may lack is read as 0, as padding.
    ids_BS = torch.where(keep_BS, input_ids_BS, 0).gather(1, order_BS)
    with torch.no_grad():
        moved_BSD, head_VD, bias_V = reference(ids_BS, kinds_BS)
        hidden_BSD = torch.zeros_like(moved_BSD).scatter_(1, order_BS[..., None].expand_as(moved_BSD), moved_BSD)
    return hidden_BSD, head_VD, bias_V
