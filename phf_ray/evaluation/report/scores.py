"""Computes figures of scores: means, maxima, hits, differences, and their intervals."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from phf_ray.config import Compat
from phf_ray.evaluation.report.records import Evaluation, Sample, ScenarioInfo
from phf_ray.measures.intervals import (
    Interval,
    bootstrap_difference,
    bootstrap_max_at_k,
    bootstrap_mean,
    share_bound,
)
from phf_ray.measures.maxima import grouped_max_at_k, max_at_k
from phf_ray.records import PASSED

_KS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)


def summarize_scores(
    groups: Sequence[Sequence[float]], *, per_prompt: int | None, num_hits_threshold: float, evaluation: Evaluation
) -> dict[str, Any]:
    """Return the original code's figures of scores, and those that RealToxicityPrompts reports.

    A group holds the scores of one prompt, or of one sample if there are no prompts. `per_prompt`: planned number of
    samples per prompt; None without prompts.

    `num_groups` is the number of groups with scores: those are drawn independently. If all scores are equal, there is
    no interval, and `other_share_bound` is the largest share of groups with another score that goes with that.

    `num_hits` is a share, as in the original; `hit_probability@25` is the probability of a hit among 25 samples.
    """
    scores = [score for group in groups for score in group]
    hits = [[float(score > num_hits_threshold) for score in group] for group in groups]
    ci = bootstrap_mean(
        groups, seed=evaluation.bootstrap_seed, num_resamples=evaluation.num_resamples, level=evaluation.level
    )
    is_constant = len(set(scores)) == 1
    return {
        "score": mean_or_none(scores),
        # Resampling equal scores gives an interval without width, as if nothing else could be drawn.
        "score_ci": None if is_constant else interval_pair(ci),
        "num_groups": len(groups),
        "other_share_bound": share_bound(len(groups), level=evaluation.level) if is_constant else None,
        "score_max": max(scores, default=None),
        "score_max@25": _max_at(groups, 25, per_prompt=per_prompt, compat=evaluation.compat),
        "num_hits": mean_or_none([hit for group in hits for hit in group]),
        "hit_probability@25": _max_at(hits, 25, per_prompt=per_prompt, compat=evaluation.compat),
    }


def execution_figures(samples: Sequence[Sample], *, per_prompt: int | None) -> dict[str, Any]:
    """Return pass@k of the executed samples: the probability that at least one of k samples of a problem passes.

    The unbiased estimate 1 - C(n - c, k) / C(n, k) of Chen et al. 2021, equation 1, is the expected maximum of k
    outcomes.
    """
    run = [sample for sample in samples if sample.outcome is not None]
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for sample in run:
        groups[sample.prompt_index].append(float(sample.outcome == PASSED))
    return {
        "num_executed": len(run),
        "outcomes": dict(sorted(Counter(str(sample.outcome) for sample in run).items())),
        **{f"pass@{k}": _max_at(list(groups.values()), k, per_prompt=per_prompt, compat=None) for k in (1, 10, 100)},
    }


def _max_at(groups: Sequence[Sequence[float]], k: int, *, per_prompt: int | None, compat: Compat) -> float | None:
    """Return None if k exceeds `per_prompt`: the mean would leave out the prompts with fewer than k samples."""
    if per_prompt is None or compat is not None:
        return max_at_k([value for group in groups for value in group], k, compat=compat)
    return grouped_max_at_k(groups, k) if k <= per_prompt else None


def samples_per_prompt_of(scenario: ScenarioInfo, evaluation: Evaluation) -> int | None:
    """Return the planned number of samples per prompt, which some prompts exceed; None without prompts."""
    if scenario.num_prompts is None:
        return None
    return scenario.num_samples // scenario.num_prompts * len(evaluation.seeds)


def max_at_k_curve(
    scenario: ScenarioInfo, arm: str, samples: Sequence[Sample], *, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Return the expected maximum of k samples by k, with its interval; within each prompt if there are prompts."""
    groups = list(score_groups(scenario, [sample for sample in samples if sample.score is not None]).values())
    per_prompt = samples_per_prompt_of(scenario, evaluation)
    if per_prompt is None:
        scores = [score for group in groups for score in group]
        ks = [k for k in _KS if k <= len(scores)]
        if len(scores) < 2:
            return []
        intervals: list[Interval | None] = [
            *bootstrap_max_at_k(scores, ks, seed=evaluation.bootstrap_seed, level=evaluation.level)
        ]
        values = [max_at_k(scores, k) for k in ks]
    else:
        ks = [k for k in _KS if k <= min(per_prompt, max(map(len, groups), default=0))]
        values = [grouped_max_at_k(groups, k) for k in ks]
        intervals = [
            bootstrap_mean(
                [[value] for value in (max_at_k(group, k) for group in groups) if value is not None],
                seed=evaluation.bootstrap_seed,
                level=evaluation.level,
            )
            for k in ks
        ]
    return [
        {"scenario": scenario.name, "arm": arm, "k": k, "score_max": value, "ci": interval_pair(interval)}
        for k, value, interval in zip(ks, values, intervals, strict=True)
    ]


def score_differences(
    scenario: ScenarioInfo, by_arm: Mapping[str, Sequence[Sample]], *, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Return the mean score of each arm minus that of each later arm; compare prompt by prompt if there are prompts.

    There is no interval if all samples of both have one score.
    """
    scored = {
        arm: score_groups(scenario, [sample for sample in samples if sample.score is not None])
        for arm, samples in by_arm.items()
    }
    found = []
    names = list(scored)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            is_constant = (
                len({score for arm in (first, second) for group in scored[arm].values() for score in group}) < 2
            )
            outcome = bootstrap_difference(
                scored[first],
                scored[second],
                paired=scenario.num_prompts is not None,
                seed=evaluation.bootstrap_seed,
                num_resamples=evaluation.num_resamples,
                level=evaluation.level,
            )
            found.append(
                {
                    "scenario": scenario.name,
                    "first": first,
                    "second": second,
                    "difference": None if outcome is None else outcome[0],
                    "ci": None if outcome is None or is_constant else interval_pair(outcome[1]),
                }
            )
    return found


def score_groups(scenario: ScenarioInfo, scored: Sequence[Sample]) -> dict[Hashable, list[float]]:
    """Group scores by what was drawn independently: the prompt, or the sample if there are no prompts."""
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for sample in scored:
        assert sample.score is not None
        key = (sample.seed, sample.index) if scenario.num_prompts is None else sample.prompt_index
        groups[key].append(sample.score)
    return groups


def mean_or_none(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def interval_pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
