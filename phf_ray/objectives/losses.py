"""The paper's objectives: each says how much likelihood and unlikelihood every target gets; `fused` does the rest.

Inputs are unshifted: position t predicts token t + 1, and score, kind and validity are those of the PREDICTED token.
Structural targets (end of text, control) have no score: they are aligned, of weight 1 and advantage 0.

Shapes: B sequences, S tokens, T = S - 1 targets each, N = B T targets in a row, D hidden size, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from phf_ray.errors import ConfigError
from phf_ray.objectives.fused import FusedLoss, fused_linear_loss
from phf_ray.objectives.statistics import NUM_BINS, Histogram, Statistics, counts_by_bin, weight_edges, weight_places
from phf_ray.records import TokenKind

Compat = Literal["korbak2023"]

# Plain numbers: torch.compile evaluates `tensor != TokenKind.PAD` to a bool.
_CONTENT, _CONTROL, _PAD, _UNSCORED = (
    int(kind) for kind in (TokenKind.CONTENT, TokenKind.CONTROL, TokenKind.PAD, TokenKind.UNSCORED)
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What all objectives have in common."""

    score_control: bool = True
    """Control tokens are targets."""
    unscored: Literal["mask", "mle"] = "mask"
    """Tokens without a score: no targets, or plain likelihood."""
    compat: Compat | None = None


class ObjectiveOutput(NamedTuple):
    """A tuple, because DDP and FSDP look for tensors in what a module returns, and know tuples in every version."""

    loss: Tensor
    """Sum over valid targets; under compat the mean over the micro-batch. Divide by `num_targets` summed over all ranks
    and micro-batches of the step, once."""
    num_targets: Tensor
    """Number of targets, or the sum of weights; under compat 1 per micro-batch. float64 scalar."""
    metrics: Statistics
    """Totals of this batch, see `statistics`; `Objective.summarize` makes readable figures of them."""


@dataclass(frozen=True, slots=True)
class Targets:
    ids_N: Tensor
    scores_N: Tensor
    """0 where there is none."""
    valid_N: Tensor
    """Bool: has a loss and counts in the normaliser (m_t)."""
    scored_N: Tensor
    """Bool: valid, and has a score that the objective may use."""


class Weights(NamedTuple):
    """What an objective decides about each target, before the model's probabilities are known."""

    likelihood_N: Tensor
    unlikelihood_N: Tensor
    num_targets: Tensor
    coefficient: float = 1.0
    """Of the whole language model term."""
    value_loss: Tensor | None = None
    """Sum over targets, times its coefficient; differentiable."""
    statistics: Statistics = {}


class Objective(nn.Module):
    """`forward` gives loss, normaliser and statistics of one micro-batch. Holds numbers, no parameters."""

    uses_values = False
    """True: `values_BS` is needed."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules
        self.compat = rules.compat

    def forward(  # noqa: PLR0913 - one block and one model's outputs
        self,
        *,
        hidden_BSD: Tensor,
        head_VD: Tensor,
        input_ids_BS: Tensor,
        token_scores_BS: Tensor,
        token_kinds_BS: Tensor,
        head_bias_V: Tensor | None = None,
        values_BS: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Logits are hidden_BSD @ head_VD.T + head_bias_V. values_BS: V_t at position t, about the target t + 1."""
        targets = self.targets(input_ids_BS, token_scores_BS=token_scores_BS, token_kinds_BS=token_kinds_BS)
        values_N = None if values_BS is None else values_BS[:, :-1].flatten()
        weights = self.weigh(targets, values_N)
        fused = fused_linear_loss(
            hidden_BSD[:, :-1].flatten(0, 1),
            head_VD,
            head_bias_V=head_bias_V,
            targets_N=targets.ids_N,
            likelihood_weight_N=weights.likelihood_N,
            unlikelihood_weight_N=weights.unlikelihood_N,
            saturating=self.compat is not None,
        )
        loss = weights.coefficient * fused.loss
        if weights.value_loss is not None:
            loss = loss + weights.value_loss
        elif values_N is not None:
            # A value head that this objective does not train still needs a gradient, of zero: DDP waits for one.
            loss = loss + 0.0 * values_N.sum()
        metrics = self._statistics(targets, weights, fused) | {"sum/loss": _total(loss)}
        num_targets = weights.num_targets
        if self.compat is not None:
            # DIFFERS: ours divides once a step by the global number of targets; original: mean per micro-batch.
            loss = loss / num_targets.clamp(min=1).to(loss.dtype)
            num_targets = torch.ones_like(num_targets)
        return ObjectiveOutput(loss, num_targets, metrics)

    def targets(self, input_ids_BS: Tensor, *, token_scores_BS: Tensor, token_kinds_BS: Tensor) -> Targets:
        """The shift by one happens here, and nowhere else."""
        kinds_N = token_kinds_BS[:, 1:].flatten()
        valid_N = kinds_N != _PAD
        if self.rules.unscored == "mask":
            valid_N = valid_N & (kinds_N != _UNSCORED)
        if not self.rules.score_control:
            valid_N = valid_N & (kinds_N != _CONTROL)
        # DIFFERS: ours ignores scores of structural tokens; original: end of text and control tokens carry the
        # score of the segment after them, and compat blocks hold it.
        has_score_N = kinds_N == _CONTENT if self.compat is None else kinds_N != _UNSCORED
        scored_N = valid_N & has_score_N
        scores_N = token_scores_BS[:, 1:].flatten().float()
        return Targets(
            ids_N=input_ids_BS[:, 1:].flatten().long(),
            scores_N=torch.where(scored_N, scores_N, 0.0),
            valid_N=valid_N,
            scored_N=scored_N,
        )

    def weigh(self, targets: Targets, values_N: Tensor | None, /) -> Weights:
        raise NotImplementedError

    def summarize(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        """Readable figures of totals over any number of micro-batches, ranks and steps. Waits for the device."""
        total = {name: float(value) for name, value in totals.items() if value.ndim == 0}
        num_valid = total["sum/num_valid"]
        squared = total["sum/weight_squared"]
        effective = total["sum/weight"] ** 2 / squared if squared else float("nan")
        return {
            "loss": _ratio(total["sum/loss"], total["sum/num_targets"]),
            "original_loss": _ratio(total["sum/original_loss"], num_valid),
            "effective_sample_size": effective,
            "effective_sample_fraction": _ratio(effective, num_valid),
        } | self._summarize(total, num_valid)

    def _summarize(self, _total: Mapping[str, float], _num_valid: float, /) -> dict[str, float]:
        return {}

    def histograms(self, _totals: Mapping[str, Tensor], /) -> dict[str, Histogram]:
        """Distributions of the same totals, by name."""
        return {}

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        likelihood_N = torch.where(targets.valid_N, fused.likelihood_N, 0.0)
        return {
            "sum/num_valid": _total(targets.valid_N),
            "sum/num_targets": weights.num_targets,
            "sum/original_loss": _total(likelihood_N),
            "sum/weight": _total(weights.likelihood_N),
            "sum/weight_squared": _total(weights.likelihood_N.double().square()),
            **weights.statistics,
        }


class MLE(Objective):
    """L = sum_t m_t l_t / sum_t m_t (Eq. 3). `mask_above`: m_t = 0 for targets of segments that score above it."""

    def __init__(
        self,
        rules: Rules,
        *,
        mask_above: float | None = None,
    ) -> None:
        super().__init__(rules)
        self.mask_above = mask_above

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        kept_N = targets.valid_N
        if self.mask_above is not None:
            kept_N = kept_N & ~(targets.scored_N & (targets.scores_N > self.mask_above))
        likelihood_N = kept_N.to(targets.scores_N.dtype)
        return Weights(likelihood_N, torch.zeros_like(likelihood_N), num_targets=_total(kept_N))


class Unlikelihood(Objective):
    """L = sum_t m_t (a_t l_t + alpha (1 - a_t) u_t) / sum_t m_t (Eq. 6), aligned where score <= threshold.

    `score_threshold` None: soft mixture, a_t = 1 - score. 0.0 is a threshold.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        score_threshold: float | None,
        alpha: float = 1.0,
    ) -> None:
        super().__init__(rules)
        # DIFFERS: ours takes a threshold of 0.0 as one; original: `if score_threshold`, so 0.0 is the mixture.
        self.score_threshold = score_threshold if self.compat is None else (score_threshold or None)
        self.alpha = alpha

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        if self.score_threshold is not None:
            aligned_N = (targets.scores_N <= self.score_threshold).to(targets.scores_N.dtype)
        else:
            # DIFFERS: ours keeps a_t in [0, 1]; original: a score above 1 gives a negative weight.
            aligned_N = 1 - (targets.scores_N if self.compat else targets.scores_N.clamp(0, 1))
        # Structural targets, and unscored ones that are trained on, are aligned under any threshold.
        aligned_N = torch.where(targets.scored_N, aligned_N, 1.0)
        valid_N = targets.valid_N.to(aligned_N.dtype)
        return Weights(
            likelihood_N=valid_N * aligned_N,
            unlikelihood_N=valid_N * self.alpha * (1 - aligned_N),
            num_targets=_total(targets.valid_N),
            statistics={
                "sum/num_scored": _total(targets.scored_N),
                "sum/score": _total(targets.scores_N),
                "sum/aligned": _total(valid_N * aligned_N),
            },
        )

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        # With a weight of exactly 0 the loss may be infinite, and 0 x inf is NaN.
        likelihood_N = torch.where(weights.likelihood_N > 0, weights.likelihood_N * fused.likelihood_N, 0.0)
        unlikelihood_N = torch.where(weights.unlikelihood_N > 0, weights.unlikelihood_N * fused.unlikelihood_N, 0.0)
        return super()._statistics(targets, weights, fused) | {
            "sum/likelihood_loss": _total(likelihood_N),
            "sum/unlikelihood_loss": _total(unlikelihood_N),
        }

    def _summarize(self, total: Mapping[str, float], num_valid: float, /) -> dict[str, float]:
        return {
            "avg_token_score": _ratio(total["sum/score"], total["sum/num_scored"]),
            "aligned_token_count": total["sum/aligned"],
            "likelihood_loss": _ratio(total["sum/likelihood_loss"], num_valid),
            "unlikelihood_loss": _ratio(total["sum/unlikelihood_loss"], num_valid),
        }


@dataclass(frozen=True, slots=True)
class RewardWeighting:
    """w = min(exp(advantage / beta), clip_weight_max), constants to the gradient."""

    beta: float = 1.0
    clip_weight_max: float = 1000.0
    reward_mean: float = 0.0
    reward_std: float = 1.0
    """Rewards are standardised with these before the exponential: 0 and 1 leave them as they are."""

    def weights(self, advantages_N: Tensor) -> Tensor:
        return (advantages_N.detach() / self.beta).exp().clamp(max=self.clip_weight_max)


class RWR(Objective):
    """L = sum_t m_t w_t l_t / N, w_t = min(exp(R_t / beta), w_max), R = -score (Eq. 7).

    N is the number of targets (the paper's) or the sum of their weights.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        weighting: RewardWeighting,
        normalise: Literal["targets", "weights"] = "targets",
    ) -> None:
        super().__init__(rules)
        self.weighting = weighting
        self.normalise = normalise

    def weigh(self, targets: Targets, values_N: Tensor | None, /) -> Weights:
        rewards_N = (-targets.scores_N - self.weighting.reward_mean) / self.weighting.reward_std
        if self.compat is not None:
            # DIFFERS: ours has no value head in RWR; original: RWR is AWR with alpha 1, which subtracts the
            # untrained head's -0.5 and so multiplies every weight by exp(0.5 / beta).
            rewards_N = rewards_N - (-0.5 if values_N is None else values_N.detach())
        weights_N = torch.where(targets.scored_N, self.weighting.weights(rewards_N), 1.0) * targets.valid_N
        return Weights(
            likelihood_N=weights_N,
            unlikelihood_N=torch.zeros_like(weights_N),
            num_targets=_total(weights_N if self.normalise == "weights" else targets.valid_N),
            statistics=_weight_statistics(targets, weights_N, largest=self.weighting.clip_weight_max),
        )

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        return super()._statistics(targets, weights, fused) | _weighted_loss(weights, fused)

    def _summarize(self, total: Mapping[str, float], num_valid: float, /) -> dict[str, float]:
        return _summarize_weights(total, num_valid)

    def histograms(self, totals: Mapping[str, Tensor], /) -> dict[str, Histogram]:
        return _weight_histogram(totals, largest=self.weighting.clip_weight_max)


class AWR(Objective):
    """L = alpha sum_t m_t w_t l_t / N + (1 - alpha) sum_t m_t (R_t - V_t)^2 / N (Eq. 8),

    w_t = min(exp((R_t - V_t) / beta), w_max), R = -score, V the value head's. Structural targets have advantage 0 and
    no value loss. Standardised rewards: R and V alike, so the advantage is (R - V) / std; the head learns R itself.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        weighting: RewardWeighting,
        alpha: float = 0.5,
        fixed_value: float | None = None,
        use_value_head: bool = True,
        normalize_advantage: bool = False,
    ) -> None:
        super().__init__(rules)
        self.weighting = weighting
        self.alpha = alpha
        # DIFFERS: ours takes a fixed value of 0.0 as one; original: `if fixed_value`, so 0.0 is the value head.
        self.fixed_value = fixed_value if self.compat is None else (fixed_value or None)
        self.use_value_head = use_value_head
        self.normalize_advantage = normalize_advantage
        self.uses_values = self.fixed_value is None and use_value_head

    def weigh(self, targets: Targets, values_N: Tensor | None, /) -> Weights:
        rewards_N = -targets.scores_N
        advantages_N = (rewards_N - self._baseline(rewards_N, values_N)) / self.weighting.reward_std
        if self.normalize_advantage:
            advantages_N = (advantages_N - advantages_N.mean()) / advantages_N.std()
        advantages_N = torch.where(targets.scored_N, advantages_N, 0.0)
        weights_N = self.weighting.weights(advantages_N) * targets.valid_N
        statistics = _weight_statistics(targets, weights_N, largest=self.weighting.clip_weight_max)
        statistics |= {"sum/advantage": _total(advantages_N)}
        value_loss = None
        if values_N is not None:
            squares_N = torch.where(targets.scored_N, (rewards_N - values_N).square(), 0.0)
            value_loss = (1 - self.alpha) * squares_N.sum()
            statistics |= {"sum/value_loss": _total(squares_N)} | _value_statistics(
                targets, rewards_N, values_N.detach()
            )
        return Weights(
            likelihood_N=weights_N,
            unlikelihood_N=torch.zeros_like(weights_N),
            num_targets=_total(targets.valid_N),
            coefficient=self.alpha,
            value_loss=value_loss,
            statistics=statistics,
        )

    def _baseline(self, rewards_N: Tensor, values_N: Tensor | None) -> Tensor:
        if self.fixed_value is not None:
            return torch.full_like(rewards_N, self.fixed_value)
        if not self.use_value_head:
            return torch.zeros_like(rewards_N)
        if values_N is None:
            raise ConfigError(
                "objective AWR needs a value head; set model.model_kwargs.value_head_config or fixed_value"
            )
        return values_N.detach().to(rewards_N.dtype)

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        return super()._statistics(targets, weights, fused) | _weighted_loss(weights, fused)

    def _summarize(self, total: Mapping[str, float], num_valid: float, /) -> dict[str, float]:
        num_scored = total["sum/num_scored"]
        figures = _summarize_weights(total, num_valid) | {
            "advantage_avg": _ratio(total["sum/advantage"], num_scored),
        }
        if "sum/value_loss" in total:
            figures |= _summarize_values(total, num_valid, num_scored)
        return figures

    def histograms(self, totals: Mapping[str, Tensor], /) -> dict[str, Histogram]:
        found = _weight_histogram(totals, largest=self.weighting.clip_weight_max)
        if "sum/value_bins" in totals:
            edges = [edge / NUM_BINS - 1 for edge in range(NUM_BINS + 1)]
            found["value_dis"] = Histogram(edges=edges, counts=totals["sum/value_bins"].tolist())
        return found


def _total(tensor: Tensor) -> Tensor:
    """float64: a step's count of tokens is past the whole numbers of fp32."""
    return tensor.detach().double().sum()


def _ratio(numerator: float, denominator: float) -> float:
    """NaN where nothing was counted: no figure is better than a false one."""
    return numerator / denominator if denominator else float("nan")


def _weight_statistics(targets: Targets, weights_N: Tensor, *, largest: float) -> Statistics:
    weights_N = weights_N.detach().double()
    return {
        "sum/weight_bins": counts_by_bin(weight_places(weights_N, largest=largest), counted_N=targets.valid_N),
        "sum/num_scored": _total(targets.scored_N),
        "sum/score": _total(targets.scores_N),
        "min/weight": torch.where(targets.valid_N, weights_N, torch.inf).amin(),
        "max/weight": torch.where(targets.valid_N, weights_N, -torch.inf).amax(),
    }


def _weight_histogram(totals: Mapping[str, Tensor], *, largest: float) -> dict[str, Histogram]:
    counts = totals["sum/weight_bins"].tolist()
    return {"weight_dist": Histogram(edges=weight_edges(largest=largest), counts=counts)}


def _weighted_loss(weights: Weights, fused: FusedLoss) -> Statistics:
    weighted_N = torch.where(weights.likelihood_N > 0, weights.likelihood_N * fused.likelihood_N, 0.0)
    return {"sum/weighted_lm_loss": _total(weighted_N)}


def _summarize_weights(total: Mapping[str, float], num_valid: float) -> dict[str, float]:
    return {
        "avg_token_score": _ratio(total["sum/score"], total["sum/num_scored"]),
        "lm_loss": _ratio(total["sum/original_loss"], num_valid),
        "weighted_lm_loss": _ratio(total["sum/weighted_lm_loss"], num_valid),
        "weight_avg": _ratio(total["sum/weight"], num_valid),
        "weights_min": total["min/weight"],
        "weights_max": total["max/weight"],
    }


def _value_statistics(targets: Targets, rewards_N: Tensor, values_N: Tensor) -> Statistics:
    scored_N = targets.scored_N
    rewards_N, values_N = (torch.where(scored_N, tensor.double(), 0.0) for tensor in (rewards_N, values_N))
    return {
        "sum/value_bins": counts_by_bin(values_N + 1, counted_N=scored_N),
        "sum/value": values_N.sum(),
        "sum/value_squared": values_N.square().sum(),
        "sum/reward": rewards_N.sum(),
        "sum/reward_squared": rewards_N.square().sum(),
        "sum/value_reward": (values_N * rewards_N).sum(),
        "min/value": torch.where(scored_N, values_N, torch.inf).amin(),
        "max/value": torch.where(scored_N, values_N, -torch.inf).amax(),
    }


def _summarize_values(total: Mapping[str, float], num_valid: float, num_scored: float) -> dict[str, float]:
    mean = {name: _ratio(total[f"sum/{name}"], num_scored) for name in ("value", "reward", "value_squared")}
    value_variance = max(mean["value_squared"] - mean["value"] ** 2, 0.0)
    reward_variance = max(_ratio(total["sum/reward_squared"], num_scored) - mean["reward"] ** 2, 0.0)
    covariance = _ratio(total["sum/value_reward"], num_scored) - mean["value"] * mean["reward"]
    return {
        "value_loss": _ratio(total["sum/value_loss"], num_valid),
        "value_avg": mean["value"],
        "value_std": value_variance**0.5,
        "value_min": total["min/value"],
        "value_max": total["max/value"],
        "value_reward_corr": _ratio(covariance, (value_variance * reward_variance) ** 0.5),
    }
