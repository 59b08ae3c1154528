"""Best of n: the sample that a proxy reward likes best of n, its true reward, and how far it is from the policy."""

import math

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.errors import DataError
from phf_ray.measures.maxima import order_statistic_weights
from phf_ray.measures.numbers import Floats


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n in nats, an upper bound of the KL of best-of-n from the policy (arXiv 2401.01879).

    It is the KL itself if no two samples are alike; the fewer different texts the policy has, the smaller is the KL.
    """
    if n < 1:
        raise DataError(f"best of {n} is not defined; n must be at least 1")
    return math.log(n) - (n - 1) / n


def best_of_n_estimate(proxy_SN: ArrayLike, gold_SN: ArrayLike, n: int) -> float | None:
    """Return the mean gold reward of the sample of n that the proxy picks: the mean over all subsets of n, and prompts.

    proxy_SN, gold_SN: rewards (higher is better) of N samples for each of S prompts. n: at most N. Among samples that
    the proxy holds equal, each is picked as often. A sample that lacks either reward (NaN) counts as not drawn; prompts
    that are left with fewer than n samples do not count, and if none is left the result is None.
    """
    proxy_SN, gold_SN = np.asarray(proxy_SN, dtype=np.float64), np.asarray(gold_SN, dtype=np.float64)
    if proxy_SN.shape != gold_SN.shape or proxy_SN.ndim != 2:
        raise DataError(
            f"proxy rewards of shape {proxy_SN.shape}, gold rewards of shape {gold_SN.shape}; both need a row for each "
            "prompt and a column for each sample"
        )
    if not 1 <= n <= proxy_SN.shape[1]:
        raise DataError(f"best of {n} out of {proxy_SN.shape[1]} samples is not defined; draw at least {n} per prompt")
    if np.isinf(gold_SN).any():
        prompt, sample = np.argwhere(np.isinf(gold_SN))[0]
        raise DataError(f"the gold reward of prompt {prompt}, sample {sample} is infinite; write NaN if it has none")
    is_known_SN = ~np.isnan(proxy_SN) & ~np.isnan(gold_SN)
    estimates = [
        _estimate(proxy_N[is_known_N], gold_N[is_known_N], n)
        for proxy_N, gold_N, is_known_N in zip(proxy_SN, gold_SN, is_known_SN, strict=True)
        if is_known_N.sum() >= n
    ]
    return math.fsum(estimates) / len(estimates) if estimates else None


def _estimate(proxy_N: Floats, gold_N: Floats, n: int) -> float:
    values, rank_N, counts = np.unique(proxy_N, return_inverse=True, return_counts=True)
    weights_N = order_statistic_weights(len(proxy_N), n)
    # Equal samples share the weights of the places that they take together.
    shared = np.bincount(np.repeat(np.arange(len(values)), counts), weights=weights_N) / counts
    return float(gold_N @ shared[rank_N])
