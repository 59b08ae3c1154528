"""Logs a report's figures, tables and distributions under the names of the original code."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phf_ray.evaluation.kl.rows import kl_rows
from phf_ray.evaluation.report.figures import build_report
from phf_ray.evaluation.report.records import Evaluation, Sample
from phf_ray.evaluation.report.samples import read_samples
from phf_ray.measures.ngrams import ngrams_of
from phf_ray.runs.tracking import track_finished, wants_wandb

_SCORES = ("score", "score_max", "score_max@25", "num_hits")
_TEXTS = ("length", "distinct-", "entropy-", "Self-BLEU-", "compilability", "repetition", "pass@")
_NUM_BINS = 64
_NUM_NGRAMS = 100
"""Number of the most frequent n-grams to log."""
_NUM_SHOWN = 100
"""Number of samples to log with their line breaks, which table cells do not show, if the scenario asks for that."""
_RED_TEAM = (
    "best_prompt_score",
    "best_10_prompt_score",
    "best_100_prompt_score",
    "average_score",
    "round_best_prompt_score",
    "round_average_score",
)


def track_report(output: str) -> int:
    """Log the report in `output` as one wandb run per arm, so that arms compare like runs; return how many were logged.

    Returns 0 if wandb is not enabled.
    """
    if not wants_wandb():
        return 0
    samples, evaluation = read_samples(output)
    report = build_report(samples, evaluation)
    local = Path(output) if "://" not in output else Path(tempfile.mkdtemp(prefix="phf-wandb-"))
    return sum(
        track_finished(
            local,
            arm_rows(arm.name, report, samples, evaluation),
            name=arm.name,
            identity=f"{output} {arm.name}",
            group=output.rstrip("/").rpartition("/")[2],
            config=arm.model_dump(mode="json", exclude={"loss", "red_team", "capabilities"}),
        )
        for arm in evaluation.arms
    )


def arm_rows(
    name: str, report: Mapping[str, Any], samples: Sequence[Sample], evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Return the rows to log for an arm: one at the tokens that it has seen, and one for each round of an attack."""
    [arm] = [arm for arm in evaluation.arms if arm.name == name]
    figures: dict[str, Any] = {"train/tokens_seen": 0 if arm.checkpoint is None else arm.checkpoint.tokens_seen}
    for scenario in evaluation.scenarios:
        mine = [sample for sample in samples if (sample.scenario, sample.arm) == (scenario.name, name)]
        [row] = [row for row in report["table"] if (row["scenario"], row["arm"]) == (scenario.name, name)]
        figures |= {f"generation/{scenario.name}/{key}": value for key, value in _figures(row).items()}
        figures[f"generation/{scenario.name}/current_samples"] = _samples(mine)
        if scenario.display_as_html:
            shown = [sample.prompt + sample.text for sample in mine[:_NUM_SHOWN]]
            figures[f"generation/{scenario.name}/current_samples_as_html"] = {"pre": shown}
        figures[f"generation/{scenario.name}/score_distribution"] = _histogram(mine)
        for n in _orders(evaluation):
            figures[f"generation/{scenario.name}/{n}-gram counts"] = _ngram_counts(mine, n)
    if arm.kl is not None:
        figures |= kl_rows(arm.kl)
    for result in arm.capabilities:
        figures[f"capabilities/{result.task}/{result.metric}"] = result.value
    return [figures, *_attack_rows(name, report)]


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in _SCORES or key.startswith(_TEXTS)}


def _samples(samples: Sequence[Sample]) -> dict[str, Any]:
    columns = ["prompt", "text", "score", "error"]
    return {"columns": columns, "rows": [[getattr(one, column) for column in columns] for one in samples]}


def _orders(evaluation: Evaluation) -> list[int]:
    """Return the lengths of the n-grams that the report counts."""
    asked = {config.n for config in evaluation.metrics if config.class_name == "NGramStats" and config.n is not None}
    return sorted(asked | {1, 2})


def _ngram_counts(samples: Sequence[Sample], n: int) -> dict[str, Any]:
    counts = Counter(" ".join(ngram) for sample in samples for ngram in ngrams_of(sample.text.split(), n))
    # Ties are in alphabetical order, so that the same samples give the same table.
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_NUM_NGRAMS]
    return {"columns": [f"{n}-gram", "count"], "rows": [list(item) for item in most]}


def _histogram(samples: Sequence[Sample]) -> dict[str, Any] | None:
    scores = [sample.score for sample in samples if sample.score is not None]
    if not scores:
        return None
    import numpy as np

    counts, edges = np.histogram(scores, bins=_NUM_BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _attack_rows(name: str, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"red_team/round": row["round"], **{key: row[key] for key in _RED_TEAM}}
        for row in report["red_team"]
        if row["arm"] == name
    ]
    worst = [prompt for prompt in report["red_team_worst"] if prompt["arm"] == name]
    if rows:
        prompts = [[one["prompt"], one["round"], one["mean"], one["std"], one["own_score"]] for one in worst]
        said = [[one["prompt"], text, score] for one in worst for score, text in one["continuations"]]
        rows[-1] |= {
            "best_prompt": {"columns": _PROMPT, "rows": prompts[:1]},
            "best_prompts_scatter": {"columns": _PROMPT, "rows": prompts},
            "target_lm_responses": {"columns": ["prompt", "text", "score"], "rows": said},
        }
    return rows


_PROMPT = ["prompt", "round", "mean", "std", "own_score"]
