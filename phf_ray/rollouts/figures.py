"""The figures of one round, computed from its rows alone: rewards, KL, length, and signs of degenerate text.

Higher rewards are better. What failed or was never drawn is counted by its reason and enters no mean; a figure that
can't be computed is None. Means over answers have intervals in which the answers to one prompt are one draw. KL is k1,
the sum of log p - log q over the tokens of an answer: unbiased, so it can be negative in one round.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from phf_ray.measures.clusters import ClusteredMean, ClusterSums, cluster_sums, clustered_mean
from phf_ray.measures.ngrams import NGramStats
from phf_ray.measures.texts import Repetition
from phf_ray.objectives.kl import kl_estimate

_SAME_POLICY = 1e-4
"""Log-probabilities of one policy, computed twice, differ by less than this per token."""


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """An answer of a round, as it is stored."""

    prompt_id: str
    sample: int
    prompt: str
    completion: str | None
    """None: it could not be drawn; `error` says why."""
    num_tokens: int
    """With the end of text, if the answer ended."""
    finish_reason: str | None
    """`stop`: it ended by itself."""
    weights: str
    """Of the policy that wrote it."""
    reward: float | None
    """Weighted sum, with penalties."""
    rewards: Mapping[str, float | None]
    """By the rewards' names."""
    gold: float | None
    error: str | None
    policy: Sequence[float] | None
    """Log-probability of each token."""
    reference: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class RoundFigures:
    round: int
    weights: str
    """Of the policy that wrote the answers."""
    num_answers: int
    prompt_ids: tuple[str, ...] = field(repr=False)
    """In their order."""
    num_drawn: int
    failures: Mapping[str, int]
    """Kind of the reason (its text before the colon) -> answers."""

    reward: ClusteredMean | None
    rewards: Mapping[str, ClusteredMean | None]
    gold: ClusteredMean | None
    num_without_reward: int
    num_without_gold: int
    """0 if nothing in the round has a gold reward."""
    reward_std: float | None
    """Mean over prompts of the standard deviation (ddof 1) of their rewards."""
    num_groups: int
    """Prompts with two known rewards or more."""
    constant_groups: float | None
    """Share of them whose rewards are all alike: they teach nothing."""

    kl: ClusteredMean | None
    """k1 in nats per answer."""
    kl_per_token: float | None
    kl_k3: float | None
    """k3 in nats per answer."""
    num_without_kl: int
    is_reference: bool | None
    """Whether the policy is the reference: then rewards and gold are the reference's. None without KL."""
    entropy: float | None
    """-log p, the estimate of the entropy in nats per answer."""
    entropy_per_token: float | None

    num_tokens: ClusteredMean | None
    """Tokens per answer."""
    num_chars: ClusteredMean | None
    token_range: tuple[int, int] | None
    distinct_2: float | None
    """Mean over answers of distinct / all pairs of words."""
    distinct_2_corpus: float | None
    """Distinct / all pairs of words of the round together."""
    duplicates: float | None
    """Share of answers that repeat an earlier one."""
    truncated: float | None
    """Share of answers that did not end."""
    empty: float | None
    """Share of answers without a word."""

    weighed: Mapping[str, float]
    """What the algorithm said of the round."""
    reward_by_prompt: ClusterSums = field(repr=False)
    gold_by_prompt: ClusterSums = field(repr=False)

    @property
    def num_prompts(self) -> int:
        return len(self.prompt_ids)


def round_figures(
    round_: int, rows: Sequence[RolloutRow], *, weighed: Mapping[str, float] | None = None
) -> RoundFigures:
    """Return the figures of a round. `rows`: all its rows, ordered by prompt and sample."""
    drawn = [row for row in rows if row.completion is not None]
    texts = [row.completion or "" for row in drawn]
    prompts = [row.prompt_id for row in rows]
    reward_by_prompt = cluster_sums(prompts, [row.reward for row in rows])
    gold_by_prompt = cluster_sums(prompts, [row.gold for row in rows])
    bigrams, repetition = NGramStats(2)(texts), Repetition()(texts)
    tokens = [row.num_tokens for row in drawn]
    return RoundFigures(
        round=round_,
        weights=", ".join(dict.fromkeys(row.weights for row in rows)),
        num_answers=len(rows),
        prompt_ids=tuple(dict.fromkeys(prompts)),
        num_drawn=len(drawn),
        failures=_failures(rows),
        reward=clustered_mean(reward_by_prompt),
        rewards={
            name: clustered_mean(cluster_sums(prompts, [row.rewards.get(name) for row in rows]))
            for name in dict.fromkeys(name for row in rows for name in row.rewards)
        },
        gold=clustered_mean(gold_by_prompt),
        num_without_reward=sum(row.reward is None for row in rows),
        num_without_gold=sum(row.gold is None for row in rows) if gold_by_prompt else 0,
        **_group_figures(rows),
        **_kl_figures(drawn),
        num_tokens=_mean_of(drawn, tokens),
        num_chars=_mean_of(drawn, [len(text) for text in texts]),
        token_range=(min(tokens), max(tokens)) if tokens else None,
        distinct_2=bigrams["distinct-2-grams"],
        distinct_2_corpus=bigrams["distinct-2-grams_corpus"],
        duplicates=repetition["duplicates"],
        truncated=_share([row.finish_reason != "stop" for row in drawn]),
        empty=repetition["empty"],
        weighed=dict(weighed or {}),
        reward_by_prompt=reward_by_prompt,
        gold_by_prompt=gold_by_prompt,
    )


def _failures(rows: Sequence[RolloutRow]) -> dict[str, int]:
    reasons = [row.error or "no reason given" for row in rows if row.error or row.reward is None]
    return dict(Counter(reason.partition(":")[0] for reason in reasons).most_common())


def _group_figures(rows: Sequence[RolloutRow]) -> dict[str, Any]:
    groups = [
        rewards
        for _, mine in groupby(rows, key=lambda row: row.prompt_id)
        if len(rewards := [row.reward for row in mine if row.reward is not None]) > 1
    ]
    return {
        "num_groups": len(groups),
        "constant_groups": _share([min(rewards) == max(rewards) for rewards in groups]),
        "reward_std": math.fsum(float(np.std(rewards, ddof=1)) for rewards in groups) / len(groups) if groups else None,
    }


def _kl_figures(drawn: Sequence[RolloutRow]) -> dict[str, Any]:
    """An answer whose KL is not finite has none; it is counted, unless the whole round has no reference."""
    spoken = [row for row in drawn if row.policy is not None and np.isfinite(row.policy).all()]
    entropies = [-math.fsum(row.policy or ()) for row in spoken]
    compared = [row for row in spoken if row.reference is not None and np.isfinite(row.reference).all()]
    ratios = [np.asarray(row.policy, np.float64) - np.asarray(row.reference, np.float64) for row in compared]
    kl = _mean_of(compared, [float(kl_estimate(ratio_T, "k1").sum()) for ratio_T in ratios])
    num_tokens = sum(len(ratio_T) for ratio_T in ratios)
    has_reference = any(row.reference is not None for row in drawn)
    k3 = [float(kl_estimate(ratio_T, "k3").sum()) for ratio_T in ratios]
    return {
        "kl": kl,
        "kl_per_token": kl.mean * kl.num / num_tokens if kl is not None and num_tokens else None,
        "kl_k3": math.fsum(k3) / len(k3) if k3 else None,
        "num_without_kl": len(drawn) - len(compared) if has_reference else 0,
        "is_reference": all(np.abs(ratio_T).max(initial=0.0) < _SAME_POLICY for ratio_T in ratios) if ratios else None,
        "entropy": math.fsum(entropies) / len(entropies) if entropies else None,
        "entropy_per_token": _per_token(entropies, spoken),
    }


def _per_token(sums: Sequence[float], rows: Sequence[RolloutRow]) -> float | None:
    num_tokens = sum(len(row.policy or ()) for row in rows)
    return math.fsum(sums) / num_tokens if num_tokens else None


def _mean_of(rows: Sequence[RolloutRow], values: Sequence[float]) -> ClusteredMean | None:
    return clustered_mean(cluster_sums([row.prompt_id for row in rows], values))


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
