"""Reward models (Bradley and Terry 1952; Ouyang et al. 2022), on pairs of answers that share a block.

p(chosen is better) = sigmoid(r_chosen - r_rejected). The rows of a block come in pairs: the answer that was chosen,
then the one that was rejected. A row's reward is read where transformers reads the answer of a sequence classifier: at
its last token that is not the padding token. That is the end of text after the answer if padding is another token, and
the answer's last token if padding is the end of text. Figures have TRL's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from phf_ray.errors import ConfigError, DataError
from phf_ray.measures.calibration import calibration_error
from phf_ray.objectives.base import Objective, ObjectiveOutput, Rules, ratio, total
from phf_ray.objectives.statistics import Statistics
from phf_ray.records import MARGIN, TokenKind

_END_OF_TEXT, _PAD, _GIVEN = int(TokenKind.END_OF_TEXT), int(TokenKind.PAD), int(TokenKind.GIVEN)
NUM_CONFIDENCE_BINS = 10
"""Equal bins of the probability that the model gives to the answer that it prefers, from .5 to 1."""


@dataclass(frozen=True, slots=True)
class RewardSettings:
    margin: float | Literal["column", "preference"] = 0.0
    """A word: each pair carries its own."""
    label_smoothing: float = 0.0
    centring: float = 0.0


class PairedRows(NamedTuple):
    """Rows of a micro-batch in their order, R of them; the even ones were chosen."""

    last_R: Tensor
    """Place of the token at which the reward is read, in the flattened micro-batch."""
    lengths_R: Tensor
    """Learned tokens: those of the answer and its end of text."""


class PairwiseReward(Objective):
    """L = sum_pairs -log sigmoid(r_chosen - r_rejected - margin) / pairs. Reads no head and no log-probabilities."""

    reads_scores = False
    without_dropout = True

    def __init__(self, rules: Rules, settings: RewardSettings) -> None:
        super().__init__(rules)
        self.settings = settings
        if isinstance(settings.margin, str):
            self.channels = (MARGIN,)

    def forward(
        self,
        *,
        rewards_BS: Tensor | None = None,
        input_ids_BS: Tensor,
        token_kinds_BS: Tensor,
        channels_BS: Mapping[str, Tensor] | None = None,
        pad_id: int | None = None,
        **_others: object,
    ) -> ObjectiveOutput:
        """`rewards_BS`: what the reward model says at each token. `pad_id`: its padding token; None if it has none."""
        if rewards_BS is None:
            raise ConfigError("objective BradleyTerry needs a reward model, which this model is not; use RewardModel")
        rows = paired_rows(input_ids_BS, token_kinds_BS, pad_id=pad_id)
        rewards_R = rewards_BS.flatten()[rows.last_R]
        chosen_P, rejected_P = rewards_R[0::2], rewards_R[1::2]
        settings = self.settings
        difference_P = chosen_P - rejected_P
        margin = self._margin(rows, channels_BS)
        losses_P = -F.logsigmoid(difference_P - margin)
        if settings.label_smoothing:
            wrong_P = -F.logsigmoid(-difference_P - margin)
            losses_P = (1 - settings.label_smoothing) * losses_P + settings.label_smoothing * wrong_P
        if settings.centring:
            losses_P = losses_P + settings.centring * (chosen_P + rejected_P).square()
        # A micro-batch of padding has no pair. Its sum is 0 with gradients of 0, for which other ranks wait.
        loss = losses_P.sum()
        num_pairs = torch.full((), len(losses_P), dtype=torch.float64, device=rewards_BS.device)
        metrics = _statistics(chosen_P.detach().double(), rejected_P.detach().double(), rows.lengths_R)
        return self._normalised(loss, num_pairs, metrics | {"sum/loss": total(loss), "sum/num_pairs": num_pairs})

    def _margin(self, rows: PairedRows, channels_BS: Mapping[str, Tensor] | None) -> Tensor | float:
        if not isinstance(self.settings.margin, str):
            return self.settings.margin
        self.refuse_missing(channels_BS)
        return (channels_BS or {})[MARGIN].flatten()[rows.last_R[0::2]]

    def summarize(self, totals: Mapping[str, Tensor]) -> dict[str, float]:
        value = {name: float(each) for name, each in totals.items() if each.ndim == 0}
        num_pairs = value["sum/num_pairs"]
        confidences, rights = totals["sum/confidence_bins"], totals["sum/right_bins"]
        error = calibration_error(confidences.cpu().numpy(), rights.cpu().numpy(), num_judged=num_pairs)
        return {
            "loss": ratio(value["sum/loss"], num_pairs),
            "accuracy": ratio(value["sum/right"], num_pairs),
            "margin": ratio(value["sum/margin"], num_pairs),
            "mean_reward": ratio(value["sum/reward"], 2 * num_pairs),
            "min_reward": value["min/reward"] if num_pairs else float("nan"),
            "max_reward": value["max/reward"] if num_pairs else float("nan"),
            "calibration_error": float("nan") if error is None else error,
            "accuracy_chosen_longer": ratio(value["sum/right_longer"], value["sum/longer"]),
            "accuracy_chosen_shorter": ratio(value["sum/right_shorter"], value["sum/shorter"]),
            # What preferring the longer answer would reach; equal lengths count half.
            "accuracy_of_longer": ratio(
                0.5 * (num_pairs + value["sum/longer"] - value["sum/shorter"]),
                num_pairs,
            ),
        }


def paired_rows(input_ids_BS: Tensor, token_kinds_BS: Tensor, *, pad_id: int | None) -> PairedRows:
    """Raises DataError if the rows can't be pairs."""
    kinds_M = token_kinds_BS.flatten()
    begins_M = kinds_M == _END_OF_TEXT
    num_rows = int(begins_M.sum())
    if num_rows % 2:
        raise DataError(f"{num_rows} answers in a micro-batch can't be pairs; build the blocks again")
    is_text_M = kinds_M != _PAD
    # Padding follows the last row of a block, and belongs to it for this count.
    rows_M = (begins_M.cumsum(0) - 1).clamp(min=0)
    is_read_M = is_text_M if pad_id is None else is_text_M & (input_ids_BS.flatten() != pad_id)
    is_learned_M = is_text_M & (kinds_M != _GIVEN) & ~begins_M
    places_M = torch.arange(len(kinds_M), device=kinds_M.device)
    last_R = torch.zeros(num_rows, dtype=torch.long, device=kinds_M.device)
    lengths_R = torch.zeros(num_rows, dtype=torch.long, device=kinds_M.device)
    if num_rows:
        last_R.scatter_reduce_(0, rows_M, torch.where(is_read_M, places_M, 0), reduce="amax")
        lengths_R.scatter_add_(0, rows_M, is_learned_M.long())
    return PairedRows(last_R, lengths_R)


def _statistics(chosen_P: Tensor, rejected_P: Tensor, lengths_R: Tensor) -> Statistics:
    difference_P = chosen_P - rejected_P
    right_P = (difference_P > 0).double()
    rewards_R = torch.cat([chosen_P, rejected_P])
    longer_P, shorter_P = (lengths_R[0::2] > lengths_R[1::2]).double(), (lengths_R[0::2] < lengths_R[1::2]).double()
    confidence_P = difference_P.abs().sigmoid()
    bins_P = ((confidence_P - 0.5) * 2 * NUM_CONFIDENCE_BINS).long().clamp(0, NUM_CONFIDENCE_BINS - 1)
    nothing = torch.zeros(NUM_CONFIDENCE_BINS, dtype=torch.float64, device=chosen_P.device)
    none_yet = torch.full((1,), torch.inf, dtype=torch.float64, device=chosen_P.device)
    return {
        "sum/right": right_P.sum(),
        "sum/margin": difference_P.sum(),
        "sum/reward": rewards_R.sum(),
        "min/reward": torch.cat([rewards_R, none_yet]).min(),
        "max/reward": torch.cat([rewards_R, -none_yet]).max(),
        "sum/longer": longer_P.sum(),
        "sum/shorter": shorter_P.sum(),
        "sum/right_longer": (right_P * longer_P).sum(),
        "sum/right_shorter": (right_P * shorter_P).sum(),
        "sum/confidence_bins": nothing.scatter_add(0, bins_P, confidence_P),
        "sum/right_bins": nothing.scatter_add(0, bins_P, right_P),
    }
