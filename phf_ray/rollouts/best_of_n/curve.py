"""The reward of the best of n over n, estimated from one set of N samples of each prompt, without bias.

The same samples serve for every n: the mean over all subsets of n (`measures.best_of_n_estimate`). Intervals resample
prompts. The KL of best-of-n from the model is bounded from above, not measured.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from phf_ray.measures import best_of_n_estimate, best_of_n_kl
from phf_ray.measures.intervals import bootstrap_mean, mean
from phf_ray.measures.numbers import Floats

LEVEL, NUM_RESAMPLES = 0.95, 2000


def curve_over_n(proxy_SN: ArrayLike, gold_SN: ArrayLike | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Return the curve as JSON. Rewards of N samples for each of S prompts, NaN where there is none.

    `gold_SN`: what the samples that the proxy picks are really worth; None: nobody knows.
    """
    proxy_SN = np.asarray(proxy_SN, dtype=np.float64)
    gold = None if gold_SN is None else np.asarray(gold_SN, dtype=np.float64)
    most = proxy_SN.shape[1]
    return {
        "num_prompts": len(proxy_SN),
        "samples_per_prompt": most,
        "level": LEVEL,
        "intervals": f"percentile bootstrap, {NUM_RESAMPLES} resamples of prompts",
        "kl": "upper bound, log n - (n - 1)/n in nats: the KL itself is lower the more samples are alike",
        "points": [
            {
                "n": n,
                "proxy": _estimated(proxy_SN, proxy_SN, n, seed),
                "gold": None if gold is None else _estimated(proxy_SN, gold, n, seed),
                "kl_upper_bound": best_of_n_kl(n),
            }
            for n in sizes(most)
        ],
    }


def sizes(most: int) -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12, 16, ... up to `most`, and `most` itself."""
    found, power = [1], 2
    while power <= most:
        found += [power, 3 * power // 2] if power > 1 else [power]
        power *= 2
    return sorted({size for size in found if size <= most} | {most})


def _estimated(proxy_SN: Floats, gold_SN: Floats, n: int, seed: int) -> dict[str, Any] | None:
    """Return the mean over prompts with its interval; None if no prompt has n samples with rewards."""
    each = [
        best_of_n_estimate(proxy_N[None], gold_N[None], n) for proxy_N, gold_N in zip(proxy_SN, gold_SN, strict=True)
    ]
    known = [one for one in each if one is not None]
    if not known:
        return None
    interval = bootstrap_mean([[one] for one in known], seed=seed, num_resamples=NUM_RESAMPLES, level=LEVEL)
    return {
        "mean": mean(known),
        "interval": None if interval is None else [interval.low, interval.high],
        "num_prompts": len(known),
    }


def table_lines(curve: dict[str, Any], *, only: Sequence[int] | None = None) -> list[str]:
    """Return the curve for a terminal."""
    return [
        f"n {point['n']:>4}: reward {_shown(point['proxy'])}"
        + ("" if point["gold"] is None else f", gold {_shown(point['gold'])}")
        + f", KL at most {point['kl_upper_bound']:.3f}"
        + _note(point, curve["num_prompts"])
        for point in curve["points"]
        if only is None or point["n"] in only
    ]


def _note(point: dict[str, Any], num_prompts: int) -> str:
    """Prompts that have fewer than n samples with rewards do not count, which may be a choice among prompts."""
    known = 0 if point["proxy"] is None else point["proxy"]["num_prompts"]
    return "" if known == num_prompts else f" ({known} of {num_prompts} prompts have {point['n']} rewards)"


def _shown(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    interval = estimate["interval"]
    return f"{estimate['mean']:.4g}" + ("" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]")
