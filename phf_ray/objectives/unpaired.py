"""Losses of answers that are judged one by one, with their slopes. No torch: numbers in, numbers out."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.pairs import Floats


class UnpairedLoss(NamedTuple):
    loss: Floats
    slope: Floats
    """d loss / d log-ratio"""


def unpaired_loss(  # noqa: PLR0913 - the numbers of one answer
    loss_type: Literal["kto", "apo_zero_unpaired"],
    log_ratios: ArrayLike,
    is_good: ArrayLike,
    *,
    kl: float = 0.0,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> UnpairedLoss:
    """Return the loss of each answer and its slope, both of shape (answers,).

    log_ratios: sums over an answer's tokens of (policy log-probability - reference log-probability), in nats.
    kl: z of `kto` (Ethayarajh et al. 2024, Eq. 7), the reward that is neither gain nor loss; a constant. The unpaired
    apo_zero (D'Oosterlinck et al. 2024) takes 0 for it.

    Raises ConfigError for settings that have no meaning, DataError for numbers that are no answers.
    """
    check = {"beta": beta, "desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    for name, value in check.items():
        if not (np.isfinite(value) and (value > 0 or (value == 0 and name != "beta"))):
            raise ConfigError(f"{name}: {value} must be a number {'above 0' if name == 'beta' else 'of at least 0'}")
    if loss_type not in UNPAIRED_LOSSES:
        raise ConfigError(f"loss_type: {loss_type!r} is unknown; known are {', '.join(UNPAIRED_LOSSES)}")
    ratios, good = np.asarray(log_ratios, np.float64), np.asarray(is_good, bool)
    if ratios.ndim != 1 or ratios.shape != good.shape:
        raise DataError(f"log_ratios of shape {ratios.shape} and labels of shape {good.shape}; both are (answers,)")
    side = np.where(good, 1.0, -1.0)
    weight = np.where(good, desirable_weight, undesirable_weight)
    gain = side * beta * (ratios - UNPAIRED_LOSSES[loss_type](kl))
    small = np.exp(-np.abs(gain))  # exp of a negative number alone never overflows
    value = np.where(gain >= 0, 1.0, small) / (1 + small)
    return UnpairedLoss(weight * (1 - value), -weight * side * beta * small / (1 + small) ** 2)


UNPAIRED_LOSSES: dict[str, Callable[[float], float]] = {"kto": lambda kl: kl, "apo_zero_unpaired": lambda _: 0.0}
"""loss_type -> the log-ratio that is neither gain nor loss, of the KL."""
