"""A training run on disk.

    config.json      the configuration with method and overrides merged in
    plan.json        values derived from it and the blocks: number of steps, thresholds as numbers, hash of the blocks
    metrics.jsonl    one row per logged step, each step once
    checkpoints/     step-00000500/ ..., each complete or absent
    evaluations/     step-00000500/ ..., `weights` until they are evaluated, then `metrics.json` and `samples.parquet`
    summary.json     how the run ended; a `finished` run is never trained again

One process writes at a time: the last one to start claims the directory, and an orphan of an earlier start notices.
"""

import contextlib
import json
import math
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.runs.changes import LEARNED_FROM, changed_settings, with_defaults
from phf_ray.runs.rows import EVALUATION, STEP, parse_row, row_key
from phf_ray.runs.starts import may_be_under_way
from phf_ray.storage.files import sync, write_text

COMPLETE = "COMPLETE"
ROLLOUTS = "rollouts"
"""Folder of the rounds of a run that learns from its own answers."""
ANOTHER_RUN = "choose another --run-name"
"""In errors: the way out for who gave the command that trains."""


class RunDirectory:
    """`<storage-path>/<run-name>/` on a file system that all workers see."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.evaluations = self.path / "evaluations"
        self._claim: str | None = None
        """What this process claimed; None: it never did, and nobody can take over from it."""
        self._own_rows: tuple[int, int] | None = None
        """Device and inode of metrics.jsonl as this process left it when it took over."""

    # --- What the run is ---

    def prepare(self, *, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Create the directory, or check that it holds this run.

        A run that ended with nothing to keep gives its place to a run with other settings. Raises ConfigError that
        lists the keys that differ.
        """
        if changed := self._changes(config=config, plan=plan):
            self._refuse_unless_empty(changed)
            self._forget_empty_run()
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        # Write the plan first: the directory holds a run as soon as config.json exists.
        self._write_json("plan.json", plan)
        self._write_json("config.json", config)

    def read_config(self) -> dict[str, Any]:
        """Return the configuration of the run that is here, empty if there is none."""
        return self._read_json("config.json") or {}

    def check(self, *, config: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> None:
        """Raise ConfigError if the directory holds a run with another configuration or plan.

        `plan`: the part of it that is known already.
        """
        if changed := self._changes(config=config, plan=plan):
            self._refuse_unless_empty(changed)

    def _refuse_unless_empty(self, changed: Sequence[str]) -> None:
        if self._is_empty_run():
            return
        remedy = f"{ANOTHER_RUN}, or undo these changes to resume"
        if not self.complete_checkpoints():
            remedy = f"the run has no checkpoint yet: stop it and remove {self.path}, or {remedy}"
        raise ConfigError(
            f"{self.path} holds a run with other settings:\n"
            + "\n".join(f"  - {line}" for line in changed)
            + f"\n{remedy}"
        )

    def _changes(self, *, config: Mapping[str, Any], plan: Mapping[str, Any] | None) -> list[str]:
        before = self._read_json("config.json")
        if not before:
            return []
        changed = changed_settings(with_defaults(before), with_defaults(config), sections=LEARNED_FROM)
        if plan is not None:
            # An older version's plan lacks the figures that were added since. They follow from what is compared here.
            stored = self._read_json("plan.json")
            old = {key: value for key, value in stored.items() if key in plan}
            new = {key: value for key, value in plan.items() if key in old}
            changed += changed_settings({"plan": old}, {"plan": new}, sections=("plan",))
        return changed

    def _is_empty_run(self) -> bool:
        """Whether no command works on the run, and the run failed before it had anything worth keeping."""
        has_answers = any((self.path / ROLLOUTS).glob("round-*/samples.parquet"))
        return not (has_answers or self.complete_checkpoints() or self.read_summary() or may_be_under_way(self.path))

    def _forget_empty_run(self) -> None:
        for name in ("metrics.jsonl", "wandb_id", "owner.json", "failure.json"):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.evaluations, self.checkpoints, self.path / ROLLOUTS):
            shutil.rmtree(folder, ignore_errors=True)

    # --- Who writes ---

    def claim(self, workers: Sequence[Mapping[str, Any]] = ()) -> str:
        """Become the writer, and return the claim. Removes the leftovers of a writer that was killed.

        An earlier writer that still lives completes nothing from here on, so the newest checkpoint stays what it is.
        `workers`: where each rank runs, so that its process can be found.
        """
        self._claim = uuid.uuid4().hex
        owner = {
            "claim": self._claim,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "workers": [dict(w) for w in workers],
        }
        self._write_json("owner.json", owner)
        for unfinished in [*self.checkpoints.glob(".writing-*"), *self.evaluations.glob("step-*/.writing-*")]:
            self._remove(unfinished)
        for deleted in [*self.checkpoints.glob(".deleting-*"), *self.evaluations.glob("step-*/.deleting-*")]:
            shutil.rmtree(deleted, ignore_errors=True)
        return self._claim

    def is_claimed_by(self, claim: str) -> bool:
        return self.current_claim() == claim

    def current_claim(self) -> str | None:
        return self._read_json("owner.json").get("claim")

    def _is_taken_over(self) -> bool:
        return self._claim is not None and not self.is_claimed_by(self._claim)

    def request_stop(self) -> None:
        """Ask the running training to save and stop."""
        write_text(self.path / "stop", "")

    def clear_stop(self) -> None:
        (self.path / "stop").unlink(missing_ok=True)

    def is_stop_requested(self) -> bool:
        return (self.path / "stop").exists()

    # --- Metrics ---

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a row of numbers, histograms ({"edges", "counts"}) and tables ({"columns", "rows"}), by name.

        NaN and infinity become null, because JSON has neither. If another start took over, it trains the row's step
        again, and the row is not written.
        """
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        with self.metrics_path.open("a", encoding="utf-8") as file:
            # Asked of the open file: one that is replaced after this takes the row with it.
            if self._own_rows in (None, _identity(os.fstat(file.fileno()))):
                file.write(json.dumps(values) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all rows by step, including those of evaluations. Skips a line that a crash cut short."""
        rows = [row for row in self._read_rows() if EVALUATION not in row]
        rows += [self.read_evaluation(step) for step in self.evaluated_steps()]
        return sorted(rows, key=lambda row: int(row[STEP]))

    def drop_metrics_after(self, step: int) -> None:
        """Remove the rows of steps that will be trained again. Rows of an earlier start get in no more."""
        self._write_rows([row for row in self._read_rows() if row[STEP] <= step])
        self._own_rows = _identity(self.metrics_path.stat())

    def merge_evaluations(self) -> None:
        """Write the evaluations' results into metrics.jsonl. Nobody else may write to it."""
        self._write_rows(self.read_metrics())
        self._own_rows = None

    def _read_rows(self) -> list[dict[str, Any]]:
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines()
        # Runs of older code may have a row of an orphan beside that of the start that took over.
        return list({row_key(row): row for line in lines if (row := parse_row(line))}.values())

    def _write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    # --- Evaluations outside the training loop ---

    def evaluation_folder(self, step: int) -> Path:
        return self.evaluations / f"step-{step:08d}"

    def hand_out_weights(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a directory of weights to evaluate, unless this step has weights or was evaluated.

        Like a checkpoint, the directory appears when everything is on the disk, and not if another start took over. If
        `write` fails, the step's folder stays.
        """
        folder = self.evaluation_folder(step)
        if self.is_handed_out(step):
            return
        scratch = folder / f".writing-weights-{uuid.uuid4().hex[:8]}"
        scratch.mkdir(parents=True)
        try:
            write(scratch)
            for path in scratch.rglob("*"):
                if path.is_file():
                    sync(path)
            # As in `commit_checkpoint`.
            if not self._is_taken_over():
                scratch.rename(folder / "weights")
        finally:
            # On a full disk, half-written weights would take the space of the next checkpoint.
            shutil.rmtree(scratch, ignore_errors=True)
        sync(folder)

    def is_handed_out(self, step: int) -> bool:
        folder = self.evaluation_folder(step)
        return (folder / "weights").exists() or (folder / "metrics.json").exists()

    def handed_out(self) -> list[int]:
        """Return the steps that were to be evaluated, in order, including those whose weights could not be written."""
        return sorted(_step_of(path) for path in self.evaluations.glob("step-*"))

    def steps_to_evaluate(self) -> list[int]:
        """Return the steps whose weights are not yet evaluated, in order."""
        found = [path.parent for path in self.evaluations.glob("step-*/weights")]
        return sorted(_step_of(folder) for folder in found if not (folder / "metrics.json").exists())

    def evaluated_steps(self) -> list[int]:
        """Return the evaluated steps, in order."""
        return sorted(_step_of(path.parent) for path in self.evaluations.glob("step-*/metrics.json"))

    def write_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        """Store the results of a step, and remove its weights."""
        values = {key: value if math.isfinite(value) else None for key, value in row.items()}
        write_text(self.evaluation_folder(step) / "metrics.json", json.dumps(values, indent=2) + "\n")
        self.remove_evaluated_weights()

    def read_evaluation(self, step: int) -> dict[str, Any]:
        return self._read_json(f"evaluations/step-{step:08d}/metrics.json")

    def remove_evaluated_weights(self) -> None:
        for step in self.evaluated_steps():
            shutil.rmtree(self.evaluation_folder(step) / "weights", ignore_errors=True)

    # --- Checkpoints ---

    def commit_checkpoint(self, step: int, write: Callable[[Path], None], *, keep: int | None) -> Path | None:
        """Let `write` fill a directory, make it the checkpoint of `step`, and delete all but the newest `keep`.

        A rename gives the directory its name when everything is on the disk. A marker lists the files and their sizes.
        Returns None if another start took over before that: it has chosen the checkpoint that it goes on from, so none
        appears and none is deleted.
        """
        final = self.checkpoints / f"step-{step:08d}"
        scratch = self.checkpoints / f".writing-{final.name}-{uuid.uuid4().hex[:8]}"
        scratch.mkdir(parents=True)
        try:
            self._fill(scratch, write)
            # A claim before this took the scratch away, and what was written since made it anew, but not all of it.
            # A claim after this takes it away, too, and the rename fails.
            if self._is_taken_over():
                return None
            if final.exists():  # an incomplete checkpoint
                self._remove(final)
            scratch.rename(final)
        except Exception:
            if self._is_taken_over():
                return None
            raise
        finally:
            # On a full disk, half a checkpoint would take the room of the message that says so.
            shutil.rmtree(scratch, ignore_errors=True)
        sync(self.checkpoints)
        if keep is not None:
            for old in self.complete_checkpoints()[:-keep]:
                self._remove(old)
        return final

    @staticmethod
    def _fill(scratch: Path, write: Callable[[Path], None]) -> None:
        write(scratch)
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        for path in files:
            sync(path)
        # The model card is rewritten when more is known about the model; the other files never change.
        sizes = {str(path.relative_to(scratch)): path.stat().st_size for path in files if path.name != "README.md"}
        write_text(scratch / COMPLETE, json.dumps(sizes, indent=2) + "\n")

    def complete_checkpoints(self) -> list[Path]:
        """Return the complete checkpoints by step, oldest first."""
        return [path for path in sorted(self.checkpoints.glob("step-*")) if is_complete(path)]

    def latest_checkpoint(self) -> Path | None:
        return max(self.complete_checkpoints(), default=None)

    def latest_step(self) -> int:
        """Return the step of the newest complete checkpoint, or 0 if there is none."""
        latest = self.latest_checkpoint()
        return 0 if latest is None else _step_of(latest)

    @staticmethod
    def _remove(folder: Path) -> None:
        # Rename first: half a checkpoint must not look like a checkpoint, and half a scratch not become one.
        doomed = folder.with_name(f".deleting-{folder.name.lstrip('.')}-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(FileNotFoundError):  # its writer, or another start, was faster
            folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    # --- End ---

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        """Store an error that would come back if the workers were restarted."""
        self._write_json("failure.json", failure)

    def read_failure(self) -> dict[str, Any]:
        return self._read_json("failure.json")

    def clear_failure(self) -> None:
        (self.path / "failure.json").unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write_json("summary.json", summary)

    def read_summary(self) -> dict[str, Any]:
        """Return the summary, which is empty until the run ends."""
        return self._read_json("summary.json")

    def _write_json(self, name: str, values: Mapping[str, Any]) -> None:
        write_text(self.path / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        if not path.exists():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}; {ANOTHER_RUN}") from None
        return dict(values)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that the marker lists is there with its size."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
