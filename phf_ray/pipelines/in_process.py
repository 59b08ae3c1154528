"""Samples, scores and KL of weights that a training run handed out, in one process and without a server.

The pipelines over HTTP ask for paths; here the same paths are answered by an engine and a scorer in this process. So
the requests, their seeds, the scores and the figures are those of `jobs.evaluate_lm` for the same checkpoint.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from phf_ray.checkpoint import fingerprint
from phf_ray.config import Config, Scenario, parse_config
from phf_ray.generation import Completion, Engine, EngineSettings, GenerationRequest, generate, load_engine
from phf_ray.pipelines.checkpoint_evaluation import EvaluationJob
from phf_ray.pipelines.evaluate import Arm, Plan, Probe, check_arm, described, draw_unit, make_plan, request_body
from phf_ray.pipelines.kl import has_control_per_line, measure_kl, reference_texts, with_prefix
from phf_ray.report import ArmInfo, Evaluation, Sample, build_report, write_samples
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import STEP
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask, without_gpus

SEED = 0
"""Of the samples: every step gets the same prompts and the same random numbers."""
# Counts of a report's table that are figures of the original, or tell of a failure.
_COUNTS = {"num_hits", "num_unscored"}


# --- A server's answers, without a server -----------------------------------------------------------------------------


class LocalModel:
    """A model that is asked as a server is. Several threads may ask; the engine answers one call at a time."""

    def __init__(self, name: str, engine: Engine):
        self._name = name
        self._engine = engine
        self._lock = threading.Lock()

    def get(self, path: str) -> dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": self._name, "owned_by": "phf-ray", "max_model_len": self._engine.context}]}
        assert path.startswith("/tokenizer_info"), path
        tokenizer = self._engine.strings.tokenizer
        return {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            return {"tokens": self._tokenize(body["prompt"], add_special_tokens=body["add_special_tokens"])}
        assert path == "/v1/completions", path
        [choices] = self.complete([body])
        return {"choices": choices}

    def complete(self, bodies: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        """The choices of each completion request; all of them share the engine's batch."""
        requests = [_requests(body) for body in bodies]
        with self._lock:
            completions = iter(generate(self._engine, [request for group in requests for request in group]))
        return [[self._choice(index, next(completions)) for index in range(len(group))] for group in requests]

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        strings = self._engine.strings
        if add_special_tokens:
            return strings.encode(text)[0]
        return list(strings.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _choice(self, index: int, completion: Completion) -> dict[str, Any]:
        strings = self._engine.strings
        if completion.logprobs is None:
            logprobs: dict[str, Any] = {"tokens": [strings.text_of(token_id) for token_id in completion.token_ids]}
        else:
            logprobs = {
                "tokens": [record.token for record in completion.logprobs],
                "token_logprobs": [record.logprob for record in completion.logprobs],
                "text_offset": [record.text_offset for record in completion.logprobs],
            }
        return {
            "index": index,
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "logprobs": logprobs,
            "token_ids": list(completion.token_ids),
        }


def _requests(body: Mapping[str, Any]) -> list[GenerationRequest]:
    """One per choice, as the server makes them of the fields that the pipelines send."""
    prompts = body["prompt"]
    if isinstance(prompts, str):
        prompts = [prompts]
    echo = bool(body.get("echo", False))
    num_choices = int(body.get("n", 1))
    return [
        GenerationRequest(
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            max_tokens=body["max_tokens"],
            min_tokens=body.get("min_tokens", 0),
            temperature=body.get("temperature", 1.0),
            top_p=body.get("top_p", 1.0),
            top_k=body.get("top_k", 0),
            seed=body.get("seed", 0),
            choice=index * num_choices + number,
            # Log-probabilities of samples are asked for only to learn how many tokens they have: that is known here.
            logprobs=body.get("logprobs") if echo else None,
            echo=echo,
            control=body.get("control"),
        )
        for index, prompt in enumerate(prompts)
        for number in range(num_choices)
    ]


class LocalScores:
    """A scorer that is asked as a server is. It runs in a process of its own: a text on which it hangs has no score,
    and a reason."""

    def __init__(self, config: Config, *, has_gpu: bool):
        """`has_gpu`: one was lent to this process."""
        setup = ScoringSetup(
            (dict(config.evaluation_scorer),), segmenter="document", text_timeout_s=config.scoring.text_timeout_s
        )
        self._process = ScoringProcess(setup if has_gpu else without_gpus(setup))
        [identity] = self._process.identities
        self.identity = identity.to_json()
        self.name = identity.name

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == "/v1/scores", path
        self._process.submit([ScoringTask(texts=(text,)) for text in body["input"]])
        scored = [outcome.scores[self.name] for outcome in self._process.collect().outcomes]
        data = [
            {"index": index, "score": scores[0], "error": errors[0]} for index, (scores, errors) in enumerate(scored)
        ]
        return {"scorer": self.identity, "data": data}

    def close(self) -> None:
        self._process.close()


# --- What is measured -------------------------------------------------------------------------------------------------


def evaluate_weights(job: EvaluationJob, step: int) -> dict[str, float]:
    """Row of metrics for the weights of `step`; the samples are written beside them.

    Raises errors of ours where a scorer, the reference or the weights can't be used.
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
        client=LocalModel("model", engine),
    )
    row: dict[str, float] = {STEP: step, "train/tokens_seen": engine.info.tokens_seen}
    if step in job.generation_steps:
        row |= _measure_samples(config, arm, output=folder, has_gpu=job.has_gpu)
    if step in job.kl_steps:
        row |= _measure_kl(config, arm, job=job)
    return row | {"evaluation/wall_s": time.monotonic() - started}


def _load(directory: Path, config: Config, *, job: EvaluationJob) -> Engine:
    # DIFFERS: ours measures weights loaded anew, in eval mode; original draws samples with dropout, from the model as
    # it trains.
    device = "cuda" if job.has_gpu else "cpu"
    return load_engine(directory, settings=EngineSettings(device=device, max_batch=config.generation.batch_size))


def _measure_samples(config: Config, arm: Arm, *, output: Path, has_gpu: bool) -> dict[str, float]:
    scores = LocalScores(config, has_gpu=has_gpu)
    try:
        plan = make_plan(config.generation.scenario_configs, [Probe(arm, check_arm(arm))], seeds=(SEED,))
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
        compat=config.compat,
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
    # Bits per byte are measured in the loop, and have a name of their own.
    return isinstance(value, int | float) and not is_count and key != "bits_per_byte"


def _draw(plan: Plan, scenario: Scenario, arm: Arm, *, scores: LocalScores) -> list[Sample]:
    assert isinstance(arm.client, LocalModel)
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
    assert settings.reference is not None
    arm = with_prefix(arm, settings.prefix)
    name, _, source = settings.reference.partition("=")
    if source.startswith(("http://", "https://")):
        reference = Arm(name=name, url=source, model=name, key=os.environ.get("OPENAI_API_KEY"), source=source)
        reference = described(reference, check_arm(reference))
    else:
        directory = Path(source)
        engine = _load(directory, config, job=job)
        reference = Arm(
            name=name,
            url="",
            model=name,
            source=source,
            fingerprint=fingerprint(directory),
            checkpoint=engine.info,
            client=LocalModel(name, engine),
        )
    texts = reference_texts(
        reference, num_samples=settings.num_samples, max_tokens=settings.max_tokens, cache=job.cache
    )
    kl = measure_kl(
        reference,
        arm,
        texts,
        control_per_line=has_control_per_line(arm.checkpoint, config),
        reference_per_line=has_control_per_line(reference.checkpoint, config),
        cache=job.cache,
    )
    row: dict[str, float] = {f"KL/{name}/num_impossible": kl.num_impossible}
    for per in ("per_sequence", "per_token", "per_byte"):
        estimate = getattr(kl, per)
        row |= {f"KL/{name}/{per}": estimate.mean, f"KL/{name}/{per}_error": estimate.standard_error}
    return row
