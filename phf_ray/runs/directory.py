"""A training run on disk.

    config.json      the configuration with method and overrides merged in
    plan.json        what follows from it and the blocks: number of steps, thresholds as numbers, hash of the blocks
    metrics.jsonl    one row per logged step, each step once
    checkpoints/     step-00000500/ ..., each complete or not there
    evaluations/     step-00000500/ ..., `weights` until they are evaluated, then `metrics.json` and `samples.parquet`
    summary.json     how the run ended; `finished` is never trained again

One process writes at a time: whoever starts last claims the directory, and an orphan of an earlier start sees that.
"""

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
from phf_ray.runs.changes import LEARNED_FROM, changed_settings
from phf_ray.runs.rows import EVALUATION, STEP, parse_row, row_key
from phf_ray.storage.files import sync, write_text

COMPLETE = "COMPLETE"


class RunDirectory:
    """`<storage-path>/<run-name>/` on a file system that all workers see."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.evaluations = self.path / "evaluations"

    # --- What the run is ---

    def prepare(self, *, config: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
        """Create the directory, or check that the run in it is this one.

        Raises ConfigError with the keys that differ.
        """
        self.check(config=config, plan=plan)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        # The plan first: the directory holds a run from the moment that config.json is there.
        self._write_json("plan.json", plan)
        self._write_json("config.json", config)

    def check(self, *, config: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> None:
        """Raises ConfigError if the directory holds a run with another configuration or, where it is given, plan."""
        before = self._read_json("config.json")
        if not before:
            return
        changed = changed_settings(before, config, sections=LEARNED_FROM)
        if plan is not None:
            changed += changed_settings({"plan": self._read_json("plan.json")}, {"plan": plan}, sections=("plan",))
        if changed:
            raise ConfigError(
                f"{self.path} holds a run with other settings:\n"
                + "\n".join(f"  - {line}" for line in changed)
                + "\nchoose another --run-name, or undo these changes to resume"
            )

    # --- Who writes ---

    def claim(self, workers: Sequence[Mapping[str, Any]] = ()) -> str:
        """Become the one that writes; returns the claim. Leftovers of whoever was killed while writing are removed.

        `workers`: where each rank runs, for whoever looks for its process.
        """
        claim = uuid.uuid4().hex
        owner = {
            "claim": claim,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "workers": [dict(w) for w in workers],
        }
        self._write_json("owner.json", owner)
        leftovers = [*self.checkpoints.glob(".writing-*"), *self.checkpoints.glob(".deleting-*")]
        for leftover in [*leftovers, *self.evaluations.glob("step-*/.writing-*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        return claim

    def is_claimed_by(self, claim: str) -> bool:
        return self.current_claim() == claim

    def current_claim(self) -> str | None:
        return self._read_json("owner.json").get("claim")

    def request_stop(self) -> None:
        """Ask the running training to save and end."""
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
        """Figures, histograms ({"edges", "counts"}) and tables ({"columns", "rows"}) by name.

        A figure that is no number becomes null: JSON has no NaN.
        """
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows by step, those of evaluations among them. A line cut short by a crash is left out."""
        rows = [row for row in self._read_rows() if EVALUATION not in row]
        rows += [self.read_evaluation(step) for step in self.evaluated_steps()]
        return sorted(rows, key=lambda row: int(row[STEP]))

    def drop_metrics_after(self, step: int) -> None:
        """Forget the rows of steps that will be trained again."""
        self._write_rows([row for row in self._read_rows() if row[STEP] <= step])

    def merge_evaluations(self) -> None:
        """Write the figures of evaluations into metrics.jsonl, to which nobody writes any more."""
        self._write_rows(self.read_metrics())

    def _read_rows(self) -> list[dict[str, Any]]:
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines()
        # An orphan of an earlier start may have written a row again before it saw that it is one.
        return list({row_key(row): row for line in lines if (row := parse_row(line))}.values())

    def _write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))

    # --- Evaluations beside the loop ---

    def evaluation_folder(self, step: int) -> Path:
        return self.evaluations / f"step-{step:08d}"

    def hand_out_weights(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill a directory of weights to evaluate, unless those of this step are there or were evaluated.

        As a checkpoint, it appears when everything is on the disk. Of one that fails the step's folder stays.
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
            scratch.rename(folder / "weights")
        finally:
            # On a full disk half of the weights would take the room of the next checkpoint.
            shutil.rmtree(scratch, ignore_errors=True)
        sync(folder)

    def is_handed_out(self, step: int) -> bool:
        folder = self.evaluation_folder(step)
        return (folder / "weights").exists() or (folder / "metrics.json").exists()

    def handed_out(self) -> list[int]:
        """Steps that were to be evaluated, in their order; also those whose weights could not be written."""
        return sorted(_step_of(path) for path in self.evaluations.glob("step-*"))

    def steps_to_evaluate(self) -> list[int]:
        """In their order."""
        found = [path.parent for path in self.evaluations.glob("step-*/weights")]
        return sorted(_step_of(folder) for folder in found if not (folder / "metrics.json").exists())

    def evaluated_steps(self) -> list[int]:
        """In their order."""
        return sorted(_step_of(path.parent) for path in self.evaluations.glob("step-*/metrics.json"))

    def write_evaluation(self, step: int, row: Mapping[str, float]) -> None:
        """Keep the figures of a step; its weights are not needed any more."""
        values = {key: value if math.isfinite(value) else None for key, value in row.items()}
        write_text(self.evaluation_folder(step) / "metrics.json", json.dumps(values, indent=2) + "\n")
        self.remove_evaluated_weights()

    def read_evaluation(self, step: int) -> dict[str, Any]:
        return self._read_json(f"evaluations/step-{step:08d}/metrics.json")

    def remove_evaluated_weights(self) -> None:
        for step in self.evaluated_steps():
            shutil.rmtree(self.evaluation_folder(step) / "weights", ignore_errors=True)

    # --- Checkpoints ---

    def commit_checkpoint(self, step: int, write: Callable[[Path], None], *, keep: int | None) -> Path:
        """Let `write` fill a directory and make it the checkpoint of `step`; then drop all but the newest `keep`.

        The name appears when everything is on the disk: by rename, with a marker that lists the files and their sizes.
        """
        final = self.checkpoints / f"step-{step:08d}"
        scratch = self.checkpoints / f".writing-{final.name}-{uuid.uuid4().hex[:8]}"
        scratch.mkdir(parents=True)
        write(scratch)
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        for path in files:
            sync(path)
        # The model card is renewed when more is known of the model; all else never changes.
        sizes = {str(path.relative_to(scratch)): path.stat().st_size for path in files if path.name != "README.md"}
        write_text(scratch / COMPLETE, json.dumps(sizes, indent=2) + "\n")
        if final.exists():  # an incomplete one, or the same one of an orphan
            self._remove(final)
        scratch.rename(final)
        sync(self.checkpoints)
        if keep is not None:
            for old in self.complete_checkpoints()[:-keep]:
                self._remove(old)
        return final

    def complete_checkpoints(self) -> list[Path]:
        """By step, oldest first."""
        return [path for path in sorted(self.checkpoints.glob("step-*")) if is_complete(path)]

    def latest_checkpoint(self) -> Path | None:
        return max(self.complete_checkpoints(), default=None)

    def latest_step(self) -> int:
        """Of the newest complete checkpoint; 0 without one."""
        latest = self.latest_checkpoint()
        return 0 if latest is None else _step_of(latest)

    def _remove(self, checkpoint: Path) -> None:
        # Under another name first: a checkpoint that is half deleted must not look like one.
        doomed = checkpoint.with_name(f".deleting-{checkpoint.name}-{uuid.uuid4().hex[:8]}")
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    # --- End ---

    def write_failure(self, failure: Mapping[str, Any]) -> None:
        """An error that would come again if the workers were started again."""
        self._write_json("failure.json", failure)

    def read_failure(self) -> dict[str, Any]:
        return self._read_json("failure.json")

    def clear_failure(self) -> None:
        (self.path / "failure.json").unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write_json("summary.json", summary)

    def read_summary(self) -> dict[str, Any]:
        """Empty while the run is not over."""
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
            raise DataError(f"{path} is not valid JSON: {error}; choose another --run-name") from None
        return dict(values)


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def is_complete(checkpoint: Path) -> bool:
    """Whether all files that were written are there, with the sizes they had."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
