"""Measures samples, scores and KL of weights that a training run handed out, in one process and without a server."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from phf_ray.checkpoint import fingerprint
from phf_ray.config import Config, Scenario, parse_config
from phf_ray.evaluation.arms import Arm, check_arm, described
from phf_ray.evaluation.beside_training import EvaluationJob
from phf_ray.evaluation.in_process import InProcessModel, InProcessScores
from phf_ray.evaluation.kl.arms import has_control_per_line, info_on_samples, kl_info, with_prefix
from phf_ray.evaluation.kl.measure import measure_kl
from phf_ray.evaluation.kl.reference import Reference, reference_samples
from phf_ray.evaluation.kl.rows import kl_rows
from phf_ray.evaluation.kl.sample_file import read_reference_samples
from phf_ray.evaluation.kl.texts import reference_texts
from phf_ray.evaluation.plan import EvaluationPlan, plan_evaluation
from phf_ray.evaluation.probe import Probe
from phf_ray.evaluation.report.figures import build_report
from phf_ray.evaluation.report.records import ArmInfo, Evaluation, Sample
from phf_ray.evaluation.report.samples import write_samples
from phf_ray.evaluation.requests import draw_unit, request_body
from phf_ray.generation.engine import Engine
from phf_ray.generation.load import load_engine
from phf_ray.generation.requests import EngineSettings
from phf_ray.http.keys import parse_endpoint
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import STEP

SEED = 0
"""Sampling seed: every step gets the same prompts and the same random numbers."""
# Counts in a report's table that are worth a curve: a figure of the original, and the failures.
_COUNTS = {"num_hits", "num_unscored"}


def evaluate_weights(job: EvaluationJob, step: int) -> dict[str, float]:
    """Return the row of metrics for the weights of `step`, and write the samples beside the weights.

    Raises a PhfError if the scorer, the reference or the weights can't be used.
    """
    started = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(max(1, int(job.resources.get("CPU", 1))))
    config = parse_config(job.config)
    folder = RunDirectory(job.run_path).evaluation_folder(step)
    engine = _load(folder / "weights", config, job=job)
    assert engine.info is not None
    arm = Arm(
        name="model",
        url="",
        model="model",
        control=None if engine.info.control is None else "good",
        knows_vllms_fields=True,
        checkpoint=engine.info,
        client=InProcessModel("model", engine),
    )
    row: dict[str, float] = {STEP: step, "train/tokens_seen": engine.info.tokens_seen}
    if step in job.generation_steps:
        row |= _measure_samples(config, arm, output=folder, has_gpu=job.has_gpu)
    if step in job.kl_steps:
        row |= _measure_kl(config, arm, job=job)
    return row | {"evaluation/wall_s": time.monotonic() - started}


def _load(directory: Path, config: Config, *, job: EvaluationJob) -> Engine:
    # DIFFERS: phf-ray measures freshly loaded weights in eval mode; the original draws samples with dropout from the
    # model in training.
    device = "cuda" if job.has_gpu else "cpu"
    return load_engine(directory, settings=EngineSettings(device=device, max_batch=config.generation.batch_size))


def _measure_samples(config: Config, arm: Arm, *, output: Path, has_gpu: bool) -> dict[str, float]:
    scores = InProcessScores(config, has_gpu=has_gpu)
    try:
        plan = plan_evaluation(config.generation.scenario_configs, [Probe(arm, check_arm(arm))], seeds=(SEED,))
        samples: list[Sample] = []
        seconds: dict[str, float] = {}
        for name, scenario in plan.scenario_configs.items():
            since = time.monotonic()
            samples += _draw(plan, scenario, arm, scores=scores)
            seconds[name] = time.monotonic() - since
    finally:
        scores.close()
    evaluation = Evaluation(
        arms=(ArmInfo(name=arm.name, model=arm.model, control=arm.control, checkpoint=arm.checkpoint),),
        scenarios=plan.scenarios,
        seeds=(SEED,),
        scorer=scores.identity,
        metrics=config.generation.metrics_configs,
        compat=config.original,
    )
    write_samples(str(output), samples, evaluation)
    row: dict[str, float] = {}
    for measured in build_report(samples, evaluation)["table"]:
        name = measured["scenario"]
        figures = {key: value for key, value in measured.items() if _is_figure(key, value)}
        figures["samples_per_second"] = measured["num_samples"] / seconds[name]
        row |= {f"generation/{name}/{key}": value for key, value in figures.items()}
    return row


def _is_figure(key: str, value: object) -> bool:
    is_count = key.startswith("num_") and key not in _COUNTS
    # The training loop measures bits per byte, under another name.
    return isinstance(value, int | float) and not is_count and key != "bits_per_byte"


def _draw(plan: EvaluationPlan, scenario: Scenario, arm: Arm, *, scores: InProcessScores) -> list[Sample]:
    assert isinstance(arm.client, InProcessModel)
    units = [unit for unit in plan.units if unit.scenario == scenario.name]
    drawn = arm.client.complete([request_body(unit, scenario, arm) for unit in units])
    samples: list[Sample] = []
    for unit, choices in zip(units, drawn, strict=True):
        ask = partial(_answer, {"choices": choices})
        samples += draw_unit(unit, scenario=scenario, arm=arm, ask=ask, score=scores.post, scorer=scores.name)
    return samples


def _answer(answer: dict[str, Any], path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    del path, body
    return answer


def _measure_kl(config: Config, arm: Arm, *, job: EvaluationJob) -> dict[str, float]:
    settings = config.kl_gpt3_callback
    arm = with_prefix(arm, settings.prefix)
    per_line = has_control_per_line(arm.checkpoint, config)
    reference = _reference(config, job=job)
    samples = reference_samples(reference, settings, cache=job.cache)
    if samples is not None:
        return kl_rows(info_on_samples(samples, arm, control_per_line=per_line))
    assert isinstance(reference, Arm)
    if not reference.fingerprint:
        reference = described(reference, check_arm(reference))
    texts = reference_texts(
        reference, num_samples=settings.num_samples, max_tokens=settings.max_tokens, cache=job.cache
    )
    kl = measure_kl(
        reference,
        arm,
        texts,
        control_per_line=per_line,
        reference_per_line=has_control_per_line(reference.checkpoint, config),
        cache=job.cache,
    )
    return kl_rows(kl_info(kl, reference=reference.name))


def _reference(config: Config, *, job: EvaluationJob) -> Reference:
    settings = config.kl_gpt3_callback
    if settings.reference_samples is not None:
        return read_reference_samples(settings.reference_samples)
    assert settings.reference is not None
    name, _, source = settings.reference.partition("=")
    if source.startswith(("http://", "https://")):
        endpoint = parse_endpoint(
            source, option="kl_gpt3_callback.reference", allow_plain_http=settings.allow_plain_http
        )
        return Arm(name=name, url=endpoint.url, model=name, key=endpoint.key, source=endpoint.url)
    directory = Path(source)
    engine = _load(directory, config, job=job)
    return Arm(
        name=name,
        url="",
        model=name,
        source=source,
        fingerprint=fingerprint(directory),
        checkpoint=engine.info,
        client=InProcessModel(name, engine),
    )
