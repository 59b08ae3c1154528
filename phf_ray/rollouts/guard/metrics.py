"""The row of a round for metrics.jsonl and trackers, under AlpacaFarm's and TRL's names where they have one.

AlpacaFarm: `objective/{kl_sum_seq,kl_avg_seq,rewards,entropies}`. TRL: `objective/{kl,entropy,scores}`, `kl`, `reward`,
`rewards/<name>/mean`, `frac_reward_zero_std`, `entropy`, `completions/...`. Ours: `rollouts/...`.
"""

from phf_ray.measures.clusters import ClusteredMean
from phf_ray.rollouts.figures import RoundFigures


def metrics_row(figures: RoundFigures) -> dict[str, float]:
    """Return the figures of a round by name. What is not defined is left out; the algorithm's own figures come last."""
    kl, tokens = _mean(figures.kl), figures.num_tokens
    named: dict[str, float | None] = {
        # DIFFERS: `objective/kl_sum_seq` and `objective/kl_avg_seq` are k1, which can be negative, and a mean over
        # tokens; AlpacaFarm's cut each token's KL at 0, and its mean counts padding.
        "objective/kl_sum_seq": kl,
        "objective/kl_avg_seq": figures.kl_per_token,
        "objective/kl": kl,
        "kl": kl,
        "objective/rewards": _mean(figures.reward),
        "objective/scores": _mean(figures.reward),
        "reward": _mean(figures.reward),
        # Mean over tokens, as AlpacaFarm has it; TRL's is the sum of an answer.
        "objective/entropies": figures.entropy_per_token,
        "objective/entropy": figures.entropy,
        "entropy": figures.entropy_per_token,
        "frac_reward_zero_std": figures.constant_groups,
        "completions/mean_length": _mean(tokens),
        "completions/min_length": float(figures.token_range[0]) if figures.token_range else None,
        "completions/max_length": float(figures.token_range[1]) if figures.token_range else None,
        "completions/clipped_ratio": figures.truncated,
        "rollouts/round": float(figures.round),
        "rollouts/kl_k3": figures.kl_k3,
        "rollouts/mean_chars": _mean(figures.num_chars),
        "rollouts/distinct_2": figures.distinct_2,
        "rollouts/distinct_2_corpus": figures.distinct_2_corpus,
        "rollouts/duplicates": figures.duplicates,
        "rollouts/empty": figures.empty,
        "rollouts/group_reward_std": figures.reward_std,
        "rollouts/answers": float(figures.num_answers),
        "rollouts/failed": float(figures.num_without_reward),
        **{f"rewards/{name}/mean": _mean(found) for name, found in figures.rewards.items()},
        **_with_interval("rollouts/reward", figures.reward),
        **_with_interval("rollouts/gold", figures.gold),
    }
    if figures.gold is not None:
        named["rollouts/without_gold"] = float(figures.num_without_gold)
    return {**{name: value for name, value in named.items() if value is not None}, **figures.weighed}


def _mean(found: ClusteredMean | None) -> float | None:
    return None if found is None else found.mean


def _with_interval(name: str, found: ClusteredMean | None) -> dict[str, float | None]:
    if found is None:
        return {}
    interval = found.interval
    return {
        name: found.mean,
        f"{name}_low": None if interval is None else interval.low,
        f"{name}_high": None if interval is None else interval.high,
    }
