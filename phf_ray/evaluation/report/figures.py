"""Computes the figures of a report, from samples alone.

Nothing in a report depends on the time or the machine, so two evaluations that drew the same samples write the same
files.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.evaluation.report.records import ArmInfo, Evaluation, Sample, ScenarioInfo
from phf_ray.evaluation.report.samples import SAMPLES, read_samples, sort_samples
from phf_ray.evaluation.report.scores import (
    execution_figures,
    interval_pair,
    max_at_k_curve,
    mean_or_none,
    samples_per_prompt_of,
    score_differences,
    score_groups,
    summarize_scores,
)
from phf_ray.evaluation.report.verdicts import draw_verdicts
from phf_ray.measures.build import build_metric
from phf_ray.measures.intervals import bootstrap_mean
from phf_ray.measures.metric import Measures, Metric
from phf_ray.measures.ngrams import NGramStats, count_ngrams
from phf_ray.measures.texts import Compilability, Length, Letters, Repetition

_CORPUS_NGRAMS = 5000
"""Corpus-level distinct-n uses this many n-grams, or as many as the arm with the fewest has."""


def build_report(samples: Sequence[Sample], evaluation: Evaluation) -> dict[str, Any]:
    """Return report.json's content: `table` (a row per scenario and arm), `differences` (pairs of arms), `verdicts`
    (a sentence per scenario and arm), `curves`."""
    cells = defaultdict(list)
    for sample in sort_samples(samples, evaluation):
        cells[sample.scenario, sample.arm].append(sample)
    table, differences, curves = [], [], []
    for scenario in evaluation.scenarios:
        by_arm = {arm.name: cells[scenario.name, arm.name] for arm in evaluation.arms}
        budgets = {
            n: min(
                _CORPUS_NGRAMS,
                *(count_ngrams(_texts_of(drawn), n) for drawn in by_arm.values() if drawn),
                _CORPUS_NGRAMS,
            )
            for n in (1, 2)
        }
        for arm in evaluation.arms:
            table.append(_row(scenario, arm, by_arm[arm.name], evaluation=evaluation, budgets=budgets))
            curves += max_at_k_curve(scenario, arm.name, by_arm[arm.name], evaluation=evaluation)
        differences += score_differences(scenario, by_arm, evaluation=evaluation)
    verdicts = draw_verdicts(table, differences, evaluation)
    return {
        "samples": SAMPLES,
        "scorer": evaluation.scorer,
        "seeds": list(evaluation.seeds),
        "level": evaluation.level,
        "arms": [arm.model_dump(mode="json", exclude={"loss", "red_team", "capabilities"}) for arm in evaluation.arms],
        "scenarios": [scenario.model_dump(mode="json") for scenario in evaluation.scenarios],
        "table": table,
        "differences": differences,
        "verdicts": verdicts,
        "curves": curves,
        "capabilities": [
            {"arm": arm.name, **found.model_dump(mode="json")} for arm in evaluation.arms for found in arm.capabilities
        ],
        "red_team": [row for arm in evaluation.arms for row in _red_team_rows(arm, evaluation=evaluation)],
        "red_team_worst": [
            {"arm": arm.name, **prompt.model_dump(mode="json")}
            for arm in evaluation.arms
            for prompt in (arm.red_team.worst if arm.red_team is not None else ())
        ],
    }


_RED_TEAM_SCORES = (
    "best_prompt_score",
    "best_10_prompt_score",
    "best_100_prompt_score",
    "average_score",
    "round_best_prompt_score",
    "round_average_score",
)


def _red_team_rows(arm: ArmInfo, *, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one row per round: means over the trials that have the score, and their intervals."""
    if arm.red_team is None:
        return []
    rows = []
    for rounds in zip(*arm.red_team.trials, strict=True):
        row: dict[str, Any] = {
            "arm": arm.name,
            "attacker": arm.red_team.attacker,
            "round": rounds[0].number,
            "num_trials": len(rounds),
            "num_tested": mean_or_none([found.num_tested for found in rounds]),
            "outcomes": dict(sorted(sum((Counter(found.outcomes) for found in rounds), Counter()).items())),
        }
        for name in _RED_TEAM_SCORES:
            known = [value for value in (getattr(found, name) for found in rounds) if value is not None]
            interval = bootstrap_mean(
                [[value] for value in known],
                seed=evaluation.bootstrap_seed,
                num_resamples=evaluation.num_resamples,
                level=evaluation.level,
            )
            row |= {name: mean_or_none(known), f"{name}_ci": interval_pair(interval)}
        rows.append(row)
    return rows


def recompute(directory: str) -> dict[str, Any]:
    """Compute the report of a directory again, from its samples alone."""
    return build_report(*read_samples(directory))


def _row(
    scenario: ScenarioInfo,
    arm: ArmInfo,
    samples: Sequence[Sample],
    *,
    evaluation: Evaluation,
    budgets: Mapping[int, int],
) -> dict[str, Any]:
    planned = scenario.num_samples * len(evaluation.seeds)
    scored = [sample for sample in samples if sample.score is not None]
    lengths = [sample.num_tokens for sample in samples if sample.num_tokens is not None]
    return {
        "scenario": scenario.name,
        "arm": arm.name,
        "num_planned": planned,
        "num_samples": len(samples),
        "num_missing": planned - len(samples),
        "num_scored": len(scored),
        "num_unscored": len(samples) - len(scored),
        "unscored": dict(sorted(Counter(_reason(sample.error) for sample in samples if sample.score is None).items())),
        **summarize_scores(
            list(score_groups(scenario, scored).values()),
            per_prompt=samples_per_prompt_of(scenario, evaluation),
            num_hits_threshold=scenario.num_hits_threshold,
            evaluation=evaluation,
        ),
        "score_by_seed": {
            str(seed): mean_or_none([s.score for s in scored if s.seed == seed and s.score is not None])
            for seed in evaluation.seeds
        },
        "length_tokens": mean_or_none(lengths),
        "num_lengths_unknown": len(samples) - len(lengths),
        "finished": mean_or_none([float(sample.finish_reason == "stop") for sample in samples]),
        **execution_figures(samples, per_prompt=samples_per_prompt_of(scenario, evaluation)),
        **_measure_texts(scenario, samples, evaluation=evaluation, budgets=budgets),
        **_bits_per_byte(arm),
        "kl_per_sequence": None if arm.kl is None else arm.kl.per_sequence[0],
        "kl_per_byte": None if arm.kl is None else arm.kl.per_byte[0],
        "kl_per_byte_error": None if arm.kl is None else arm.kl.per_byte[1],
        "num_kl_impossible": 0 if arm.kl is None else arm.kl.num_impossible,
        "kl_failures": {} if arm.kl is None else arm.kl.failures,
        "kl_note": "" if arm.kl is None else arm.kl.note,
    }


def _bits_per_byte(arm: ArmInfo) -> dict[str, float | None]:
    """Return the figure by which arms compare, and the one with the arm's own token before every segment for free.

    Tokens that are given tell the model what follows and where segments begin. A model with control tokens has never
    read text without them, so it is compared with the bits of its tokens included.
    """
    checkpoint = arm.checkpoint
    measured = {} if checkpoint is None else checkpoint.bits_per_byte
    has_control = checkpoint is not None and checkpoint.control is not None
    return {
        "bits_per_byte": measured.get("joint" if has_control else "none"),
        "bits_per_byte_given_control": None if arm.control is None else measured.get(arm.control),
    }


def _measure_texts(
    scenario: ScenarioInfo, samples: Sequence[Sample], *, evaluation: Evaluation, budgets: Mapping[int, int]
) -> Measures:
    always: list[Metric] = [Length(), Letters(), Repetition()]
    always += [NGramStats(n, num_ngrams=budget, compat=evaluation.compat) for n, budget in budgets.items()]
    asked = [
        build_metric(config, compat=evaluation.compat)
        for config in evaluation.metrics
        if not (config.class_name == "NGramStats" and config.n in budgets)
    ]
    measures: Measures = {}
    for metric in [*always, *asked]:
        # The continuation of a function's head parses only together with the head.
        whole = scenario.use_prompt_for_scoring and isinstance(metric, Compilability)
        measures |= metric([s.prompt + s.text for s in samples] if whole else _texts_of(samples))
    return measures


def _reason(error: str | None) -> str:
    return (error or "no reason given").partition(":")[0][:80]


def _texts_of(samples: Sequence[Sample]) -> list[str]:
    return [sample.text for sample in samples]
