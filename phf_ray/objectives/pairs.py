"""Losses of a pair of answers, with their slopes. No torch: numbers in, numbers out.

An objective multiplies the slopes with the gradients of the answers' log-probabilities, so a loss that changes here
changes training.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phf_ray.errors import ConfigError, DataError

Floats = NDArray[np.float64]


class PairLoss(NamedTuple):
    loss: Floats
    chosen_slope: Floats
    """d loss / d chosen"""
    rejected_slope: Floats


class _Pairs(NamedTuple):
    chosen: Floats
    rejected: Floats
    beta: float
    smoothing: float

    @property
    def margin(self) -> Floats:
        return self.beta * (self.chosen - self.rejected)


def preference_loss(  # noqa: PLR0913 - the numbers of one pair
    loss_type: str,
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    chosen_lengths: ArrayLike | None = None,
    rejected_lengths: ArrayLike | None = None,
) -> PairLoss:
    """Return the loss of each pair and its slopes, all of shape (pairs,).

    chosen, rejected: sums over an answer's tokens of (policy log-probability - reference log-probability), in nats.
    chosen_lengths, rejected_lengths: tokens of the answers; `ipo`, which divides by them, needs them.

    `sigmoid` is DPO (Rafailov et al. 2023, Eq. 7; with label_smoothing the conservative one of Mitchell 2023), `robust`
    Chowdhury et al. 2024, `hinge` SLiC-HF (Zhao et al. 2023), `ipo` and `ipo_sum` Azar et al. 2023 (Eq. 17) on means
    per token and on sums, `exo_pair` Ji et al. 2024 (Eq. 16), `nca_pair` Chen et al. 2024, `bco_pair` Jung et al. 2024
    without its moving mean, `sppo_hard` Wu et al. 2024, `apo_zero` and `apo_down` D'Oosterlinck et al. 2024 (Eq. 7, 8).

    Raises ConfigError for settings that have no meaning, DataError for numbers that are not pairs.
    """
    check_settings(loss_type, beta=beta, label_smoothing=label_smoothing)
    pairs = _Pairs(_pairs(chosen, "chosen"), _pairs(rejected, "rejected"), float(beta), float(label_smoothing))
    if pairs.chosen.shape != pairs.rejected.shape:
        raise DataError(f"{len(pairs.chosen)} chosen and {len(pairs.rejected)} rejected answers; pairs need as many")
    if loss_type != "ipo":
        return _LOSSES[loss_type](pairs)
    lengths = _lengths(chosen_lengths, pairs.chosen), _lengths(rejected_lengths, pairs.rejected)
    means = pairs._replace(chosen=pairs.chosen / lengths[0], rejected=pairs.rejected / lengths[1])
    loss, chosen_slope, rejected_slope = _ipo(means)
    return PairLoss(loss, chosen_slope / lengths[0], rejected_slope / lengths[1])


def check_settings(loss_type: str, *, beta: float, label_smoothing: float) -> None:
    if loss_type == "aot":
        raise ConfigError("loss_type: aot sorts the answers of a batch, so its loss depends on the batch; use sigmoid")
    if loss_type not in LOSS_TYPES:
        raise ConfigError(f"loss_type: {loss_type!r} is unknown; known are {', '.join(LOSS_TYPES)}")
    if not (beta > 0 and np.isfinite(beta)):
        raise ConfigError(f"beta: {beta} must be a number above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"label_smoothing: {label_smoothing} must be at least 0 and below 0.5: it is the share of labels that are "
            "wrong"
        )
    if loss_type == "exo_pair" and label_smoothing == 0:
        raise ConfigError("loss_type: exo_pair is infinite at label_smoothing: 0; use a small one, such as 0.001")


def _pairs(values: ArrayLike, name: str) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise DataError(f"{name} has the shape {numbers.shape}; it must be (pairs,)")
    return numbers


def _lengths(values: ArrayLike | None, like: Floats) -> Floats:
    if values is None:
        raise ConfigError("loss_type: ipo needs chosen_lengths and rejected_lengths; ipo_sum needs none")
    lengths = _pairs(values, "lengths")
    if lengths.shape != like.shape or not (lengths > 0).all():
        raise DataError(f"lengths {lengths.tolist()} of {len(like)} answers; each needs one of at least 1 token")
    return lengths


def _sigmoid(x: Floats) -> Floats:
    # exp of a negative number alone never overflows.
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _softplus(x: Floats) -> Floats:
    """-log sigmoid(-x)"""
    return np.logaddexp(0.0, x)


def _bend(x: Floats) -> Floats:
    """The slope of the sigmoid."""
    return _sigmoid(x) * _sigmoid(-x)


def _of_margin(pairs: _Pairs, loss: Floats, slope: Floats) -> PairLoss:
    return PairLoss(loss, pairs.beta * slope, -pairs.beta * slope)


def _sigmoid_loss(pairs: _Pairs) -> PairLoss:
    m, e = pairs.margin, pairs.smoothing
    return _of_margin(pairs, (1 - e) * _softplus(-m) + e * _softplus(m), e * _sigmoid(m) - (1 - e) * _sigmoid(-m))


def _robust(pairs: _Pairs) -> PairLoss:
    m, e = pairs.margin, pairs.smoothing
    loss = ((1 - e) * _softplus(-m) - e * _softplus(m)) / (1 - 2 * e)
    return _of_margin(pairs, loss, (-(1 - e) * _sigmoid(-m) - e * _sigmoid(m)) / (1 - 2 * e))


def _hinge(pairs: _Pairs) -> PairLoss:
    missing = 1 - pairs.margin
    return _of_margin(pairs, np.maximum(missing, 0), np.where(missing > 0, -1.0, 0.0))


def _ipo(pairs: _Pairs) -> PairLoss:
    distance = pairs.chosen - pairs.rejected - 1 / (2 * pairs.beta)
    return PairLoss(distance**2, 2 * distance, -2 * distance)


def _exo_pair(pairs: _Pairs) -> PairLoss:
    m, e = pairs.margin, pairs.smoothing
    log_win, log_lose = -_softplus(-m), -_softplus(m)
    loss = np.exp(log_win) * (log_win - np.log1p(-e)) + np.exp(log_lose) * (log_lose - np.log(e))
    return _of_margin(pairs, loss, _bend(m) * (m - np.log1p(-e) + np.log(e)))


def _nca_pair(pairs: _Pairs) -> PairLoss:
    c, r = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    loss = _softplus(-c) + 0.5 * _softplus(c) + 0.5 * _softplus(r)
    return PairLoss(loss, pairs.beta * (0.5 * _sigmoid(c) - _sigmoid(-c)), pairs.beta * 0.5 * _sigmoid(r))


def _bco_pair(pairs: _Pairs) -> PairLoss:
    c, r = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return PairLoss(_softplus(-c) + _softplus(r), -pairs.beta * _sigmoid(-c), pairs.beta * _sigmoid(r))


def _sppo_hard(pairs: _Pairs) -> PairLoss:
    half = 0.5 / pairs.beta
    c, r = pairs.chosen - half, pairs.rejected + half
    return PairLoss(c**2 + r**2, 2 * c, 2 * r)


def _apo_zero(pairs: _Pairs) -> PairLoss:
    c, r = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return PairLoss(_sigmoid(-c) + _sigmoid(r), -pairs.beta * _bend(c), pairs.beta * _bend(r))


def _apo_down(pairs: _Pairs) -> PairLoss:
    c, m = pairs.beta * pairs.chosen, pairs.margin
    return PairLoss(_sigmoid(c) + _sigmoid(-m), pairs.beta * (_bend(c) - _bend(m)), pairs.beta * _bend(m))


_LOSSES: dict[str, Callable[[_Pairs], PairLoss]] = {
    "sigmoid": _sigmoid_loss,
    "robust": _robust,
    "hinge": _hinge,
    "ipo_sum": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
}
LOSS_TYPES = (*_LOSSES, "ipo")
