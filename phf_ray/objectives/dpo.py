"""Direct preference optimisation and its family (Rafailov et al. 2023), on pairs of answers that share a block.

The rows of a block come in pairs: the answer that was chosen, then the one that was rejected. Rewards and
log-probabilities are logged under the names of TRL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.answers import REFERENCE, answers_of
from phf_ray.objectives.base import Objective, Rules, Targets, Weights, ratio
from phf_ray.objectives.pairs import Floats, check_settings, preference_loss
from phf_ray.objectives.statistics import Statistics


@dataclass(frozen=True, slots=True)
class PairSettings:
    losses: Mapping[str, float]
    """loss_type -> weight; the loss is their weighted sum."""
    beta: float = 0.1
    label_smoothing: float = 0.0
    reference_free: bool = False
    """true: the reference counts as uniform; no reference log-probabilities are read."""
    length_normalised: bool = False
    """true: means per token in place of sums over an answer."""
    odds: bool = False
    """true: log-odds log(p / (1 - p)) of the mean probability per token (ORPO, Hong et al. 2024)."""
    margin: float = 0.0
    """The chosen answer's reward has to be larger by this (gamma of SimPO, Meng et al. 2024)."""
    sft_weight: float = 0.0
    """Weight of the chosen answers' likelihood, per token, beside the loss of the pair (RPO, Pang et al. 2024)."""


class DPO(Objective):
    """L = sum_pairs loss(chosen, rejected) / pairs, where an answer's number is log pi / pi_reference of its tokens."""

    reads_scores = False
    reads_logprobs = True

    def __init__(self, rules: Rules, settings: PairSettings) -> None:
        super().__init__(rules)
        if not settings.losses:
            raise ConfigError("objective DPO has no loss_type; use sigmoid")
        for loss_type in settings.losses:
            check_settings(loss_type, beta=settings.beta, label_smoothing=settings.label_smoothing)
            if settings.length_normalised and loss_type == "ipo":
                raise ConfigError("loss_type: ipo divides by the lengths itself; remove length_normalised")
        if settings.odds and not (settings.reference_free and settings.length_normalised):
            raise ConfigError("odds: true is of a mean probability; set reference_free and length_normalised: true")
        self.settings = settings
        self.without_dropout = not settings.reference_free
        self.channels = () if settings.reference_free else (REFERENCE,)

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        logprobs_N, settings = targets.logprobs_N, self.settings
        if logprobs_N is None:
            raise DataError("objective DPO needs the log-probabilities of its targets")
        rows = answers_of(targets, self.channels)
        if len(rows.lengths) % 2:
            raise DataError(
                f"{len(rows.lengths)} answers in a micro-batch can't be pairs; every pair needs learned tokens in both "
                "answers: build the blocks again"
            )
        if not len(rows.lengths):
            nothing_N = torch.zeros_like(logprobs_N)
            zero = nothing_N.sum()
            return Weights(nothing_N, nothing_N, num_targets=zero.double(), loss=zero, statistics=_statistics(None))
        lengths_2P = rows.lengths.reshape(-1, 2).T
        divisors_2P = lengths_2P if settings.length_normalised else np.ones_like(lengths_2P)
        ratios_2P = (rows.logprobs - rows.sums.get(REFERENCE, 0.0)).reshape(-1, 2).T / divisors_2P
        odds_slopes_2P = np.ones_like(ratios_2P)
        if settings.odds:
            # A certain answer (p = 1) has infinite odds; p rounded to below 1 keeps loss and slope finite.
            unlikely_2P = np.maximum(-np.expm1(ratios_2P), np.finfo(np.float32).tiny)
            ratios_2P, odds_slopes_2P = ratios_2P - np.log(unlikely_2P), 1 / unlikely_2P
        shift = np.array([[settings.margin / settings.beta], [0.0]])
        losses_P, slopes_2P = self._losses(ratios_2P - shift, lengths_2P)
        slopes_2P = slopes_2P * odds_slopes_2P / divisors_2P
        chosen_logps_P = rows.logprobs[0::2]
        chosen_lengths_P = lengths_2P[0]
        if self.rules.feedback_compat == "trl":
            # DIFFERS: phf-ray takes the mean of each chosen answer's tokens; TRL that of all in the micro-batch.
            chosen_lengths_P = np.full_like(chosen_lengths_P, chosen_lengths_P.mean())
        losses_P = losses_P - settings.sft_weight * chosen_logps_P / chosen_lengths_P
        slopes_2P[0] -= settings.sft_weight / chosen_lengths_P
        weights_N = rows.spread(slopes_2P.T.reshape(-1), targets)
        figures = _Figures(losses_P, settings.beta * ratios_2P, rows.logprobs.reshape(-1, 2).T)
        return Weights(
            weights_N,
            torch.zeros_like(weights_N),
            num_targets=torch.tensor(float(len(losses_P)), dtype=torch.float64, device=weights_N.device),
            loss=torch.tensor(losses_P.sum(), dtype=weights_N.dtype, device=weights_N.device),
            statistics={name: value.to(weights_N.device) for name, value in _statistics(figures).items()},
        )

    def _losses(self, ratios_2P: Floats, lengths_2P: Floats) -> tuple[Floats, Floats]:
        settings = self.settings
        losses_P, slopes_2P = np.zeros(ratios_2P.shape[1]), np.zeros_like(ratios_2P)
        for loss_type, weight in settings.losses.items():
            part = preference_loss(
                loss_type,
                ratios_2P[0],
                ratios_2P[1],
                beta=settings.beta,
                label_smoothing=settings.label_smoothing,
                chosen_lengths=lengths_2P[0],
                rejected_lengths=lengths_2P[1],
            )
            losses_P += weight * part.loss
            slopes_2P += weight * np.stack([part.chosen_slope, part.rejected_slope])
        return losses_P, slopes_2P

    def _summarize(self, total: Mapping[str, float], _num_valid: float, /) -> dict[str, float]:
        num_pairs = total["sum/num_pairs"]
        return {name: ratio(total[f"sum/{name}"], num_pairs) for name in _NAMES}


class _Figures(NamedTuple):
    losses_P: Floats
    rewards_2P: Floats
    logprobs_2P: Floats


_NAMES = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


def _statistics(figures: _Figures | None) -> Statistics:
    if figures is None:
        sums = dict.fromkeys((*_NAMES, "num_pairs"), 0.0)
    else:
        (chosen, rejected), (chosen_logps, rejected_logps) = figures.rewards_2P, figures.logprobs_2P
        arrays = (chosen, rejected, chosen > rejected, chosen - rejected, chosen_logps, rejected_logps)
        sums = {name: float(values.sum()) for name, values in zip(_NAMES, arrays, strict=True)}
        sums["num_pairs"] = float(len(chosen))
    return {f"sum/{name}": torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}
