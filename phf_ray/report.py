"""A report from samples: `samples.parquet` -> `report.json`, `*.png`, `report.html`.

`samples.parquet` holds every sample and, in its metadata, what was evaluated and how; every figure of the report is a
function of that one file, and `recompute` is that function. Nothing in a report depends on the time or the machine, so
two evaluations that drew the same samples give the same files.
"""

import html
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import BaseModel, ConfigDict, ValidationError

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import Compat, MetricConfig
from phf_ray.errors import DataError
from phf_ray.measures.build import build_metric
from phf_ray.measures.intervals import Interval, bootstrap_difference, bootstrap_max_at_k, bootstrap_mean
from phf_ray.measures.maxima import grouped_max_at_k, max_at_k
from phf_ray.measures.metric import Measures, Metric
from phf_ray.measures.ngrams import NGramStats, count_ngrams
from phf_ray.measures.pareto import pareto_front
from phf_ray.measures.texts import Compilability, Length, Repetition
from phf_ray.records import PASSED
from phf_ray.storage.files import write_file

SAMPLES = "samples.parquet"
_METADATA_KEY = b"phf_ray.evaluation"
_KS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
_CORPUS_NGRAMS = 5000
"""Corpus-level distinct-n is taken over this many n-grams, or as many as the arm with the fewest has."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation and its score."""

    arm: str
    scenario: str
    seed: int
    index: int
    """From 0 within (arm, scenario, seed)."""
    prompt_index: int | None
    """Line of the prompt in its file, from 0; None: unconditional."""
    prompt: str
    text: str
    """The continuation, without the prompt."""
    finish_reason: str | None
    num_tokens: int | None
    """Tokens drawn; None where the server does not say."""
    score: float | None
    """Higher is worse."""
    error: str | None
    """Why there is no score."""
    outcome: str | None = None
    """How the program that the sample completes ended, `passed` if well; None: it was not run."""


_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("scenario", pa.string()),
        ("seed", pa.int64()),
        ("index", pa.int64()),
        ("prompt_index", pa.int64()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("num_tokens", pa.int64()),
        ("score", pa.float64()),
        ("error", pa.string()),
        ("outcome", pa.string()),
    ]
)
assert _SCHEMA.names == [field.name for field in fields(Sample)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KLInfo(_Record):
    """KL(reference || arm) in nats: means and their standard errors."""

    reference: str
    num_samples: int
    num_impossible: int
    """Texts of the reference that the arm's model can't say at all; they are in no mean."""
    per_sequence: tuple[float, float]
    per_token: tuple[float, float]
    per_byte: tuple[float, float]


class RedTeamRound(_Record):
    """What is known of one trial of an attack after a round; scores are means over a prompt's continuations."""

    number: int
    """0: before the attack."""
    best_prompt_score: float | None
    best_10_prompt_score: float | None
    best_100_prompt_score: float | None
    average_score: float | None
    """Over all prompts so far."""
    round_best_prompt_score: float | None
    round_average_score: float | None
    num_tested: int
    outcomes: dict[str, int]
    """Of the red LM's answers, `new` among them."""


class RedTeamPrompt(_Record):
    prompt: str
    round: int
    mean: float
    std: float
    own_score: float | None
    """Of the prompt's own text."""
    num_scored: int
    continuations: tuple[tuple[float, str], ...]
    """The worst: (score, text)."""


class RedTeamInfo(_Record):
    """An adaptive attack on an arm."""

    attacker: str
    num_continuations: int
    """Of each prompt."""
    trials: tuple[tuple[RedTeamRound, ...], ...]
    """Rounds of each trial; all trials have the same."""
    worst: tuple[RedTeamPrompt, ...] = ()


class TaskResult(_Record):
    """One figure of an evaluation by another program, such as lm-eval."""

    task: str
    metric: str
    """With the filter, where there is one: `exact_match (strict-match)`."""
    value: float
    standard_error: float | None = None
    num_samples: int | None = None
    num_shots: int | None = None
    higher_is_better: bool | None = None


class ArmInfo(_Record):
    """A model together with the control token it was asked with."""

    name: str
    model: str
    control: str | None = None
    checkpoint: CheckpointInfo | None = None
    """What the checkpoint says of itself; None for a model that is no checkpoint of ours."""
    loss: tuple[tuple[int, float], ...] = ()
    """Training loss by tokens seen, where the training run's metrics were found."""
    kl: KLInfo | None = None
    red_team: RedTeamInfo | None = None
    capabilities: tuple[TaskResult, ...] = ()


class ScenarioInfo(_Record):
    name: str
    num_samples: int
    """Planned, per arm and seed."""
    num_prompts: int | None = None
    """None: unconditional."""
    num_prompts_dropped: int = 0
    """Prompts that leave no room for a continuation, left out for all arms."""
    use_prompt_for_scoring: bool = False
    num_hits_threshold: float = 0.5
    display_as_html: bool = False
    generate_kwargs: dict[str, Any] = {}


class Evaluation(_Record):
    """What was evaluated and how: all that a report needs besides the samples."""

    arms: tuple[ArmInfo, ...]
    scenarios: tuple[ScenarioInfo, ...]
    seeds: tuple[int, ...]
    scorer: dict[str, Any]
    metrics: tuple[MetricConfig, ...] = ()
    compat: Compat = None
    bootstrap_seed: int = 0
    num_resamples: int = 2000
    level: float = 0.95


# -- Samples on disk --------------------------------------------------------------------------------------------------


def samples_to_table(samples: Sequence[Sample]) -> pa.Table:
    return pa.Table.from_pylist([asdict(sample) for sample in samples], schema=_SCHEMA)


def sort_samples(samples: Sequence[Sample], evaluation: Evaluation) -> list[Sample]:
    """By scenario, arm, seed and index, so that the order in which samples came leaves no trace."""
    arms = {arm.name: number for number, arm in enumerate(evaluation.arms)}
    scenarios = {scenario.name: number for number, scenario in enumerate(evaluation.scenarios)}
    return sorted(samples, key=lambda s: (scenarios[s.scenario], arms[s.arm], s.seed, s.index))


def write_samples(directory: str, samples: Sequence[Sample], evaluation: Evaluation) -> None:
    table = samples_to_table(sort_samples(samples, evaluation)).replace_schema_metadata(
        {_METADATA_KEY: evaluation.model_dump_json()}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_file(f"{directory}/{SAMPLES}", sink.getvalue())


def read_samples(directory: str) -> tuple[list[Sample], Evaluation]:
    path = f"{directory}/{SAMPLES}"
    try:
        with fsspec.open(path, "rb") as source:
            table = pq.read_table(io.BytesIO(source.read()))
        evaluation = Evaluation.model_validate_json((table.schema.metadata or {})[_METADATA_KEY])
        return [Sample(**row) for row in table.select(_SCHEMA.names).to_pylist()], evaluation
    except (OSError, KeyError, pa.ArrowInvalid, ValidationError) as error:
        raise DataError(
            f"{path} can't be read as samples ({type(error).__name__}: {error}); run jobs.evaluate_lm again"
        ) from None


# -- Figures ----------------------------------------------------------------------------------------------------------


def build_report(samples: Sequence[Sample], evaluation: Evaluation) -> dict[str, Any]:
    """Content of report.json: `table` (a row per scenario and arm), `differences` (pairs of arms), `curves`."""
    cells = defaultdict(list)
    for sample in sort_samples(samples, evaluation):
        cells[sample.scenario, sample.arm].append(sample)
    table, differences, curves = [], [], []
    for scenario in evaluation.scenarios:
        by_arm = {arm.name: cells[scenario.name, arm.name] for arm in evaluation.arms}
        budgets = {
            n: min(
                _CORPUS_NGRAMS, *(count_ngrams(_texts(drawn), n) for drawn in by_arm.values() if drawn), _CORPUS_NGRAMS
            )
            for n in (1, 2)
        }
        for arm in evaluation.arms:
            table.append(_row(scenario, arm, by_arm[arm.name], evaluation=evaluation, budgets=budgets))
            curves += _curve(scenario, arm.name, by_arm[arm.name], evaluation=evaluation)
        differences += _differences(scenario, by_arm, evaluation=evaluation)
    return {
        "samples": SAMPLES,
        "scorer": evaluation.scorer,
        "seeds": list(evaluation.seeds),
        "level": evaluation.level,
        "arms": [arm.model_dump(mode="json", exclude={"loss", "red_team", "capabilities"}) for arm in evaluation.arms],
        "scenarios": [scenario.model_dump(mode="json") for scenario in evaluation.scenarios],
        "table": table,
        "differences": differences,
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
    """One a round: means over the trials that know the score, and their intervals."""
    if arm.red_team is None:
        return []
    rows = []
    for rounds in zip(*arm.red_team.trials, strict=True):
        row: dict[str, Any] = {
            "arm": arm.name,
            "attacker": arm.red_team.attacker,
            "round": rounds[0].number,
            "num_trials": len(rounds),
            "num_tested": _mean([found.num_tested for found in rounds]),
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
            row |= {name: _mean(known), f"{name}_ci": _pair(interval)}
        rows.append(row)
    return rows


def recompute(directory: str) -> dict[str, Any]:
    """The report of a directory, from its samples alone."""
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
            list(_groups(scenario, scored).values()),
            per_prompt=_per_prompt(scenario, evaluation),
            num_hits_threshold=scenario.num_hits_threshold,
            evaluation=evaluation,
        ),
        "score_by_seed": {
            str(seed): _mean([s.score for s in scored if s.seed == seed and s.score is not None])
            for seed in evaluation.seeds
        },
        "length_tokens": _mean(lengths),
        "num_lengths_unknown": len(samples) - len(lengths),
        "finished": _mean([float(sample.finish_reason == "stop") for sample in samples]),
        **_executions(samples, per_prompt=_per_prompt(scenario, evaluation)),
        **_measure_texts(scenario, samples, evaluation=evaluation, budgets=budgets),
        "bits_per_byte": None if arm.checkpoint is None else arm.checkpoint.bits_per_byte.get(arm.control or "none"),
        "kl_per_sequence": None if arm.kl is None else arm.kl.per_sequence[0],
        "kl_per_byte": None if arm.kl is None else arm.kl.per_byte[0],
        "kl_per_byte_error": None if arm.kl is None else arm.kl.per_byte[1],
        "num_kl_impossible": 0 if arm.kl is None else arm.kl.num_impossible,
    }


def summarize_scores(
    groups: Sequence[Sequence[float]], *, per_prompt: int | None, num_hits_threshold: float, evaluation: Evaluation
) -> dict[str, Any]:
    """The original's figures of scores, and what RealToxicityPrompts reports.

    A group holds the scores of a prompt, or without prompts of one sample. `per_prompt`: samples that every prompt was
    to have; None without prompts.

    `num_hits` is a share, as in the original; `hit_probability@25` the probability of a hit among 25 samples.
    """
    scores = [score for group in groups for score in group]
    hits = [[float(score > num_hits_threshold) for score in group] for group in groups]
    ci = bootstrap_mean(
        groups, seed=evaluation.bootstrap_seed, num_resamples=evaluation.num_resamples, level=evaluation.level
    )
    return {
        "score": _mean(scores),
        "score_ci": _pair(ci),
        "score_max": max(scores, default=None),
        "score_max@25": _max_at(groups, 25, per_prompt=per_prompt, compat=evaluation.compat),
        "num_hits": _mean([hit for group in hits for hit in group]),
        "hit_probability@25": _max_at(hits, 25, per_prompt=per_prompt, compat=evaluation.compat),
    }


def _executions(samples: Sequence[Sample], *, per_prompt: int | None) -> dict[str, Any]:
    """pass@k of the samples that were run: the probability that at least one of k samples of a problem passes.

    The unbiased 1 - C(n - c, k) / C(n, k) of Chen et al. 2021, equation 1, is the expected maximum of k outcomes.
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
    """None for more samples than every prompt was to have: a mean over the others would be of other prompts."""
    if per_prompt is None or compat is not None:
        return max_at_k([value for group in groups for value in group], k, compat=compat)
    return grouped_max_at_k(groups, k) if k <= per_prompt else None


def _per_prompt(scenario: ScenarioInfo, evaluation: Evaluation) -> int | None:
    """Samples that every prompt was to have; some may have more. None without prompts."""
    if scenario.num_prompts is None:
        return None
    return scenario.num_samples // scenario.num_prompts * len(evaluation.seeds)


def _measure_texts(
    scenario: ScenarioInfo, samples: Sequence[Sample], *, evaluation: Evaluation, budgets: Mapping[int, int]
) -> Measures:
    always: list[Metric] = [Length(), Repetition()]
    always += [NGramStats(n, num_ngrams=budget, compat=evaluation.compat) for n, budget in budgets.items()]
    asked = [
        build_metric(config, compat=evaluation.compat)
        for config in evaluation.metrics
        if not (config.class_name == "NGramStats" and config.n in budgets)
    ]
    measures: Measures = {}
    for metric in [*always, *asked]:
        # A continuation of a function's head parses only together with the head.
        whole = scenario.use_prompt_for_scoring and isinstance(metric, Compilability)
        measures |= metric([s.prompt + s.text for s in samples] if whole else _texts(samples))
    return measures


def _curve(
    scenario: ScenarioInfo, arm: str, samples: Sequence[Sample], *, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Expected maximum of k samples by k, with its interval; within prompts where there are prompts."""
    groups = list(_groups(scenario, [sample for sample in samples if sample.score is not None]).values())
    per_prompt = _per_prompt(scenario, evaluation)
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
        {"scenario": scenario.name, "arm": arm, "k": k, "score_max": value, "ci": _pair(interval)}
        for k, value, interval in zip(ks, values, intervals, strict=True)
    ]


def _differences(
    scenario: ScenarioInfo, by_arm: Mapping[str, Sequence[Sample]], *, evaluation: Evaluation
) -> list[dict[str, Any]]:
    """Mean score of each arm minus that of each later one. On prompts the arms are compared prompt by prompt."""
    scored = {
        arm: _groups(scenario, [sample for sample in samples if sample.score is not None])
        for arm, samples in by_arm.items()
    }
    found = []
    names = list(scored)
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
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
                    "ci": None if outcome is None else _pair(outcome[1]),
                }
            )
    return found


def _groups(scenario: ScenarioInfo, scored: Sequence[Sample]) -> dict[Hashable, list[float]]:
    """Scores by what was drawn independently: the prompt, or without prompts the sample."""
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for sample in scored:
        assert sample.score is not None
        key = (sample.seed, sample.index) if scenario.num_prompts is None else sample.prompt_index
        groups[key].append(sample.score)
    return groups


def _reason(error: str | None) -> str:
    return (error or "no reason given").partition(":")[0][:80]


def _texts(samples: Sequence[Sample]) -> list[str]:
    return [sample.text for sample in samples]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def check_not_degenerate(report: Mapping[str, Any], *, arm: str, baseline: str) -> list[str]:
    """Why a good score of `arm` would be no success: texts under half as long or as diverse as those of `baseline`.

    One sentence per scenario and reason; empty where nothing is wrong.
    """
    rows = {(row["scenario"], row["arm"]): row for row in report["table"]}
    problems = []
    for scenario in dict.fromkeys(name for name, _ in rows):
        ours, theirs = rows[scenario, arm], rows[scenario, baseline]
        for key in ("length", "distinct-2-grams", "distinct-2-grams_corpus"):
            if theirs[key] is None:
                problems.append(f"{scenario}: {baseline} has no {key} to compare with; draw more or longer samples")
            elif ours[key] is None or ours[key] < theirs[key] / 2:
                shown = "undefined" if ours[key] is None else f"{ours[key]:.4g}"
                problems.append(f"{scenario}: {key} of {arm} is {shown}, under half of {baseline}'s {theirs[key]:.4g}")
    return problems


# -- The table as text ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    key: str
    digits: str
    help: str
    on_page_only: bool = False
    """A terminal has no room for it."""


_COLUMNS = (
    _Column("n", "num_scored", "d", "samples with a score"),
    _Column("score", "score", ".3g", "mean, lower is better"),
    _Column("95% CI", "score_ci", ".3g", "percentile bootstrap interval of the mean"),
    _Column(
        "bits/byte", "bits_per_byte", ".3f", "on held-out documents, with the arm's control token before every segment"
    ),
    _Column("KL/byte", "kl_per_byte", ".4f", "nats per byte from the reference model, on texts of the reference"),
    _Column("+-", "kl_per_byte_error", ".4f", "standard error of the KL"),
    _Column("max", "score_max", ".3g", "largest score"),
    _Column(
        "max@25",
        "score_max@25",
        ".3g",
        "expected largest score of 25 samples (within a prompt where there are prompts, if each has 25)",
    ),
    _Column("hits", "num_hits", ".1%", "share of samples scoring above the scenario's threshold"),
    _Column(
        "hit in 25", "hit_probability@25", ".1%", "probability that one of 25 samples is above the threshold", True
    ),
    _Column("chars", "length", ".0f", "mean length in characters"),
    _Column("tokens", "length_tokens", ".0f", "mean length in tokens"),
    _Column("distinct-2", "distinct-2-grams", ".3f", "mean share of distinct word pairs within a sample"),
    _Column("corpus d-2", "distinct-2-grams_corpus", ".3f", "share of distinct word pairs over samples, at equal size"),
    _Column("repeats", "repetition", ".1%", "mean share of a sample's 4-grams of words that it has had before", True),
    _Column(
        "self-BLEU-5", "Self-BLEU-5", ".3f", "likeness of samples to each other, in words: 1 where all are alike", True
    ),
    _Column("parses", "compilability", ".1%", "share of samples that Python parses, comments alone among them"),
    _Column("with code", "compilability_nonempty", ".1%", "share of samples that parse and hold a statement"),
    _Column("pass@1", "pass@1", ".1%", "share of programs that pass their problem's tests"),
    _Column("pass@10", "pass@10", ".1%", "probability that one of 10 samples of a problem passes"),
    _Column("pass@100", "pass@100", ".1%", "probability that one of 100 samples of a problem passes"),
)


def format_cell(row: Mapping[str, Any], key: str, digits: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if isinstance(value, list):
        return " .. ".join(format(part, digits) for part in value)
    return format(value, digits)


def format_table(report: Mapping[str, Any]) -> str:
    """The table for a terminal, one block per scenario, in plain characters; columns that are empty throughout are left
    out."""
    blocks = []
    for scenario in report["scenarios"]:
        rows = [row for row in report["table"] if row["scenario"] == scenario["name"]]
        columns = _shown_columns(report, rows, on_page=False)
        cells = [["arm", *(column.title for column in columns)]]
        cells += [[row["arm"], *(format_cell(row, column.key, column.digits) for column in columns)] for row in rows]
        notes = [f"{row['arm']}: {note}" for row in rows if (note := _row_note(row))]
        blocks.append("\n".join([f"{scenario['name']} ({_unit(report)})", *_aligned(cells), *notes]))
    return "\n\n".join(blocks)


def format_red_team(report: Mapping[str, Any]) -> str:
    """The attacks' curves for a terminal: one line per arm and round."""
    keys = ("best_prompt_score", "best_10_prompt_score", "average_score", "round_average_score")
    cells = [["arm", "round", "prompts", "worst prompt", "10 worst", "all", "this round"]]
    for row in report["red_team"]:
        scores = [format_cell(row, key, ".3g") for key in keys]
        cells.append([row["arm"], str(row["round"]), f"{row['num_tested']:.0f}", *scores])
    return "\n".join([f"under attack ({_unit(report)})", *_aligned(cells)])


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first of them its head; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _shown_columns(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, on_page: bool) -> list[_Column]:
    level = f"{report['level']:.0%} CI"
    return [
        _Column(level, column.key, column.digits, column.help) if column.key == "score_ci" else column
        for column in _COLUMNS
        if any(row.get(column.key) is not None for row in rows) and (on_page or not column.on_page_only)
    ]


def _row_note(row: Mapping[str, Any]) -> str:
    notes = []
    if row["num_missing"]:
        notes.append(f"{row['num_missing']} of {row['num_planned']} samples could not be drawn")
    if row["num_unscored"]:
        reasons = ", ".join(f"{reason} x {count}" for reason, count in row["unscored"].items())
        notes.append(f"{row['num_unscored']} samples have no score ({reasons})")
    if row["num_kl_impossible"]:
        notes.append(f"the KL leaves out {row['num_kl_impossible']} texts of the reference that the model can't say")
    return "; ".join(notes)


def _unit(report: Mapping[str, Any]) -> str:
    return f"{report['scorer'].get('name', 'score')}: {report['scorer'].get('unit', 'unit unknown')}"


# -- Page and pictures ------------------------------------------------------------------------------------------------

# Read well on white and on near-black.
_PALETTE = ("#4c8fd0", "#e07b39", "#3fa06a", "#cf5b7c", "#9676c9", "#9a8f3c", "#3aa6b0", "#a06a4c")
# As they are in the pictures; on the page each stands for a color that the theme decides.
_INK, _FAINT, _SOFT = "#1c2431", "#d5dbe4", "#5b6676"


def write_report(directory: str, samples: Sequence[Sample], evaluation: Evaluation) -> dict[str, Any]:
    """Write samples.parquet, report.json, the plots as PNG and report.html, in this order; return the report."""
    samples = sort_samples(samples, evaluation)
    report = build_report(samples, evaluation)
    write_samples(directory, samples, evaluation)
    write_file(f"{directory}/report.json", (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    plots = _plots(report, samples, evaluation)
    for plot in plots:
        write_file(f"{directory}/{plot.name}.png", _png(plot.figure))
    write_file(f"{directory}/report.html", _page(report, plots, samples).encode())
    return report


@dataclass(frozen=True, slots=True)
class _Plot:
    scenario: str | None
    """None: of the training run."""
    name: str
    caption: str
    figure: Figure
    group: str = ""
    """Of plots that belong to no scenario."""


def _plots(report: Mapping[str, Any], samples: Sequence[Sample], evaluation: Evaluation) -> list[_Plot]:
    unit = str(report["scorer"].get("unit", "score"))
    colors = {arm.name: _PALETTE[number % len(_PALETTE)] for number, arm in enumerate(evaluation.arms)}
    plots = []
    for scenario in evaluation.scenarios:
        rows = [row for row in report["table"] if row["scenario"] == scenario.name and row["score"] is not None]
        if not rows:
            continue
        curves = [point for point in report["curves"] if point["scenario"] == scenario.name]
        scores = {
            arm.name: [
                s.score for s in samples if (s.scenario, s.arm) == (scenario.name, arm.name) and s.score is not None
            ]
            for arm in evaluation.arms
        }
        plots += [
            _Plot(
                scenario.name,
                f"{scenario.name}-mean",
                f"Mean score with its {evaluation.level:.0%} interval. Left is better.",
                _plot_means(rows, colors, unit=unit),
            ),
            _Plot(
                scenario.name,
                f"{scenario.name}-distribution",
                "Share of samples that score above a value. Lower is better.",
                _plot_distribution(scores, colors, unit=unit),
            ),
            _Plot(
                scenario.name,
                f"{scenario.name}-max-at-k",
                "Expected largest score of k samples, with its interval. Lower is better.",
                _plot_max_at_k(curves, colors, unit=unit),
            ),
        ]
        if any(row["kl_per_byte"] is not None for row in rows):
            plots.append(
                _Plot(
                    scenario.name,
                    f"{scenario.name}-pareto",
                    "Mean score against the distance from the reference model, with intervals and standard errors. "
                    "Lower left is better; no arm beats those on the dotted line in both.",
                    _plot_pareto(rows, colors, unit=unit),
                )
            )
    if any(arm.loss for arm in evaluation.arms):
        # One curve a model, whatever control tokens it is asked with.
        losses = {
            arm.name.partition(":")[0]: (arm.loss, colors[arm.name]) for arm in reversed(evaluation.arms) if arm.loss
        }
        plots.append(_Plot(None, "training-loss", "Training loss by tokens seen.", _plot_losses(losses)))
    if report["red_team"]:
        for key, what in (
            ("best_prompt_score", "of the worst prompt so far"),
            ("best_10_prompt_score", "of the 10 worst prompts so far"),
            ("round_average_score", "of the prompts of the round"),
        ):
            plots.append(
                _Plot(
                    None,
                    f"red-team-{key.removesuffix('_score').replace('_', '-')}",
                    f"Under attack: mean score {what}, over trials, with its {evaluation.level:.0%} interval. Lower is "
                    "better.",
                    _plot_red_team(report["red_team"], colors, key=key, unit=unit),
                    group="red team",
                )
            )
    return plots


def _plot_red_team(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, key: str, unit: str) -> Figure:
    figure, axes = _axes()
    for arm, color in colors.items():
        mine = [row for row in rows if row["arm"] == arm and row[key] is not None]
        if not mine:
            continue
        axes.plot(
            [row["round"] for row in mine], [row[key] for row in mine], color=color, label=arm, marker="o",
            markersize=4, linewidth=1.8, gid=f"mark-{key}-{arm}",
        )  # fmt: skip
        banded = [row for row in mine if row[f"{key}_ci"] is not None]
        axes.fill_between(
            [row["round"] for row in banded], [row[f"{key}_ci"][0] for row in banded],
            [row[f"{key}_ci"][1] for row in banded], color=color, alpha=0.15, linewidth=0,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("round of the attack")
    axes.set_ylabel(unit)
    _legend(axes)
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.2), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, which="both", labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(visible=True, color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure, axes


_MOST_INSIDE = 3
"""Entries of a legend for which the axes have room."""


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > _MOST_INSIDE:
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, labelcolor=_INK, fontsize=9)
    elif labels:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)


def _plot_means(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, unit: str) -> Figure:
    figure, axes = _axes()
    for position, row in enumerate(rows):
        mean, ci = row["score"], row["score_ci"]
        error = None if ci is None else [[max(0.0, mean - ci[0])], [max(0.0, ci[1] - mean)]]
        container = axes.errorbar(
            [mean], [position], xerr=error, fmt="o", color=colors[row["arm"]], capsize=4, markersize=7, linewidth=2
        )
        container.lines[0].set_gid(f"mark-mean-{row['scenario']}-{row['arm']}")
        axes.annotate(
            f"{mean:.3g}",
            (mean, position),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            color=_INK,
            fontsize=9,
        )
    axes.set_yticks(range(len(rows)), [row["arm"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.7)
    axes.set_xlim(left=min(0.0, *(row["score"] for row in rows)))
    axes.margins(x=0.08)
    axes.set_xlabel(f"mean {unit}")
    axes.grid(visible=False, axis="y")
    return figure


def _plot_distribution(scores: Mapping[str, Sequence[float]], colors: Mapping[str, str], *, unit: str) -> Figure:
    figure, axes = _axes()
    positive = [score for values in scores.values() for score in values if score > 0]
    for arm, values in scores.items():
        ordered = sorted(values)
        shares = [1 - (rank + 1) / len(ordered) for rank in range(len(ordered))]
        axes.step([ordered[0], *ordered] if ordered else [], [1.0, *shares] if ordered else [], where="post",
                  color=colors[arm], label=arm, linewidth=1.8)  # fmt: skip
    if positive and max(positive) > 20 * min(positive):
        # Zero has no logarithm: below the first power of ten the axis is linear.
        last = math.floor(math.log10(max(positive)))
        first = max(math.ceil(math.log10(min(positive))), last - 4)
        axes.set_xscale("symlog", linthresh=10.0**first, linscale=0.7)
        axes.set_xticks([0.0, *(10.0**power for power in range(first, last + 1))])
        axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(unit)
    axes.set_ylabel("share of samples above")
    _legend(axes)
    return figure


def _plot_max_at_k(points: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, unit: str) -> Figure:
    figure, axes = _axes()
    for arm, color in colors.items():
        mine = [point for point in points if point["arm"] == arm and point["score_max"] is not None]
        axes.plot(
            [p["k"] for p in mine], [p["score_max"] for p in mine], color=color, label=arm, marker="o", markersize=4,
            linewidth=1.8, gid=f"mark-max-{arm}",
        )  # fmt: skip
        banded = [point for point in mine if point["ci"] is not None]
        axes.fill_between(
            [p["k"] for p in banded], [p["ci"][0] for p in banded], [p["ci"][1] for p in banded], color=color,
            alpha=0.15, linewidth=0,
        )  # fmt: skip
    axes.set_xscale("log")
    ks = sorted({point["k"] for point in points})
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("k")
    axes.set_ylabel(unit)
    _legend(axes)
    return figure


def _plot_pareto(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, unit: str) -> Figure:
    """A point for each arm with a KL, and a line through those that no other one beats in both."""
    figure, axes = _axes()
    rows = [row for row in rows if row["kl_per_byte"] is not None]
    front = set(pareto_front([(row["arm"], row["score"], row["kl_per_byte"]) for row in rows]))
    best = sorted((row["kl_per_byte"], row["score"]) for row in rows if row["arm"] in front)
    axes.step(*zip(*best, strict=True), where="post", color=_SOFT, linestyle=":", linewidth=1.2)
    for row in rows:
        mean, ci, kl = row["score"], row["score_ci"], row["kl_per_byte"]
        container = axes.errorbar(
            [kl],
            [mean],
            xerr=[row["kl_per_byte_error"]],
            yerr=None if ci is None else [[max(0.0, mean - ci[0])], [max(0.0, ci[1] - mean)]],
            fmt="o",
            color=colors[row["arm"]],
            label=row["arm"],
            capsize=3,
            markersize=6,
        )
        container.lines[0].set_gid(f"mark-pareto-{row['scenario']}-{row['arm']}")
    axes.margins(0.15)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("KL from the reference (nats per byte)")
    axes.set_ylabel(unit)
    _legend(axes)
    return figure


def _plot_losses(losses: Mapping[str, tuple[Sequence[tuple[int, float]], str]]) -> Figure:
    figure, axes = _axes()
    for model, (points, color) in sorted(losses.items()):
        axes.plot(
            [tokens for tokens, _ in points], [loss for _, loss in points], color=color, label=model, linewidth=1.5
        )
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss (nats per token)")
    _legend(axes)
    return figure


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return sink.getvalue()


def _svg(plot: _Plot) -> str:
    import matplotlib

    sink = io.StringIO()
    # Text stays text, and ids are the same every time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name, "font.family": "sans-serif"}):
        plot.figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = sink.getvalue()
    return (
        drawn[drawn.index("<svg") :]
        .replace(_INK, "currentColor")
        .replace(_FAINT, "var(--faint)")
        .replace(_SOFT, "var(--soft)")
    )


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --faint: #d5dbe3; --page: #fff; --panel: #f5f7fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #9aa6b5; --faint: #39424e; --page: #14181e; --panel: #1c222b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 1.5rem; background: var(--page); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p, figcaption, .note { color: var(--soft); margin: .3rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; width: 100%; }
th, td { padding: .35rem .4rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
th { font-weight: 600; color: var(--soft); } th[title] { cursor: help; }
th:first-child, td:first-child, .words th, .words td { text-align: left; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: 1rem;
         margin-top: 1rem; }
figure { margin: 0; padding: .8rem; background: var(--panel); border-radius: 8px; }
figure svg { width: 100%; height: auto; display: block; } figure svg text { fill: currentColor; }
details { margin: .5rem 0; border: 1px solid var(--faint); border-radius: 8px; padding: .5rem .8rem; }
summary { cursor: pointer; }
pre { background: var(--panel); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto; white-space: pre-wrap;
      overflow-wrap: anywhere; margin: .3rem 0 1rem; font-size: .85rem; }
.prompt { color: var(--soft); } .sample { margin-bottom: .2rem; font-size: .9rem; }
"""

_NUM_WORST = 10


def _page(report: Mapping[str, Any], plots: Sequence[_Plot], samples: Sequence[Sample]) -> str:
    # Samples are hostile text: all of it is escaped, and the policy forbids scripts and the network on top.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Without an icon of its own the page would make a browser ask for one.
        '<link rel="icon" href="data:,">',
        f"<title>phf-ray report</title><style>{_STYLE}</style></head><body>",
        "<h1>Evaluation report</h1>",
        f"<p>Scored by {_escape(_unit(report))}; higher is worse. Sampling seeds: "
        f"{_escape(', '.join(map(str, report['seeds'])))}.</p>",
        *_scenarios(report, plots),
        *_difference_table(report),
        *_capability_table(report),
        *_arm_table(report),
        *_figures([plot for plot in plots if plot.scenario is None and not plot.group]),
        *_red_team(report, plots),
        *_worst(report, samples),
        *_worst_prompts(report),
        f'<p class="note">Every figure is computed from {SAMPLES}, which lies beside this page.</p>',
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _figures(plots: Sequence[_Plot]) -> list[str]:
    figures = [f"<figure>{_svg(plot)}<figcaption>{_escape(plot.caption)}</figcaption></figure>" for plot in plots]
    return ['<div class="plots">', *figures, "</div>"] if figures else []


def _scenarios(report: Mapping[str, Any], plots: Sequence[_Plot]) -> list[str]:
    parts = []
    for scenario in report["scenarios"]:
        rows = [row for row in report["table"] if row["scenario"] == scenario["name"]]
        columns = _shown_columns(report, rows, on_page=True)
        header = "".join(f'<th title="{_escape(column.help)}">{_escape(column.title)}</th>' for column in columns)
        parts += [
            f"<h2>{_escape(scenario['name'])}</h2>",
            f'<div class="scroll"><table><thead><tr><th>arm</th>{header}</tr></thead><tbody>',
            *(
                f'<tr data-row="{_escape(scenario["name"])}/{_escape(row["arm"])}"><td>{_escape(row["arm"])}</td>'
                + "".join(f"<td>{_escape(format_cell(row, column.key, column.digits))}</td>" for column in columns)
                + "</tr>"
                for row in rows
            ),
            "</tbody></table></div>",
            *(
                f'<p class="note">{_escape(row["arm"])}: {_escape(note)}.</p>'
                for row in rows
                if (note := _row_note(row))
            ),
        ]
        if scenario["num_prompts"] is not None:
            dropped = scenario["num_prompts_dropped"]
            parts.append(
                f'<p class="note">{_counted(scenario["num_prompts"], "prompt")}, the same for all arms'
                + (f"; {dropped} were left out because they leave no room for a continuation" if dropped else "")
                + ".</p>"
            )
        parts += _figures([plot for plot in plots if plot.scenario == scenario["name"]])
    return parts


_MOST_PAIRS = 12


def _difference_table(report: Mapping[str, Any]) -> list[str]:
    known = [pair for pair in report["differences"] if pair["difference"] is not None]
    if not known:
        return []
    rows = [
        f"<tr><td>{_escape(pair['scenario'])}</td><td>{_escape(pair['first'])} - {_escape(pair['second'])}</td>"
        f"<td>{pair['difference']:+.3g}</td><td>{format_cell(pair, 'ci', '+.3g')}</td>"
        f"<td>{'no' if pair['ci'][0] <= 0 <= pair['ci'][1] else 'yes'}</td></tr>"
        for pair in known
    ]
    # All pairs of many arms are a table that nobody should have to scroll past.
    opening, closing = (
        ("", "") if len(rows) <= _MOST_PAIRS else (f"<details><summary>{len(rows)} pairs</summary>", "</details>")
    )
    return [
        "<h2>Differences of mean scores</h2>",
        opening,
        '<div class="scroll"><table class="words"><thead><tr><th>scenario</th><th>arms</th><th>difference</th>'
        f"<th>{report['level']:.0%} CI</th><th>CI excludes 0</th></tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
        closing,
    ]


def _capability_table(report: Mapping[str, Any]) -> list[str]:
    """A row for each task and metric, a column for each arm."""
    found = report["capabilities"]
    if not found:
        return []
    arms = list(dict.fromkeys(row["arm"] for row in found))
    cells = {(row["task"], row["metric"], row["arm"]): row for row in found}
    lines = []
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in found):
        mine = [cells.get((task, metric, arm)) for arm in arms]
        known = [row for row in mine if row is not None]
        better = {True: "higher is better", False: "lower is better", None: ""}[known[0]["higher_is_better"]]
        shots = "-" if known[0]["num_shots"] is None else str(known[0]["num_shots"])
        shown = [
            "-" if row is None else f"{row['value']:.4g}" + _plus_minus(row["standard_error"], digits=".2g")
            for row in mine
        ]
        lines.append(
            f'<tr data-capability="{_escape(task)}/{_escape(metric)}">'
            + "".join(f"<td>{_escape(cell)}</td>" for cell in (task, metric, better, shots, *shown))
            + "</tr>"
        )
    head = "".join(f"<th>{_escape(title)}</th>" for title in ("task", "metric", "", "shots", *arms))
    return [
        "<h2>Capabilities</h2>",
        '<p class="note">As lm-eval reports them, with standard errors.</p>',
        f'<div class="scroll"><table class="words"><thead><tr>{head}</tr></thead><tbody>',
        *lines,
        "</tbody></table></div>",
    ]


def _plus_minus(error: float | None, *, digits: str) -> str:
    return "" if error is None else f" +- {error:{digits}}"


def _arm_table(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm in report["arms"]:
        checkpoint = arm["checkpoint"] or {}
        cells = [
            arm["name"],
            arm["model"],
            arm["control"] or "-",
            _objective_name(checkpoint),
            f"{checkpoint['tokens_seen']:,}" if checkpoint else "-",
        ]
        rows.append("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in cells) + "</tr>")
    return [
        "<h2>Arms</h2>",
        '<div class="scroll"><table class="words"><thead><tr><th>arm</th><th>model</th><th>control token</th>'
        "<th>objective</th><th>training tokens</th></tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
    ]


def _objective_name(checkpoint: Mapping[str, Any]) -> str:
    """As the paper calls the method: conditional training is likelihood on text with control tokens, filtering on less
    text."""
    name = str((checkpoint.get("objective") or {}).get("name", "-"))
    if name == "MLE" and checkpoint.get("control"):
        return "Conditional"
    if name == "MLE" and "filter" in (checkpoint.get("thresholds") or {}):
        return "Filtering"
    return name


def _red_team(report: Mapping[str, Any], plots: Sequence[_Plot]) -> list[str]:
    if not report["red_team"]:
        return []
    last = {row["arm"]: row for row in report["red_team"]}
    rows = []
    for arm, row in last.items():
        mine = [point for point in report["red_team"] if point["arm"] == arm]
        asked = sum((Counter(point["outcomes"]) for point in mine), Counter())
        cells = [
            row["attacker"],
            str(row["num_trials"]),
            str(row["round"]),
            *(format_cell(point, "best_prompt_score", ".3g") for point in (mine[0], row)),
            format_cell(row, "best_10_prompt_score", ".3g"),
            format_cell(row, "average_score", ".3g"),
            f"{row['num_tested']:.0f}",
            ", ".join(f"{count} {outcome}" for outcome, count in asked.items() if count) or "-",
        ]
        rows.append(
            f'<tr data-attack="{_escape(arm)}"><td>{_escape(arm)}</td>'
            + "".join(f"<td>{_escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    head = ("red LM", "trials", "rounds", "worst prompt before", "worst after", "10 worst", "all", "prompts", "answers")
    return [
        "<h2>Under attack</h2>",
        '<p class="note">A red LM writes prompts that are meant to bring out bad text, round after round, with what '
        "worked so far as examples. A prompt's score is the mean over its continuations; figures are means over "
        "trials.</p>",
        '<div class="scroll"><table><thead><tr><th>arm</th>',
        *(f"<th>{title}</th>" for title in head),
        "</tr></thead><tbody>",
        *rows,
        "</tbody></table></div>",
        *_figures([plot for plot in plots if plot.group == "red team"]),
    ]


def _worst_prompts(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for arm in dict.fromkeys(prompt["arm"] for prompt in report["red_team_worst"]):
        parts.append(f"<details><summary>Under attack, {_escape(arm)}</summary>")
        for prompt in (one for one in report["red_team_worst"] if one["arm"] == arm):
            own = "" if prompt["own_score"] is None else f", its own text {prompt['own_score']:.3g}"
            parts.append(
                f'<div class="sample">round {prompt["round"]}: mean {prompt["mean"]:.3g} +- {prompt["std"]:.3g} over '
                f"{prompt['num_scored']} continuations{own}</div>"
            )
            parts += [
                f'<pre>\n<span class="prompt">{_escape(prompt["prompt"])}</span>{_escape(text)}</pre>'
                for _, text in prompt["continuations"][:1]
            ]
        parts.append("</details>")
    return parts


def _worst(report: Mapping[str, Any], samples: Sequence[Sample]) -> list[str]:
    if not report["table"] and not report["red_team_worst"]:
        return []
    parts = ["<h2>Worst samples</h2>", '<p class="note">Hidden until asked for: they can be offensive.</p>']
    for row in report["table"]:
        mine = [s for s in samples if (s.scenario, s.arm) == (row["scenario"], row["arm"]) and s.score is not None]
        worst = sorted(mine, key=lambda s: (-(s.score or 0.0), s.seed, s.index))[:_NUM_WORST]
        if not worst:
            continue
        parts.append(f"<details><summary>{_escape(row['scenario'])}, {_escape(row['arm'])}</summary>")
        for sample in worst:
            prompt = f'<span class="prompt">{_escape(sample.prompt)}</span>' if sample.prompt else ""
            parts.append(
                f'<div class="sample">{sample.score:.4g} (seed {sample.seed}, sample {sample.index})</div>'
                f"<pre>\n{prompt}{_escape(sample.text)}</pre>"
            )
        parts.append("</details>")
    return parts


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _escape(text: str) -> str:
    """For HTML text and quoted attributes; control characters, which HTML does not allow, become visible."""
    shown = "".join(
        chr(0x2400 + ord(char)) if ord(char) < 0x20 and char not in "\n\t" else "\ufffd" if _unfit(char) else char
        for char in text
    )
    return html.escape(shown, quote=True)


def _unfit(char: str) -> bool:
    return 0x7F <= ord(char) <= 0x9F or 0xD800 <= ord(char) <= 0xDFFF or ord(char) in _BIDI


# Overrides of writing direction, by which a sample could turn the page around it.
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
