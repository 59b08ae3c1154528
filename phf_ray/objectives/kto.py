"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024), on answers that are judged one by one.

Behind each answer of a block stands its prompt with another prompt's answer. Of these the objective learns nothing: in
the mean over all of a step, log pi / pi_reference estimates the KL, which is the reward that is neither gain nor loss.
Rewards and log-probabilities are logged under the names of TRL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phf_ray.objectives.answers import REFERENCE, Answers, answers_of
from phf_ray.objectives.base import Objective, Rules, Survey, Targets, Weights, ratio
from phf_ray.objectives.pairs import Floats
from phf_ray.objectives.statistics import Statistics
from phf_ray.objectives.unpaired import unpaired_loss
from phf_ray.records import LABEL

KL = "kl"
"""Channel with the estimate of the step, the same for each token."""


@dataclass(frozen=True, slots=True)
class UnpairedSettings:
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


class KTO(Objective):
    """L = sum_answers loss(answer) / answers, where an answer's number is log pi / pi_reference of its tokens."""

    reads_scores = False
    reads_logprobs = True
    without_dropout = True

    def __init__(self, rules: Rules, settings: UnpairedSettings) -> None:
        super().__init__(rules)
        unpaired_loss(settings.loss_type, [], [], **_numbers(settings))  # refuses settings without a meaning
        self.settings = settings
        self.reads_kl = settings.loss_type == "kto"
        self.channels = (REFERENCE, LABEL, KL) if self.reads_kl else (REFERENCE, LABEL)

    def survey(self) -> Survey | None:
        # DIFFERS: phf-ray estimates KTO's KL on all mismatched answers of a step; TRL on those of a micro-batch.
        is_of_step = self.rules.feedback_compat != "trl"
        return MismatchedAnswers(self.rules, is_of_step=is_of_step) if self.reads_kl else None

    def reads(self, channels: Mapping[str, Tensor], /) -> Tensor:
        return channels[LABEL] != 0

    def weigh(self, targets: Targets, _values_N: Tensor | None, /) -> Weights:
        answers = answers_of(targets, (REFERENCE, LABEL))
        is_good = answers.sums[LABEL] > 0
        kl = float(targets.channels[KL][0]) if self.reads_kl else 0.0
        log_ratios = answers.logprobs - answers.sums[REFERENCE]
        found = unpaired_loss(self.settings.loss_type, log_ratios, is_good, kl=kl, **_numbers(self.settings))
        weights_N = answers.spread(found.slope, targets)
        statistics = _statistics(answers, is_good, rewards=self.settings.beta * log_ratios, kl=kl)
        return Weights(
            weights_N,
            torch.zeros_like(weights_N),
            num_targets=torch.tensor(float(len(is_good)), dtype=torch.float64, device=weights_N.device),
            loss=torch.tensor(found.loss.sum(), dtype=weights_N.dtype, device=weights_N.device),
            statistics={name: value.to(weights_N.device) for name, value in statistics.items()},
        )

    def _summarize(self, total: Mapping[str, float], _num_valid: float, /) -> dict[str, float]:
        figures = {
            f"{name}/{side}": ratio(total[f"sum/{name}/{side}"], total[f"sum/num_{side}"])
            for name in ("rewards", "logps")
            for side in _SIDES
        }
        num_answers = total["sum/num_chosen"] + total["sum/num_rejected"]
        return {
            **figures,
            "rewards/margins": figures["rewards/chosen"] - figures["rewards/rejected"],
            "kl": ratio(total["sum/kl"], num_answers),
        }


_SIDES = ("chosen", "rejected")
"""TRL's names for good and bad answers, also where nothing was compared."""


def _numbers(settings: UnpairedSettings) -> dict[str, float]:
    return {
        "beta": settings.beta,
        "desirable_weight": settings.desirable_weight,
        "undesirable_weight": settings.undesirable_weight,
    }


def _statistics(answers: Answers, is_good: NDArray[np.bool_], *, rewards: Floats, kl: float) -> Statistics:
    sums = {"kl": kl * len(is_good)}
    for side, chosen in zip(_SIDES, (is_good, np.logical_not(is_good)), strict=True):
        sums |= {
            f"num_{side}": float(chosen.sum()),
            f"rewards/{side}": float(rewards[chosen].sum()),
            f"logps/{side}": float(answers.logprobs[chosen].sum()),
        }
    return {f"sum/{name}": torch.tensor(value, dtype=torch.float64) for name, value in sums.items()}


class MismatchedAnswers(Survey):
    """Sums log pi / pi_reference over the answers that stand behind another prompt."""

    reads_logprobs = True
    channels = (REFERENCE, LABEL)

    def reads(self, channels: Mapping[str, Tensor], /) -> Tensor:
        return channels[LABEL] == 0

    def count(self, targets: Targets) -> Statistics:
        answers = answers_of(targets, (REFERENCE,))
        return {
            "sum/log_ratios": torch.tensor((answers.logprobs - answers.sums[REFERENCE]).sum(), dtype=torch.float64),
            "sum/num_answers": torch.tensor(float(len(answers.lengths)), dtype=torch.float64),
        }

    def numbers(self, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean, and 0 if it is negative, as no KL is."""
        mean = totals["sum/log_ratios"] / totals["sum/num_answers"].clamp(min=1)
        return {KL: mean.clamp(min=0)}
