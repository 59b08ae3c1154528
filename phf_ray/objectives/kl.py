"""Estimates of KL(p || q) from samples of p (Schulman 2020, "Approximating KL Divergence"), and their slopes."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import ConfigError
from phf_ray.measures.arrays import floats
from phf_ray.measures.numbers import Floats

KLEstimator = Literal["k1", "k2", "k3"]

_ESTIMATORS: dict[str, Callable[[Floats], Floats]] = {
    "k1": np.positive,
    "k2": lambda x: x**2 / 2,
    # e^-x - 1 + x, exact for small x.
    "k3": lambda x: np.expm1(-x) + x,
}
_SLOPES: dict[str, Callable[[Floats], Floats]] = {
    "k1": np.ones_like,
    "k2": np.positive,
    "k3": lambda x: -np.expm1(-x),
}


def kl_estimate(log_ratio: ArrayLike, kind: KLEstimator) -> Floats:
    """Return an estimate in nats for each x = log p - log q of a sample of p, in the shape of `log_ratio`.

    k1 = x is unbiased, and negative for some samples. k2 = x^2 / 2 is biased and never negative. k3 = e^-x - 1 + x is
    unbiased, never negative, and varies less. As losses they differ: the gradient of E k2 is that of the KL, that of k1
    is 0 in expectation, and that of k3 belongs to KL(q || p). k1 in the reward has the KL's gradient.
    """
    return _of(_ESTIMATORS, kind)(floats(log_ratio, "log_ratio"))


def kl_slope(log_ratio: ArrayLike, kind: KLEstimator) -> Floats:
    """Return d estimate / d log p, in the shape of `log_ratio`."""
    return _of(_SLOPES, kind)(floats(log_ratio, "log_ratio"))


def _of(functions: dict[str, Callable[[Floats], Floats]], kind: str) -> Callable[[Floats], Floats]:
    if kind not in functions:
        raise ConfigError(f"KL estimator {kind!r} is unknown; choose one of {sorted(functions)}")
    return functions[kind]
