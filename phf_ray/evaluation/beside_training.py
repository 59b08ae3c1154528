"""Evaluates a run's weights while the run trains.

At the steps that the configuration names, the loop copies the weights to host memory and continues; a thread writes the
copy to the run's directory. The driver finds the copy there and has it evaluated with resources of its own: one step at
a time, the oldest first. Later copies wait on the disk, where no pruning of checkpoints reaches them. The price: one
more copy of the weights on the disk for each waiting step.

Weights without figures beside them are still to be evaluated, even after a restart of the run; no step is evaluated
twice. A failure never ends the training: the driver logs it, names it in the summary and keeps the weights.
"""

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from phf_ray.config import Config, KLConfig, evaluation_steps
from phf_ray.errors import ConfigError, PhfError
from phf_ray.evaluation.kl.sample_file import file_of_samples
from phf_ray.evaluation.models import parse_model
from phf_ray.evaluation.prompts import read_prompts
from phf_ray.http.keys import with_key_env
from phf_ray.runs.directory import RunDirectory
from phf_ray.storage.files import write_file, write_text

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """Everything that the evaluating process needs, as plain values."""

    config: dict[str, Any]
    """The run's configuration, with absolute paths of the prompts and the reference."""
    run_path: str
    resources: dict[str, float]
    generation_steps: frozenset[int]
    kl_steps: frozenset[int]

    @property
    def has_gpu(self) -> bool:
        return self.resources.get("GPU", 0) > 0

    @property
    def cache(self) -> str:
        """Folder for the reference's texts."""
        return str(RunDirectory(self.run_path).evaluations / "reference")


def plan_evaluations(
    config: Config, run: RunDirectory, *, num_steps: int, resources: Mapping[str, float]
) -> EvaluationJob | None:
    """Return what to evaluate and how; None if the configuration asks for nothing. `resources`: for one evaluation.

    Raises ConfigError before the training starts if the scorer, the prompts, the reference or the prefix is invalid.
    """
    generation_steps, kl_steps = evaluation_steps(config, num_steps=num_steps)
    if not generation_steps and not kl_steps:
        return None
    if generation_steps:
        _ = config.evaluation_scorer  # raises if the configuration names no scorer
    values = config.model_dump(mode="json")
    values["generation"]["scenario_configs"] = _with_own_prompts(values["generation"]["scenario_configs"], run)
    if kl_steps:
        _check_prefix(config)
        values["kl_gpt3_callback"] |= _own_reference(config.kl_gpt3_callback, run, key_envs=config.key_envs)
    return EvaluationJob(
        config=values,
        run_path=str(run.path),
        resources=dict(resources),
        generation_steps=generation_steps,
        kl_steps=kl_steps,
    )


def check_kl_settings(config: Config) -> None:
    """Raise ConfigError if a KL during training has a bad prefix, reference or file of samples. Asks no server."""
    settings = config.kl_gpt3_callback
    is_due = any(
        (settings.every_n_steps, settings.force_call_on, settings.run_on_train_start, settings.run_on_train_end)
    )
    if not is_due or (settings.reference is None and settings.reference_samples is None):
        return
    _check_prefix(config)
    if settings.reference_samples is not None:
        file_of_samples(settings.reference_samples)
    else:
        _checked_reference(settings, key_envs=config.key_envs)


def _with_own_prompts(scenarios: list[dict[str, Any]], run: RunDirectory) -> list[dict[str, Any]]:
    """Copy the prompts into the run: the node that evaluates may not see the driver's files."""
    found = []
    for scenario in scenarios:
        if scenario["prompts_path"] is not None:
            path = run.evaluations / "prompts" / f"{scenario['name']}.jsonl"
            prompts = read_prompts(scenario["prompts_path"])
            write_text(path, "".join(json.dumps({"text": prompt}) + "\n" for prompt in prompts))
            scenario = scenario | {"prompts_path": str(path)}
        found.append(scenario)
    return found


def _check_prefix(config: Config) -> None:
    prefix, conditional = config.kl_gpt3_callback.prefix, config.dataset.conditional_training_config
    tokens = () if conditional is None else (conditional.aligned_prefix, conditional.misaligned_prefix)
    if prefix is not None and prefix not in tokens:
        raise ConfigError(
            f"kl_gpt3_callback.prefix: {prefix!r} is not a control token of this training, which has "
            f"{' and '.join(tokens) or 'none'}; set one of them, or null for the good one"
        )


def _own_reference(settings: KLConfig, run: RunDirectory, *, key_envs: Mapping[str, str]) -> dict[str, str]:
    """Return the reference in a way that every node understands; a file of its texts is copied into the run."""
    if settings.reference_samples is None:
        return {"reference": _checked_reference(settings, key_envs=key_envs)}
    content = file_of_samples(settings.reference_samples)
    path = run.evaluations / "reference" / Path(settings.reference_samples).name
    write_file(path, content)
    return {"reference_samples": str(path)}


def _checked_reference(settings: KLConfig, *, key_envs: Mapping[str, str]) -> str:
    assert settings.reference is not None
    text = with_key_env(settings.reference, key_envs)
    return _resolved_reference(text, allow_plain_http=settings.allow_plain_http)


def _resolved_reference(text: str, *, allow_plain_http: bool) -> str:
    """Return `NAME=URL[,key_env=VARIABLE]`, or `NAME=DIR` with an absolute path to the checkpoint, for every node."""
    try:
        model = parse_model(text, option="kl_gpt3_callback.reference", allow_plain_http=allow_plain_http)
    except ConfigError as error:
        raise ConfigError(f"{error}; or null for no KL") from None
    # With its key_env: the process that evaluates finds the key itself.
    return text if model.directory is None else f"{model.name}={model.directory.resolve()}"


class RunningEvaluation(Protocol):
    """The evaluation of one step's weights."""

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the outcome, `{"row": ...}` or `{"error": ...}`; None if there is none after `timeout_s`."""
        ...

    def cancel(self) -> None: ...

    def lacking(self) -> str | None:
        """Return the resources that the evaluation needs and the cluster lacks; None if it has them all."""
        ...


class EvaluationHere:
    """Runs the evaluation in the calling thread, without Ray."""

    def __init__(self, job: EvaluationJob, step: int):
        self._job, self._step = job, step

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        del timeout_s
        return evaluate_step(asdict(self._job), self._step)

    def cancel(self) -> None:
        """Do nothing: no evaluation runs between two calls of `wait`."""

    def lacking(self) -> str | None:
        return None


def evaluate_step(values: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Evaluate a step's weights: `{"row": metrics}` or `{"error": reason}`. `values`: an EvaluationJob as a dict."""
    from phf_ray.evaluation.weights import evaluate_weights

    try:
        return {"row": evaluate_weights(EvaluationJob(**values), step)}
    except PhfError as error:
        return {"error": str(error)}
    except Exception as error:  # noqa: BLE001  (border of a process: the driver reports the error)
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


class CheckpointEvaluations:
    """Evaluates the weights that a run hands out, in a thread of the driver, until it is closed."""

    def __init__(
        self,
        run: RunDirectory,
        job: EvaluationJob,
        *,
        start: Callable[[EvaluationJob, int], RunningEvaluation],
        poll_s: float = 0.5,
    ) -> None:
        """`start` begins the evaluation of a step: `EvaluationHere`, or the task in `on_ray`."""
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
        """Stop. A running evaluation is cancelled, and its weights wait for the next start of the run."""
        self._closed.set()
        self._thread.join()

    def finish(self) -> bool:
        """Wait until all handed-out weights are evaluated; return False if the run is told to stop first."""
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
        """Return the steps with figures, the steps without figures and why, and how long the job waited at the end."""
        missing = {step: self._missing.get(step, "its weights were not written") for step in self._run.handed_out()}
        evaluated = self._run.evaluated_steps()
        return {
            "steps": evaluated,
            "missing": {str(step): reason for step, reason in missing.items() if step not in evaluated},
            "waited_s_at_end": round(self._waited_s, 1),
        }

    def _work(self) -> None:
        while not self._closed.is_set():
            # Read the flag before looking for weights, so that weights handed out just before the end are not missed.
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
        """Return the outcome; None if closed first."""
        running = self._start(self._job, step)
        while (outcome := running.wait(self._poll_s)) is None:
            if self._closed.is_set():
                running.cancel()
                return None
            lacking = running.lacking() if self._is_training_over.is_set() else None
            if lacking:
                running.cancel()
                return {"error": f"the cluster does not have {lacking}; lower training.resources_per_evaluation"}
        return outcome


def describe_figures(row: Mapping[str, float]) -> str:
    """Return a line with the figures that a reader looks for first."""
    shown = [
        f"{name.rpartition('/')[0]} {name.rpartition('/')[2]} {value:.4g}"
        for name, value in row.items()
        if name.endswith(("/score", "/num_hits", "/per_byte"))
    ]
    return f"{', '.join(shown) or 'nothing to show'} ({row['evaluation/wall_s']:.0f} s beside the loop)"


def _shown_steps(steps: list[int]) -> str:
    shown = ", ".join(map(str, steps[:5]))
    return f"steps {shown}{' ...' if len(steps) > 5 else ''}"
