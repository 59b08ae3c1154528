"""Weights & Biases. No other module imports wandb.

The driver sends it the rows of metrics.jsonl, so no key travels to the workers, and a tracker that hangs does not stop
the training.
"""

import hashlib
import html
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from phf_ray.errors import ConfigError
from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import EVALUATION, STEP
from phf_ray.runs.samples import all_sample_tables, sample_tables
from phf_ray.storage.files import write_text

log = logging.getLogger(__name__)


_EVAL_STEP = "objective/eval/tokens_seen_during_eval"


class WandbTracker:
    """Sends a run's rows to Weights & Biases. A resumed run continues its wandb run."""

    def __init__(self, run: RunDirectory, wandb_run: Any) -> None:
        self._run = run
        self._wandb_run = wandb_run
        self._wandb_run.define_metric("train/tokens_seen")
        self._wandb_run.define_metric("*", step_metric="train/tokens_seen")
        self._defined: set[str] = set()

    def __call__(self, row: Mapping[str, Any]) -> None:
        if EVALUATION in row:
            row = {**row, **sample_tables(self._run, int(row[STEP]))}
        for name in row:
            # Define full names, which take precedence over patterns.
            if name.startswith("objective/eval/") and name not in (*self._defined, _EVAL_STEP):
                self._defined.add(name)
                self._wandb_run.define_metric(name, step_metric=_EVAL_STEP)
        self._wandb_run.log({key: _as_wandb(value) for key, value in row.items() if value is not None})

    def close(self, *, exit_code: int) -> None:
        try:
            self._show_all_samples()
        except Exception as error:  # noqa: BLE001  (code of a library: the run is over, whatever it raises)
            log.warning("wandb did not get the table of all samples: %s; they are in %s", error, self._run.evaluations)
        try:
            self._wandb_run.finish(exit_code=exit_code)
        except Exception as error:  # noqa: BLE001  (code of a library: the run is over, whatever it raises)
            log.warning("wandb could not finish its run: %s; metrics.jsonl has everything", error)

    def _show_all_samples(self) -> None:
        import wandb

        # wandb would cut a longer table at its end, where the samples of the final weights are.
        tables = all_sample_tables(self._run, max_rows=wandb.Table.MAX_ARTIFACT_ROWS)
        if tables:
            last = self._run.read_evaluation(self._run.evaluated_steps()[-1])
            self({"train/tokens_seen": last["train/tokens_seen"], **tables})


def _as_wandb(value: Any) -> Any:
    import wandb

    if not isinstance(value, Mapping):
        return value
    if "pre" in value:
        # Show texts verbatim, not as markup.
        shown = "".join(f"<pre>{html.escape(text)}</pre>\n" for text in value["pre"])
        return wandb.Html(shown, inject=False)
    if "counts" in value:
        return wandb.Histogram(np_histogram=(value["counts"], value["edges"]))
    return wandb.Table(columns=list(value["columns"]), data=[list(row) for row in value["rows"]])


_MODES = ("online", "offline", "shared", "disabled", "run", "dryrun")


def wants_wandb() -> bool:
    """Whether the environment asks for Weights & Biases. An empty variable counts as one that is not set.

    Raises ConfigError for a WANDB_MODE that wandb does not know.
    """
    mode = os.environ.get("WANDB_MODE", "").strip()
    if mode and mode not in _MODES:
        raise ConfigError(f"WANDB_MODE={mode!r} is unknown; use one of {', '.join(_MODES)}, or unset it")
    return mode != "disabled" and bool(mode or os.environ.get("WANDB_API_KEY", "").strip())


def _init(**settings: Any) -> Any:
    """Return a wandb run, or None with a warning if wandb is not available. Raises ConfigError for a bad setting."""
    # wandb refuses many of its variables if they are empty, as a manifest or a shell leaves them.
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
        del os.environ[name]
    import wandb

    try:
        return wandb.init(project=os.environ.get("WANDB_PROJECT", "phf-ray"), resume="allow", **settings)
    except wandb.errors.Error as error:
        log.warning("wandb is not available (%s); everything is on disk, in %s", error, settings["dir"])
        return None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"wandb refuses its settings: {problems}; correct or unset these WANDB_ variables") from None


def start_tracker(
    run: RunDirectory, *, group: str | None, tags: Sequence[str], config: Mapping[str, Any]
) -> WandbTracker | None:
    """Return None if wandb is not requested or does not answer; metrics.jsonl has everything."""
    if not wants_wandb():
        return None
    id_path = run.path / "wandb_id"
    if not id_path.exists():
        write_text(id_path, uuid.uuid4().hex[:12])
    wandb_run = _init(
        id=id_path.read_text(encoding="utf-8"),
        name=run.path.name,
        group=group,
        tags=list(tags),
        config=dict(config),
        dir=str(run.path),
    )
    return None if wandb_run is None else WandbTracker(run, wandb_run)


_FINISHED_STEPS = {
    "generation/*": "train/tokens_seen",
    "KL/*": "train/tokens_seen",
    "capabilities/*": "train/tokens_seen",
    # Metrics of an attack, named as in the original code.
    "best_*": "red_team/round",
    "average_score": "red_team/round",
    "round_*": "red_team/round",
    "target_lm_responses": "red_team/round",
}
"""Pattern of metrics -> the metric on their x-axis."""


def track_finished(
    directory: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    identity: str,
    group: str,
    config: Mapping[str, Any],
) -> bool:
    """Log finished work, such as an evaluation, as a wandb run. Return False if wandb is not requested or unavailable.

    `identity`: two calls with the same identity continue one wandb run. A value may be a table, `{columns, rows}`, a
    histogram, `{counts, edges}`, or texts to show verbatim, `{pre}`.
    """
    if not wants_wandb():
        return False
    run = _init(
        id=hashlib.blake2b(identity.encode(), digest_size=6).hexdigest(),
        name=name,
        group=group,
        config=dict(config),
        dir=str(directory),
        reinit="finish_previous",
    )
    if run is None:
        return False
    for pattern, step in _FINISHED_STEPS.items():
        run.define_metric(step)
        run.define_metric(pattern, step_metric=step)
    for row in rows:
        run.log({key: _as_wandb(value) for key, value in row.items() if value is not None})
    run.finish()
    return True
