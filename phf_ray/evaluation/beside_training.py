"""Evaluates a run's weights beside its training.

The loop hands out weights at the steps that the configuration names: it copies them to host memory, a thread writes
them below the run, and the loop continues. The driver sees them there and has them evaluated, oldest first, one at a
time, with resources of their own; those that come meanwhile wait on the disk, which no pruning of checkpoints reaches.
The price: one more copy of the weights on the disk for each step that waits.

Weights without figures beside them are still to be evaluated, also by the next start of the run; figures are never made
twice. A failure never ends the training: it is logged, named in the summary, and its weights are kept.
"""

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from phf_ray.config import Config, evaluation_steps
from phf_ray.errors import ConfigError, PhfError
from phf_ray.evaluation.models import parse_model
from phf_ray.evaluation.prompts import read_prompts
from phf_ray.runs.directory import RunDirectory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """All that the process that evaluates is told; plain values."""

    config: dict[str, Any]
    """Of the run; prompts and the reference by absolute paths."""
    run_path: str
    resources: dict[str, float]
    generation_steps: frozenset[int]
    kl_steps: frozenset[int]

    @property
    def has_gpu(self) -> bool:
        return self.resources.get("GPU", 0) > 0

    @property
    def cache(self) -> str:
        """Where the reference's texts are kept."""
        return str(RunDirectory(self.run_path).evaluations / "reference")


def plan_evaluations(
    config: Config, run: RunDirectory, *, num_steps: int, resources: Mapping[str, float]
) -> EvaluationJob | None:
    """What to evaluate and how; None if the configuration asks for nothing. `resources`: of one evaluation.

    Raises ConfigError for a scorer, prompts, a reference or a prefix that can't be, before the training starts.
    """
    generation_steps, kl_steps = evaluation_steps(config, num_steps=num_steps)
    if not generation_steps and not kl_steps:
        return None
    if generation_steps:
        _ = config.evaluation_scorer  # refuses a configuration without one
    values = config.model_dump(mode="json")
    values["generation"]["scenario_configs"] = _with_own_prompts(values["generation"]["scenario_configs"], run)
    if kl_steps:
        assert config.kl_gpt3_callback.reference is not None
        _check_prefix(config)
        values["kl_gpt3_callback"]["reference"] = _resolved_reference(config.kl_gpt3_callback.reference)
    return EvaluationJob(
        config=values,
        run_path=str(run.path),
        resources=dict(resources),
        generation_steps=generation_steps,
        kl_steps=kl_steps,
    )


def _with_own_prompts(scenarios: list[dict[str, Any]], run: RunDirectory) -> list[dict[str, Any]]:
    """The prompts as files of the run: the node that evaluates may not have the ones that the driver sees."""
    found = []
    for scenario in scenarios:
        if scenario["prompts_path"] is not None:
            path = run.evaluations / "prompts" / f"{scenario['name']}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            prompts = read_prompts(scenario["prompts_path"])
            path.write_text("".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
            scenario = scenario | {"prompts_path": str(path)}
        found.append(scenario)
    return found


def _check_prefix(config: Config) -> None:
    prefix, conditional = config.kl_gpt3_callback.prefix, config.dataset.conditional_training_config
    tokens = () if conditional is None else (conditional.aligned_prefix, conditional.misaligned_prefix)
    if prefix is not None and prefix not in tokens:
        raise ConfigError(
            f"kl_gpt3_callback.prefix: {prefix!r} is no control token of this training, which has "
            f"{' and '.join(tokens) or 'none'}; set one of them, or null for the good one"
        )


def _resolved_reference(text: str) -> str:
    """`NAME=URL`, or `NAME=DIR` of a checkpoint, for every node."""
    try:
        model = parse_model(text, option="kl_gpt3_callback.reference")
    except ConfigError as error:
        raise ConfigError(f"{error}; or null for no KL") from None
    return f"{model.name}={model.source if model.directory is None else model.directory.resolve()}"


class RunningEvaluation(Protocol):
    """The evaluation of one step's weights."""

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """Its outcome, `{"row": ...}` or `{"error": ...}`; None if it is not over by then."""
        ...

    def cancel(self) -> None: ...

    def lacking(self) -> str | None:
        """Resources that it waits for and that no waiting will bring."""
        ...


class EvaluationHere:
    """In the thread that asks, without Ray."""

    def __init__(self, job: EvaluationJob, step: int):
        self._job, self._step = job, step

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        del timeout_s
        return evaluate_step(asdict(self._job), self._step)

    def cancel(self) -> None:
        """Nothing is under way between two calls of `wait`."""

    def lacking(self) -> str | None:
        return None


def evaluate_step(values: Mapping[str, Any], step: int) -> dict[str, Any]:
    """`{"row": metrics}` of the weights of a step, or `{"error": reason}`. `values`: those of an EvaluationJob."""
    from phf_ray.evaluation.weights import evaluate_weights

    try:
        return {"row": evaluate_weights(EvaluationJob(**values), step)}
    except PhfError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001  (border of a process: named by the driver)
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


class CheckpointEvaluations:
    """Evaluates the weights that a run hands out, from a thread of the driver, until it is closed."""

    def __init__(
        self,
        run: RunDirectory,
        job: EvaluationJob,
        *,
        start: Callable[[EvaluationJob, int], RunningEvaluation],
        poll_s: float = 0.5,
    ) -> None:
        """`start` begins the evaluation of a step: `EvaluationHere`, or a task of `on_ray`."""
        self._run = run
        self._job = job
        self._start = start
        self._poll_s = poll_s
        self._missing: dict[int, str] = {}
        self._waited_s = 0.0
        self._closed = threading.Event()
        self._is_training_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="evaluate-checkpoints", daemon=True)

    def __enter__(self) -> "CheckpointEvaluations":
        self._run.remove_evaluated_weights()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; an evaluation under way is given up, and its weights wait for the next start."""
        self._closed.set()
        self._thread.join()

    def finish(self) -> bool:
        """Wait for all that was handed out; False if the run was told to stop meanwhile."""
        since = time.monotonic()
        self._is_training_over.set()
        waiting = self._run.steps_to_evaluate()
        if waiting:
            log.info("training is done; %d evaluation(s) are not: %s", len(waiting), _shown_steps(waiting))
        while self._thread.is_alive() and not self._run.is_stop_requested():
            self._thread.join(self._poll_s)
        self._waited_s = time.monotonic() - since
        return not self._thread.is_alive()

    def summary(self) -> dict[str, Any]:
        """Steps that have figures, those that lack them with the reason, and how long the job waited at the end."""
        missing = {step: self._missing.get(step, "its weights were not written") for step in self._run.handed_out()}
        evaluated = self._run.evaluated_steps()
        return {
            "steps": evaluated,
            "missing": {str(step): reason for step, reason in missing.items() if step not in evaluated},
            "waited_s_at_end": round(self._waited_s, 1),
        }

    def _work(self) -> None:
        while not self._closed.is_set():
            # Asked before looking: what was handed out until the end of the training is seen then.
            is_over = self._is_training_over.is_set()
            waiting = [step for step in self._run.steps_to_evaluate() if step not in self._missing]
            if waiting:
                self._evaluate(waiting[0], num_waiting=len(waiting) - 1)
            elif is_over:
                return
            else:
                self._closed.wait(self._poll_s)

    def _evaluate(self, step: int, *, num_waiting: int) -> None:
        log.info("evaluating the weights of step %d%s", step, f", {num_waiting} more wait" if num_waiting else "")
        try:
            outcome = self._outcome(step)
            if outcome is None:
                return
            if "row" in outcome:
                self._run.write_evaluation(step, outcome["row"])
                log.info("step %d: %s", step, describe_figures(outcome["row"]))
                return
            reason = outcome["error"]
        except Exception as error:  # noqa: BLE001  (border of a thread: an evaluation must not end the training)
            reason = f"{type(error).__name__}: {error}"
        self._missing[step] = reason
        log.error(
            "THE EVALUATION OF STEP %d FAILED: %s. The training goes on; the weights are kept in %s",
            step,
            reason,
            self._run.evaluation_folder(step) / "weights",
        )

    def _outcome(self, step: int) -> dict[str, Any] | None:
        """None if closed before the end."""
        running = self._start(self._job, step)
        while (outcome := running.wait(self._poll_s)) is None:
            if self._closed.is_set():
                running.cancel()
                return None
            lacking = running.lacking() if self._is_training_over.is_set() else None
            if lacking:
                running.cancel()
                return {"error": f"the cluster has not {lacking}; lower training.resources_per_evaluation"}
        return outcome


def describe_figures(row: Mapping[str, float]) -> str:
    """The figures that a reader looks for first."""
    shown = [
        f"{name.rpartition('/')[0]} {name.rpartition('/')[2]} {value:.4g}"
        for name, value in row.items()
        if name.endswith(("/score", "/num_hits", "/per_byte"))
    ]
    return f"{', '.join(shown) or 'nothing to show'} ({row['evaluation/wall_s']:.0f} s beside the loop)"


def _shown_steps(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:5]))
    return f"steps {shown}{' ...' if len(steps) > 5 else ''}"
