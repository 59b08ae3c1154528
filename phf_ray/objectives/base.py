"""The base of all objectives. An objective weighs each target's likelihood and unlikelihood; `fused` does the rest.

Inputs are unshifted: position t predicts token t + 1, and score, kind and validity are those of the PREDICTED token.
Structural targets (end of text, control) have no score: they count as aligned, with weight 1 and advantage 0.

A loss L of the targets' log-probabilities has the gradient sum_t (dL / dlogp_t) grad logp_t: that of a likelihood with
the weights w_t = -dL / dlogp_t. So an objective that reads log-probabilities gets them from a pass without gradients,
answers with weights, and the same fused pass as for every other objective computes the gradients.

Shapes: B sequences, S tokens, T = S - 1 targets each, N = B T targets flattened, D hidden size, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from phf_ray.config import Compat, FeedbackCompat
from phf_ray.errors import DataError
from phf_ray.objectives.divergence import Operands
from phf_ray.objectives.fused import FusedLoss, fused_linear_loss
from phf_ray.objectives.statistics import BinCounts, Statistics
from phf_ray.objectives.streams import CORPUS, LossStreams
from phf_ray.records import TokenKind

# Plain numbers: torch.compile evaluates `tensor != TokenKind.PAD` to a bool.
_CONTENT, _END_OF_TEXT, _CONTROL, _PAD, _UNSCORED, _PLAIN, _GIVEN = map(int, TokenKind)


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings that all objectives share."""

    score_control: bool = True
    """Whether control tokens are targets."""
    unscored: Literal["mask", "mle"] = "mask"
    """`mask`: tokens without a score are not targets. `mle`: they are targets of plain likelihood."""
    compat: Compat | None = None
    feedback_compat: FeedbackCompat = None
    examples: bool = False
    """Blocks hold whole examples. The end-of-text token that begins an example is no target, and the head is computed
    for the learned targets alone: prompts are often most of a block."""


class ObjectiveOutput(NamedTuple):
    """Result of `Objective.forward`: a tuple, because every version of DDP and FSDP finds the tensors in a tuple."""

    loss: Tensor
    """Sum over valid targets; under compat, the mean over the micro-batch. Divide it once, by `num_targets` summed over
    all ranks and micro-batches of the step."""
    num_targets: Tensor
    """Number of targets, or the sum of their weights; under compat, 1 per micro-batch. float64 scalar."""
    metrics: Statistics
    """Totals of this batch (see `statistics`); `Objective.summarize` turns them into readable figures."""


@dataclass(frozen=True, slots=True)
class Targets:
    ids_N: Tensor
    scores_N: Tensor
    """0 for a target without a score."""
    valid_N: Tensor
    """Bool: the target has a loss and counts in the normaliser (m_t)."""
    scored_N: Tensor
    """Bool: the target is valid and has a score that the objective may use."""
    rows_N: Tensor | None = None
    """Number of the target's document within the micro-batch, from 0; None if the objective reads no log-probabilities.
    A document begins at its end-of-text token; what continues a document of an earlier block counts to the document
    before."""
    channels: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Named numbers of each target, shape (N,); see `Objective.channels`."""
    logprobs_N: Tensor | None = None
    """log p[y], if the objective reads it; without gradient, 0 for a target that is not valid."""


class Weights(NamedTuple):
    """An objective's weights for each target."""

    likelihood_N: Tensor
    unlikelihood_N: Tensor
    num_targets: Tensor
    coefficient: float = 1.0
    """Factor of the whole language model term."""
    value_loss: Tensor | None = None
    """Sum over targets times its coefficient; differentiable."""
    loss: Tensor | None = None
    """The loss whose slopes the weights are, if it is not the weighted sum itself."""
    statistics: Statistics = {}


class FurtherLoss(NamedTuple):
    """A loss that no weights of the targets' likelihood can say."""

    loss: Tensor
    """Sum over targets; differentiable."""
    statistics: Statistics


class Objective(nn.Module):
    """Computes loss, normaliser and statistics of one micro-batch. Has settings but no parameters."""

    reads_scores: bool = True
    """Whether the loss of a text depends on its scores."""
    reads_logprobs: ClassVar[bool] = False
    """`weigh` gets `targets.logprobs_N`. The price is a second product with the head."""
    without_dropout: bool = False
    """The answers of a pair are compared, and other dropout in each would be noise."""
    temperature: float = 1.0
    """The likelihood is that of logits / temperature."""
    channels: tuple[str, ...] = ()
    """Names of the numbers per token, beside the score, that `weigh` reads."""
    streams: LossStreams | None = None
    """Set if data sets have loss weights of their own. In a step, `weigh` then gets the channel LOSS_WEIGHT."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules
        self.compat = rules.compat
        self.averages_micro_batches = rules.compat is not None or rules.feedback_compat in ("trl", "alpaca_farm")

    def survey(self) -> "Survey | None":
        """Return what counts, over all of a step, the numbers that `weigh` has to know before it; None: it needs none.

        Training runs it without gradients on all micro-batches of the step, and hands `weigh` its numbers as channels.
        """
        return None

    def reads(self, _channels: Mapping[str, Tensor], /) -> Tensor | None:
        """Return whether each token belongs to a row that this pass has to read, bool, of the channels' shape; None:
        all do. The others are no targets."""
        return None

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
        channels_BS: Mapping[str, Tensor] | None = None,
    ) -> ObjectiveOutput:
        """Compute loss, normaliser and statistics for logits hidden_BSD @ head_VD.T + head_bias_V.

        values_BS holds V_t at position t, the value of target t + 1. channels_BS holds the named numbers of each token;
        DataError if one that the objective reads is missing.
        """
        targets = self.targets(
            input_ids_BS, token_scores_BS=token_scores_BS, token_kinds_BS=token_kinds_BS, channels_BS=channels_BS
        )
        values_N = None if values_BS is None else values_BS[:, :-1].flatten()
        if self.temperature != 1:
            hidden_BSD = hidden_BSD / self.temperature
            head_bias_V = None if head_bias_V is None else head_bias_V / self.temperature
        operands = Operands(hidden_BSD[:, :-1].flatten(0, 1), head_VD, head_bias_V)
        head = _Head(*operands, targets, self.rules)
        if self.reads_logprobs:
            targets = dataclasses.replace(targets, logprobs_N=head.logprobs())
        weights = self.weigh(targets, values_N)
        fused = head.loss(weights)
        loss = weights.coefficient * fused.loss
        if weights.loss is not None:
            loss = weights.loss.to(loss.dtype) + (loss - loss.detach())
        if weights.value_loss is not None:
            loss = loss + weights.value_loss
        elif values_N is not None:
            # If this objective does not train the value head, the head still needs a zero gradient: DDP waits for one.
            loss = loss + 0.0 * values_N.sum()
        further = self.further_loss(operands, targets, input_ids_BS, token_kinds_BS)
        if further is not None:
            loss = loss + further.loss.to(loss.dtype)
        metrics = self._statistics(targets, weights, fused) | {"sum/loss": total(loss)}
        metrics |= {} if further is None else further.statistics
        num_targets = weights.num_targets
        return self._normalised(loss, num_targets, metrics)

    def _normalised(self, loss: Tensor, num_targets: Tensor, metrics: Statistics) -> ObjectiveOutput:
        if not self.averages_micro_batches:
            return ObjectiveOutput(loss, num_targets, metrics)
        # DIFFERS: phf-ray divides once per step by the global number of targets; the original averages per
        # micro-batch.
        # DIFFERS: phf-ray divides once per step by the global number of pairs or answers; TRL (but for finetuning) and
        # AlpacaFarm average per micro-batch, so that an answer counts more in a micro-batch with few.
        loss = loss / num_targets.clamp(min=1).to(loss.dtype)
        return ObjectiveOutput(loss, torch.ones_like(num_targets), metrics)

    def targets(
        self,
        input_ids_BS: Tensor,
        *,
        token_scores_BS: Tensor,
        token_kinds_BS: Tensor,
        channels_BS: Mapping[str, Tensor] | None = None,
    ) -> Targets:
        """Flatten the targets. Only this method shifts by one."""
        self.refuse_missing(channels_BS)
        channels_N = {name: channel_BS[:, 1:].flatten() for name, channel_BS in (channels_BS or {}).items()}
        kinds_N = token_kinds_BS[:, 1:].flatten()
        valid_N = (kinds_N != _PAD) & (kinds_N != _GIVEN)
        is_read_N = self.reads(channels_N)
        if is_read_N is not None:
            valid_N = valid_N & is_read_N
        if self.rules.examples:
            begins_N = kinds_N == _END_OF_TEXT
            if self.streams is not None and CORPUS in channels_N:
                for text in self.streams.texts:
                    begins_N = begins_N & (channels_N[CORPUS] != text)
            valid_N = valid_N & ~begins_N
        if self.rules.unscored == "mask":
            valid_N = valid_N & (kinds_N != _UNSCORED)
        if not self.rules.score_control:
            valid_N = valid_N & (kinds_N != _CONTROL)
        # DIFFERS: phf-ray ignores scores of structural tokens; the original gives end-of-text and control tokens
        # the score of the segment after them, and compat blocks store that score.
        has_score_N = kinds_N == _CONTENT
        if self.compat is not None:
            has_score_N = (kinds_N != _UNSCORED) & (kinds_N != _PLAIN)
        scored_N = valid_N & has_score_N
        scores_N = token_scores_BS[:, 1:].flatten().float()
        return Targets(
            ids_N=input_ids_BS[:, 1:].flatten().long(),
            scores_N=torch.where(scored_N, scores_N, 0.0),
            valid_N=valid_N,
            scored_N=scored_N,
            rows_N=_rows(token_kinds_BS) if self.reads_logprobs else None,
            channels=channels_N,
        )

    def refuse_missing(self, channels_BS: Mapping[str, Tensor] | None) -> None:
        """Raise DataError if a channel that the objective reads is not there."""
        missing = [name for name in self.channels if name not in (channels_BS or {})]
        if missing:
            raise DataError(
                f"objective {type(self).__name__} reads {', '.join(missing)} of each token, which these blocks lack; "
                f"they have {', '.join(channels_BS or {}) or 'no such numbers'}"
            )

    def weigh(self, targets: Targets, values_N: Tensor | None, /) -> Weights:
        raise NotImplementedError

    def further_loss(
        self, _operands: Operands, _targets: Targets, _input_ids_BS: Tensor, _token_kinds_BS: Tensor, /
    ) -> FurtherLoss | None:
        """Return what is learned of the targets beside their likelihood. `operands` have their logits."""
        return None

    def summarize(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        """Turn totals over any number of micro-batches, ranks and steps into figures. Waits for the device."""
        total = {name: float(value) for name, value in totals.items() if value.ndim == 0}
        num_valid = total["sum/num_valid"]
        figures = {
            "loss": ratio(total["sum/loss"], total["sum/num_targets"]),
            "original_loss": ratio(total["sum/original_loss"], num_valid),
        }
        if not self.reads_logprobs:
            # Slopes have both signs, so they say nothing of how many samples count.
            squared = total["sum/weight_squared"]
            effective = total["sum/weight"] ** 2 / squared if squared else float("nan")
            figures |= {
                "effective_sample_size": effective,
                "effective_sample_fraction": ratio(effective, num_valid),
            }
        return figures | self._summarize(total, num_valid)

    def _summarize(self, _total: Mapping[str, float], _num_valid: float, /) -> dict[str, float]:
        return {}

    def histograms(self, _totals: Mapping[str, Tensor], /) -> dict[str, BinCounts]:
        """Return the distributions that the same totals hold, by name."""
        return {}

    def _statistics(self, targets: Targets, weights: Weights, fused: FusedLoss) -> Statistics:
        likelihood_N = torch.where(targets.valid_N, fused.likelihood_N, 0.0)
        return {
            "sum/num_valid": total(targets.valid_N),
            "sum/num_targets": weights.num_targets,
            "sum/original_loss": total(likelihood_N),
            "sum/weight": total(weights.likelihood_N),
            "sum/weight_squared": total(weights.likelihood_N.double().square()),
            **weights.statistics,
        }


class Survey(Objective):
    """Counts something in all micro-batches of a step, in a pass without gradients; see `Objective.survey`."""

    def __init__(self, rules: Rules, *, is_of_step: bool = True) -> None:
        """`is_of_step`: false to count each micro-batch by itself."""
        super().__init__(rules)
        self.is_of_step = is_of_step

    def forward(  # noqa: PLR0913 - one block and one model's outputs
        self,
        *,
        hidden_BSD: Tensor,
        head_VD: Tensor,
        head_bias_V: Tensor | None = None,
        input_ids_BS: Tensor,
        token_scores_BS: Tensor,
        token_kinds_BS: Tensor,
        channels_BS: Mapping[str, Tensor] | None = None,
        **_others: object,
    ) -> ObjectiveOutput:
        targets = self.targets(
            input_ids_BS, token_scores_BS=token_scores_BS, token_kinds_BS=token_kinds_BS, channels_BS=channels_BS
        )
        head = _Head(hidden_BSD[:, :-1].flatten(0, 1), head_VD, head_bias_V, targets, self.rules)
        targets = dataclasses.replace(targets, logprobs_N=head.logprobs())
        counts = {name: value.to(hidden_BSD.device) for name, value in self.count(targets).items()}
        nothing = torch.zeros((), device=hidden_BSD.device)
        return ObjectiveOutput(nothing, nothing.double(), counts)

    def count(self, targets: Targets, /) -> Statistics:
        raise NotImplementedError

    def numbers(self, totals: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Turn totals over all micro-batches and ranks into numbers, by the name of their channel."""
        raise NotImplementedError


def _rows(token_kinds_BS: Tensor) -> Tensor:
    begins_M = (token_kinds_BS == _END_OF_TEXT).flatten()
    rows_BS = (begins_M.cumsum(0) - 1).clamp(min=0).view(token_kinds_BS.shape)
    return rows_BS[:, 1:].flatten()


class _Head:
    """The products with the head of one micro-batch."""

    def __init__(
        self, hidden_ND: Tensor, head_VD: Tensor, head_bias_V: Tensor | None, targets: Targets, rules: Rules
    ) -> None:
        self._hidden_ND = hidden_ND
        self._head_VD = head_VD
        self._bias_V = head_bias_V
        self._ids_N = targets.ids_N
        self._saturating = rules.compat is not None
        # Waits for the device; the trunk's work is long compared with this.
        self._learned = targets.valid_N.nonzero().squeeze(1) if rules.examples else None

    def loss(self, weights: Weights) -> FusedLoss:
        return self._fused(weights.likelihood_N, weights.unlikelihood_N)

    def logprobs(self) -> Tensor:
        nothing_N = torch.zeros(self._ids_N.shape, device=self._ids_N.device)
        with torch.no_grad():
            return -self._fused(nothing_N, nothing_N).likelihood_N

    def _fused(self, likelihood_weight_N: Tensor, unlikelihood_weight_N: Tensor) -> FusedLoss:
        learned = self._learned
        hidden_ND, ids_N = self._hidden_ND, self._ids_N
        if learned is not None:
            hidden_ND, ids_N = hidden_ND[learned], ids_N[learned]
            likelihood_weight_N, unlikelihood_weight_N = likelihood_weight_N[learned], unlikelihood_weight_N[learned]
        fused = fused_linear_loss(
            hidden_ND,
            self._head_VD,
            head_bias_V=self._bias_V,
            targets_N=ids_N,
            likelihood_weight_N=likelihood_weight_N,
            unlikelihood_weight_N=unlikelihood_weight_N,
            saturating=self._saturating,
        )
        if learned is None:
            return fused
        return FusedLoss(fused.loss, self._spread(fused.likelihood_N), self._spread(fused.unlikelihood_N))

    def _spread(self, values_M: Tensor) -> Tensor:
        spread_N = torch.zeros(self._ids_N.shape, dtype=values_M.dtype, device=values_M.device)
        return spread_N.index_copy_(0, self._learned, values_M)  # type: ignore[arg-type]


def target_logprobs(
    hidden_BSD: Tensor, head_VD: Tensor, head_bias_V: Tensor | None, *, input_ids_BS: Tensor, token_kinds_BS: Tensor
) -> Tensor:
    """Return what an objective on blocks of examples reads as `logprobs_N`, by token, (B, S); 0 if not learned."""
    rules = Rules(examples=True, unscored="mle")
    scores_BS = torch.zeros(input_ids_BS.shape, device=input_ids_BS.device)
    targets = Objective(rules).targets(input_ids_BS, token_scores_BS=scores_BS, token_kinds_BS=token_kinds_BS)
    logprobs_N = _Head(hidden_BSD[:, :-1].flatten(0, 1), head_VD, head_bias_V, targets, rules).logprobs()
    return nn.functional.pad(logprobs_N.view(len(input_ids_BS), -1), (1, 0))


def total(tensor: Tensor) -> Tensor:
    """Sum in float64, because fp32 can't count all tokens of a step exactly."""
    return tensor.detach().double().sum()


def ratio(numerator: float, denominator: float) -> float:
    """Divide; return NaN if nothing was counted, because no figure is better than a false one."""
    return numerator / denominator if denominator else float("nan")
