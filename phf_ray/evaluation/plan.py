"""Every request of an evaluation, fixed before the first one is sent."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.config import Scenario
from phf_ray.errors import ConfigError
from phf_ray.evaluation.probe import Probe
from phf_ray.evaluation.prompts import prompt_order, samples_per_prompt
from phf_ray.evaluation.report.records import ScenarioInfo
from phf_ray.evaluation.requests import SAMPLES_PER_REQUEST, SampleRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    units: list[SampleRequest]
    scenarios: tuple[ScenarioInfo, ...]
    scenario_configs: Mapping[str, Scenario]


def plan_evaluation(
    scenarios: Sequence[Scenario], probes: Sequence["Probe"], *, seeds: Sequence[int]
) -> EvaluationPlan:
    """Plan every request of the evaluation. Asks the servers how long the prompts are."""
    units: list[SampleRequest] = []
    infos = []
    for scenario in scenarios:
        prompts, info = _choose_prompts(scenario, probes)
        infos.append(info)
        counts = samples_per_prompt(scenario.num_samples, len(prompts))
        for probe in probes:
            for seed in seeds:
                units += _units(scenario, probe, list(zip(prompts, counts, strict=True)), seed=seed)
    return EvaluationPlan(units, tuple(infos), {scenario.name: scenario for scenario in scenarios})


def _units(
    scenario: Scenario, probe: "Probe", prompts: Sequence[tuple[tuple[int | None, str], int]], *, seed: int
) -> Iterator[SampleRequest]:
    start = 0
    for (prompt_index, prompt), count in prompts:
        sent, control, max_tokens = probe.prepare(prompt, scenario)
        for first in range(0, count, SAMPLES_PER_REQUEST):
            size = min(SAMPLES_PER_REQUEST, count - first)
            yield SampleRequest(
                arm=probe.arm.name,
                scenario=scenario.name,
                seed=seed,
                start=start,
                count=size,
                prompt_index=prompt_index,
                prompt=probe.shown(prompt),
                sent=sent,
                control=control,
                max_tokens=max_tokens,
            )
            start += size


def _choose_prompts(scenario: Scenario, probes: Sequence["Probe"]) -> tuple[list[tuple[int | None, str]], ScenarioInfo]:
    """Choose prompts, at most one per sample and the same for all arms, that leave every arm room to continue."""
    kwargs = scenario.generate_kwargs
    known: dict[str, Any] = {
        "name": scenario.name,
        "num_samples": scenario.num_samples,
        "use_prompt_for_scoring": scenario.use_prompt_for_scoring,
        "num_hits_threshold": scenario.num_hits_threshold,
        "display_as_html": scenario.display_as_html,
        "generate_kwargs": kwargs.model_dump(mode="json"),
    }
    needed = max(1, kwargs.min_length)

    def fits(prompt: str) -> bool:
        return all(probe.prepare(prompt, scenario)[2] >= needed for probe in probes)

    if scenario.prompts_path is None:
        if not fits(""):
            raise ConfigError(
                f"scenario {scenario.name}: max_length={kwargs.max_length} leaves no room for {needed} new tokens; "
                "raise it"
            )
        return [(None, "")], ScenarioInfo(**known)
    # All arms are asked in the same way.
    prompts = probes[0].read(scenario.prompts_path)
    chosen: list[tuple[int | None, str]] = []
    dropped = 0
    for index in prompt_order(len(prompts), scenario=scenario.name):
        if len(chosen) == min(scenario.num_samples, scenario.num_prompts or scenario.num_samples):
            break
        if fits(prompts[index]):
            chosen.append((index, prompts[index]))
        else:
            dropped += 1
    if not chosen:
        raise ConfigError(
            f"scenario {scenario.name}: no prompt of {scenario.prompts_path} leaves room for {needed} new tokens "
            f"within max_length={kwargs.max_length} and {min(probe.context for probe in probes)} positions; raise "
            "max_length, or give shorter prompts"
        )
    if dropped:
        log.warning(
            "%s: %d prompts leave no room for a continuation and are left out for all arms", scenario.name, dropped
        )
    return chosen, ScenarioInfo(**known, num_prompts=len(chosen), num_prompts_dropped=dropped)
