"""Figures of a reward model on comparisons. The names are those of held-out evaluation in training.

Accuracy counts comparisons, and one with several answers is right if all better answers beat all worse ones. The other
figures count pairs of a better and a worse answer. Lengths are characters. A figure without data is None.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from phf_ray.evaluation.rewards.judged import JudgedItem
from phf_ray.generation.chat.prompts import prompt_text
from phf_ray.measures.calibration import calibration_error
from phf_ray.measures.intervals import Interval
from phf_ray.measures.numbers import Floats
from phf_ray.measures.win_rates import win_rate

NUM_BINS = 10
"""Bins of the probability that the model gives to the answer that it prefers, from .5 to 1, as in training."""


@dataclass(frozen=True, slots=True)
class RewardFigures:
    num_judged: int
    num_failed: int
    accuracy: float | None
    interval: Interval | None
    """95%; comparisons of one prompt count as one draw. None if all comparisons say the same."""
    num_equal: int
    """Comparisons whose highest rejected reward equals the lowest chosen one."""
    margin: float | None
    """Mean of chosen reward - rejected reward."""
    calibration_error: float | None
    accuracy_chosen_longer: float | None
    accuracy_chosen_shorter: float | None
    accuracy_of_longer: float | None
    """What preferring the longer answer would reach; equal lengths count half."""


def reward_figures(judged: Sequence[JudgedItem]) -> RewardFigures:
    usable = [one for one in judged if one.error is None]
    rights = [2.0 if one.is_right else 1.0 for one in usable]
    rate = win_rate(rights, clusters=[prompt_text(one.item.prompt) for one in usable])
    percent = rate.interval()
    pairs = [pair for one in usable for pair in _pairs(one)]
    margins_P = np.array([margin for margin, _ in pairs])
    lengths_P = np.array([longer for _, longer in pairs])
    right_P = (margins_P > 0).astype(np.float64)
    return RewardFigures(
        num_judged=len(usable),
        num_failed=len(judged) - len(usable),
        accuracy=None if rate.win_rate is None else rate.win_rate / 100,
        interval=None if percent is None else Interval(percent.low / 100, percent.high / 100),
        num_equal=sum(min(one.chosen) == max(one.rejected) for one in usable),
        margin=_mean(margins_P),
        calibration_error=_calibration_error(margins_P),
        accuracy_chosen_longer=_mean(right_P[lengths_P > 0]),
        accuracy_chosen_shorter=_mean(right_P[lengths_P < 0]),
        accuracy_of_longer=_mean((np.sign(lengths_P) + 1) / 2),
    )


def report_of(judged: Sequence[JudgedItem]) -> dict[str, object]:
    """Return the figures of all comparisons, of each subset, and the mean over the subsets, ready for JSON."""
    subsets: dict[str, list[JudgedItem]] = {}
    for one in judged:
        if one.item.subset is not None:
            subsets.setdefault(one.item.subset, []).append(one)
    figures = {name: reward_figures(part) for name, part in sorted(subsets.items())}
    found = [each.accuracy for each in figures.values() if each.accuracy is not None]
    return {
        "all": asdict(reward_figures(judged)),
        "subsets": {name: asdict(each) for name, each in figures.items()},
        "mean_of_subsets": _mean(np.array(found)),
        "failures": dict(Counter(str(one.error).partition(":")[0] for one in judged if one.error is not None)),
    }


def _pairs(judged: JudgedItem) -> list[tuple[float, int]]:
    """Return margin and difference in length of each pair of a better and a worse answer."""
    return [
        (reward - other, len(better) - len(worse))
        for reward, better in zip(judged.chosen, judged.item.chosen, strict=True)
        for other, worse in zip(judged.rejected, judged.item.rejected, strict=True)
    ]


def _calibration_error(margins_P: Floats) -> float | None:
    confidence_P = 1 / (1 + np.exp(-np.abs(margins_P)))
    bins_P = np.clip(((confidence_P - 0.5) * 2 * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    sums, rights = (
        np.bincount(bins_P, weights=weights_P, minlength=NUM_BINS) for weights_P in (confidence_P, margins_P > 0)
    )
    return calibration_error(sums, rights, num_judged=len(margins_P))


def _mean(values: Floats) -> float | None:
    return float(np.mean(values)) if len(values) else None
