"""Evaluates served models: draws samples, has them scored, and writes the report.

Each request asks for a few samples that differ only in their seed. The samples of a request are stored as soon as they
arrive, so the same command draws only the missing ones. An interruption costs only the requests in progress.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from phf_ray.config import Config, Scenario
from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.evaluation.arms import Arm, ScoresServer, check_arm, check_min_length, described
from phf_ray.evaluation.asking import AskRunner
from phf_ray.evaluation.chats import ChatProbe, check_scenarios
from phf_ray.evaluation.draw import Draw
from phf_ray.evaluation.execution import check_supported
from phf_ray.evaluation.following import follow_outcomes
from phf_ray.evaluation.plan import plan_evaluation
from phf_ray.evaluation.probe import Probe
from phf_ray.evaluation.prompts import Problem, read_problems, read_prompts
from phf_ray.evaluation.report.records import ArmInfo, Evaluation
from phf_ray.evaluation.report.write import write_report
from phf_ray.evaluation.requests import SampleRequest
from phf_ray.evaluation.scorer_check import check_scorer
from phf_ray.evaluation.store import SampleStore
from phf_ray.storage.files import write_file

log = logging.getLogger(__name__)


_THREADS = 64
"""Maximum number of requests that one actor has in progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    seeds: tuple[int, ...] = (0,)
    num_samples: int | None = None
    """Samples per arm, scenario and seed; overrides each scenario's own number."""
    max_clients: int | None = None
    """Maximum number of processes that send requests; None: one for every 4 CPUs of the cluster, see `run_on_ray`."""
    restart: bool = False
    """Delete the results of an earlier, different evaluation in the output directory."""
    allow_other_scorer: bool = False
    allow_code_execution: bool = False
    """Run the samples of scenarios with `execute`."""
    patience_s: float = 60.0
    """Seconds during which a request is repeated while the server is busy or unreachable."""
    check: Callable[[Sequence[Arm]], None] | None = None
    """Raises if `measure` could not measure the arms. Called before anything in the output directory changes."""
    measure: Callable[[Sequence[Arm]], Sequence[Arm]] | None = None
    """Adds further figures of the arms to the report, such as their KL. Called after all checks."""


def evaluate_arms(
    config: Config,
    *,
    arms: Sequence[Arm],
    scores: ScoresServer,
    output: str,
    runner: AskRunner,
    options: EvaluationOptions | None = None,
) -> dict[str, Any]:
    """Draw the samples that `output` lacks, write the report there and return it.

    `runner`: `run_here` of `asking`, or `run_on_ray` of `on_ray`. Raises before the first sample if a server, a key, a
    model or a scorer is wrong. Raises ServiceError if more than `scoring.max_failed_fraction` of the samples can't be
    drawn. If fewer can't, writes the report and raises IncompleteError.
    """
    options = options or EvaluationOptions()
    scenarios = _scenarios(config, options)
    problems = _problems(scenarios, allowed=options.allow_code_execution)
    cards = [check_arm(arm) for arm in arms]
    arms = [described(arm, card) for arm, card in zip(arms, cards, strict=True)]
    if any(arm.api == "chat" for arm in arms):
        check_scenarios(scenarios)
    probes = [(ChatProbe if arm.api == "chat" else Probe)(arm, card) for arm, card in zip(arms, cards, strict=True)]
    check_min_length(scenarios, arms)
    identity = check_scorer(scores, arms, allow_other=options.allow_other_scorer)
    plan = plan_evaluation(scenarios, probes, seeds=options.seeds)
    started = time.monotonic()
    store = SampleStore(output)
    check = None if options.check is None else partial(options.check, arms)
    store.claim(plan, arms, scorer=identity, restart=options.restart, check=check)
    if options.measure is not None:
        arms = options.measure(arms)
    evaluation = Evaluation(
        arms=tuple(
            ArmInfo(
                name=arm.name,
                model=arm.source or arm.model,
                control=arm.control,
                checkpoint=arm.checkpoint,
                loss=arm.loss,
                kl=arm.kl,
                capabilities=arm.capabilities,
                red_team=arm.red_team,
            )
            for arm in arms
        ),
        scenarios=plan.scenarios,
        seeds=options.seeds,
        scorer=identity,
        metrics=config.generation.metrics_configs,
        compat=config.original,
    )
    todo = store.missing(plan.units)
    log.info("%d of %d samples to draw", sum(unit.count for unit in todo), sum(unit.count for unit in plan.units))
    failures: Counter[str] = Counter()
    if todo:
        draw = Draw(
            {arm.name: arm for arm in arms}, plan.scenario_configs, scores, output, options.patience_s, problems
        )
        blocks = _blocks(_interleaved(todo), size=config.generation.batch_size)
        outcomes = runner(draw, blocks, max_clients=options.max_clients)
        num_planned = sum(unit.count for unit in plan.units)
        failures = follow_outcomes(
            outcomes,
            num_to_draw=sum(unit.count for unit in todo),
            num_planned=num_planned,
            max_failed=int(config.scoring.max_failed_fraction * num_planned),
            limit="scoring.max_failed_fraction",
        )
    samples = store.samples(plan.units)
    report = write_report(output, samples, evaluation)
    num_missing = sum(row["num_missing"] for row in report["table"])
    summary = {
        "complete": num_missing == 0,
        "num_samples": len(samples),
        "num_missing": num_missing,
        "num_unscored": sum(row["num_unscored"] for row in report["table"]),
        "num_drawn_now": sum(unit.count for unit in todo) - sum(failures.values()),
        "failures": dict(failures),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_file(f"{output}/summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    if num_missing:
        raise IncompleteError(
            f"{num_missing} samples could not be drawn: {dict(failures)}; the report in {output} lacks them"
        )
    store.tidy()
    return report


def _scenarios(config: Config, options: EvaluationOptions) -> list[Scenario]:
    scenarios = config.generation.scenario_configs
    if not scenarios:
        raise ConfigError(
            "generation.scenario_configs is empty; add for example `- {name: unconditional, num_samples: 512}`"
        )
    if options.num_samples is None:
        return list(scenarios)
    return [scenario.model_copy(update={"num_samples": options.num_samples}) for scenario in scenarios]


def _problems(scenarios: Sequence[Scenario], *, allowed: bool) -> dict[str, Sequence[Problem]]:
    found: dict[str, Sequence[Problem]] = {}
    for scenario in scenarios:
        if scenario.execute and scenario.prompts_path is not None:
            if not allowed:
                raise ConfigError(
                    f"scenario {scenario.name} runs code that a model writes, in a process with limits; to allow it, "
                    "give --allow-code-execution"
                )
            check_supported()
            read_prompts(scenario.prompts_path)
            found[scenario.name] = read_problems(scenario.prompts_path)
    return found


def _interleaved(units: Sequence[SampleRequest]) -> list[SampleRequest]:
    """Alternate between arms, so that their servers work at the same time and early samples are comparable."""
    by_arm = [list(group) for _, group in groupby(sorted(units, key=lambda u: u.arm), key=lambda u: u.arm)]
    longest = max(map(len, by_arm))
    return [group[number] for number in range(longest) for group in by_arm if number < len(group)]


def _blocks(units: Sequence[SampleRequest], *, size: int) -> list[list[SampleRequest]]:
    """Group the requests that one actor sends at once: up to `size` samples, at least one request."""
    blocks: list[list[SampleRequest]] = []
    room = 0
    for unit in units:
        if unit.count > room or len(blocks[-1]) == _THREADS:
            blocks.append([])
            room = max(size, unit.count)
        blocks[-1].append(unit)
        room -= unit.count
    return blocks
