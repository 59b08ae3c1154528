"""Logistic regression by maximum likelihood, for targets between 0 and 1. It is not regularised."""

import numpy as np
from scipy.optimize import linprog

from phf_ray.measures.numbers import Floats

_MAX_STEPS = 100
_IS_SMALL = 1e-9
"""Newton's steps square their error: after a step of this size, what is left is rounding."""


def fit_logistic(design_NK: Floats, targets_N: Floats, weights_N: Floats) -> Floats | None:
    """Return the coefficients, shape (K,), of target ~ sigmoid(design @ coefficients). No intercept is added.

    None if there is no single best fit: columns depend on each other, or the targets can be separated.
    """
    coefficients_K = np.zeros(design_NK.shape[1])
    loss = _loss(design_NK @ coefficients_K, targets_N, weights_N)
    for _ in range(_MAX_STEPS):
        mean_N = sigmoid(design_NK @ coefficients_K)
        gradient_K = design_NK.T @ (weights_N * (mean_N - targets_N))
        hessian_KK = design_NK.T @ ((weights_N * mean_N * (1 - mean_N))[:, None] * design_NK)
        try:
            step_K = np.linalg.solve(hessian_KK, gradient_K)
        except np.linalg.LinAlgError:
            return None
        # A whole step may overshoot far from the optimum, where the loss is nearly linear.
        scale = 1.0
        while _loss(design_NK @ (coefficients_K - scale * step_K), targets_N, weights_N) > loss * (1 + 1e-12):
            scale /= 2
        coefficients_K = coefficients_K - scale * step_K
        loss = _loss(design_NK @ coefficients_K, targets_N, weights_N)
        if np.abs(step_K).max(initial=0.0) < _IS_SMALL:
            return coefficients_K
    return None


def are_separable(design_NK: Floats, targets_N: Floats) -> bool:
    """Return whether some direction has no target on its wrong side, so that coefficients grow without end along it.

    Targets of 1 must lie at or above zero along the direction, targets of 0 at or below, those between on zero, and
    one target off zero (Albert and Anderson 1984: complete and quasi-complete separation).
    """
    is_sure_N = (targets_N == 0) | (targets_N == 1)
    signed_NK = design_NK[is_sure_N] * np.where(targets_N[is_sure_N] == 1, 1.0, -1.0)[:, None]
    between_NK = design_NK[~is_sure_N]
    if not len(signed_NK):
        return False
    found = linprog(
        -signed_NK.mean(axis=0),
        A_ub=-signed_NK,
        b_ub=np.zeros(len(signed_NK)),
        A_eq=between_NK if len(between_NK) else None,
        b_eq=np.zeros(len(between_NK)) if len(between_NK) else None,
        bounds=(-1, 1),
    )
    # The solver takes up to 1e-7 on the wrong side for zero.
    return bool(-found.fun > 1e-6)


def sigmoid(x_N: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -x_N))


def _loss(logits_N: Floats, targets_N: Floats, weights_N: Floats) -> float:
    return float(weights_N @ (np.logaddexp(0, logits_N) - targets_N * logits_N))
