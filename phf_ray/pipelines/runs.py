"""A training run on disk, and the tracker that is told of it.

    config.json      the configuration with method and overrides merged in
    plan.json        what follows from it and the blocks: number of steps, thresholds as numbers, hash of the blocks
    metrics.jsonl    one row per logged step, each step once
    checkpoints/     step-00000500/ ..., each complete or not there
    evaluations/     step-00000500/ ..., `weights` until they are evaluated, then `metrics.json` and `samples.parquet`
    summary.json     how the run ended; `finished` is never trained again

One process writes at a time: whoever starts last claims the directory, and an orphan of an earlier start sees that.
Only this file knows Weights & Biases; it is told by the driver, which follows metrics.jsonl, so no key travels to the
workers and a tracker that hangs does not stop the training.
"""

import hashlib
import html
import json
import logging
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.files import sync, write_text

log = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
STEP = "train/global_step"
EVALUATION = "evaluation/wall_s"
"""In the rows of samples and KL, and in no other."""

# What may differ between two starts of one run: nothing that is learned depends on it, beyond the order of fp32 sums
# and, for torch_compile, which masks a seed of dropout stands for. The micro-batch is not among them: dropout is drawn
# once for each, and under compat the loss is a mean over each.
_MAY_CHANGE = {
    "training.num_workers",
    "training.resources_per_worker",
    "training.resources_per_evaluation",
    "training.max_failures",
    "training.parallelism",
    "training.torch_compile",
    "training.gradient_checkpointing",
    "training.logging_steps",
    "training.inspect_every_n_micro_batches",
    "training.save_steps",
    "training.save_total_limit",
    "training.push_to_hub",
    "training.hub_model_id",
    "training.hub_private_repo",
}
_LEARNED_FROM = ("dataset", "tokenizer", "model", "objective", "training", "compat")


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
        changed = _changes(before, config, sections=_LEARNED_FROM)
        if plan is not None:
            changed += _changes({"plan": self._read_json("plan.json")}, {"plan": plan}, sections=("plan",))
        if changed:
            raise ConfigError(
                f"{self.path} holds a run with other settings:\n"
                + "\n".join(f"  - {line}" for line in changed)
                + "\nchoose another --run-name, or undo these changes to resume"
            )

    def read_config(self) -> dict[str, Any]:
        return self._read_json("config.json")

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
        return list({_row_key(row): row for line in lines if (row := _parse_row(line))}.values())

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


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], *, sections: Sequence[str]) -> list[str]:
    old, new = (
        {key: value for key, value in _flat(values) if key.split(".")[0] in sections} for values in (before, now)
    )
    return [
        f"{key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    # By way of JSON, in which the stored one is: tuples become lists.
    for key, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and STEP in row else None


# --- Following a run --------------------------------------------------------------------------------------------------


_LAST_ROWS_S = 60.0


class Follower:
    """Hands new rows of metrics.jsonl to functions, from a thread of its own, until it is closed.

    After a restart of the workers, of which it warns, steps are trained again; each row is handed on once.
    """

    def __init__(
        self, run: RunDirectory, sinks: Sequence[Callable[[dict[str, Any]], None]], *, poll_s: float = 0.5
    ) -> None:
        self._run = run
        self._sinks = list(sinks)
        self._poll_s = poll_s
        self._seen: set[tuple[int, str]] = set()
        self._state: tuple[int, int] | None = None
        self._offset = 0
        last_step = run.latest_step()
        # Rows of later steps are about to be dropped; those that take their place are new.
        rows = [row for row in self._new_rows() if row[STEP] <= last_step]
        self._seen.update(_row_key(row) for row in [*rows, *self._new_evaluations()])
        self._claim = run.current_claim()
        self._num_starts = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow-metrics", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Hand on what is left, then end; what hangs is left behind."""
        self._closed.set()
        self._thread.join(_LAST_ROWS_S)
        if self._thread.is_alive():
            log.warning("the last rows could not be handed on in %g s; metrics.jsonl has them all", _LAST_ROWS_S)

    def _follow(self) -> None:
        while not self._closed.wait(self._poll_s):
            self._hand_on()
        self._hand_on()

    def _hand_on(self) -> None:
        self._notice_restart()
        for row in [*self._new_rows(), *self._new_evaluations()]:
            if _row_key(row) in self._seen:
                continue
            self._seen.add(_row_key(row))
            for sink in [*self._sinks]:
                self._give(row, sink)

    def _give(self, row: dict[str, Any], sink: Callable[[dict[str, Any]], None]) -> None:
        try:
            sink(row)
        except Exception as error:  # noqa: BLE001  (border of a thread: what watches must not harm what is watched)
            self._sinks.remove(sink)
            log.warning(
                "%s is not told of any more rows, because of %s: %s; metrics.jsonl has them all",
                type(sink).__name__,
                type(error).__name__,
                error,
            )

    def _notice_restart(self) -> None:
        claim = self._run.current_claim()
        if claim == self._claim:
            return
        self._claim = claim
        self._num_starts += 1
        if self._num_starts > 1:
            latest = self._run.latest_checkpoint()
            origin = "the start" if latest is None else latest.name
            log.warning("the workers died and were started again; they go on from %s", origin)

    def _new_rows(self) -> list[dict[str, Any]]:
        try:
            with self._run.metrics_path.open(encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                # Rows were dropped: the file was written anew.
                if self._state != (status.st_dev, status.st_ino):
                    self._state, self._offset = (status.st_dev, status.st_ino), 0
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        self._offset += len(whole.encode())
        return [row for line in whole.splitlines() if (row := _parse_row(line))]

    def _new_evaluations(self) -> list[dict[str, Any]]:
        steps = [step for step in self._run.evaluated_steps() if (step, EVALUATION) not in self._seen]
        return [self._run.read_evaluation(step) for step in steps]


def _row_key(row: Mapping[str, Any]) -> tuple[int, str]:
    """Step and kind."""
    kind = next((name for name in ("train/loss", EVALUATION, "debugging/num_segments") if name in row), "eval")
    return int(row[STEP]), kind


class ProgressLines:
    """One log line per logged row, at most one in `every_s` seconds, with the time that is left."""

    def __init__(self, num_steps: int, *, every_s: float = 2.0) -> None:
        self._num_steps = num_steps
        self._every_s = every_s
        self._start: tuple[int, float] | None = None
        self._last_s = -math.inf

    def __call__(self, row: Mapping[str, Any]) -> None:
        step, now = int(row[STEP]), time.monotonic()
        if "eval/bits_per_byte" in row:
            log.info("step %d/%d: held-out bits per byte %s", step, self._num_steps, _shown(row["eval/bits_per_byte"]))
        if "train/loss" not in row:
            return
        if self._start is None:
            self._start = (step, now)
        if now - self._last_s < self._every_s and step < self._num_steps:
            return
        self._last_s = now
        done = step - self._start[0]
        left = f"{(now - self._start[1]) / done * (self._num_steps - step):.0f} s left" if done else "time left unknown"
        log.info(
            "step %d/%d: loss %s, %.0f tokens/s, %s",
            step,
            self._num_steps,
            _shown(row["train/loss"]),
            row["train/tokens_per_s"],
            left,
        )


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


_EVAL_STEP = "objective/eval/tokens_seen_during_eval"


class WandbTracker:
    """The run's rows on Weights & Biases; a resumed run continues its wandb run."""

    def __init__(self, run: RunDirectory, *, group: str | None, tags: Sequence[str], config: Mapping[str, Any]) -> None:
        import wandb

        self._run = run
        id_path = run.path / "wandb_id"
        if not id_path.exists():
            write_text(id_path, uuid.uuid4().hex[:12])
        self._wandb_run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "phf-ray"),
            id=id_path.read_text(encoding="utf-8"),
            resume="allow",
            name=run.path.name,
            group=group,
            tags=list(tags),
            config=dict(config),
            dir=str(run.path),
        )
        self._wandb_run.define_metric("train/tokens_seen")
        self._wandb_run.define_metric("*", step_metric="train/tokens_seen")
        self._defined: set[str] = set()

    def __call__(self, row: Mapping[str, Any]) -> None:
        if EVALUATION in row:
            row = {**row, **sample_tables(self._run, int(row[STEP]))}
        for name in row:
            # By their whole names, which count before any pattern.
            if name.startswith("objective/eval/") and name not in (*self._defined, _EVAL_STEP):
                self._defined.add(name)
                self._wandb_run.define_metric(name, step_metric=_EVAL_STEP)
        self._wandb_run.log({key: _as_wandb(value) for key, value in row.items() if value is not None})

    def close(self, *, exit_code: int) -> None:
        try:
            self._show_all_samples()
        except Exception as error:  # noqa: BLE001  (border of a library: the run is over, whatever it meets)
            log.warning("wandb is not shown all samples in one table: %s; they are in %s", error, self._run.evaluations)
        try:
            self._wandb_run.finish(exit_code=exit_code)
        except Exception as error:  # noqa: BLE001  (border of a library: the run is over, whatever it meets)
            log.warning("wandb could not end its run: %s; metrics.jsonl has everything", error)

    def _show_all_samples(self) -> None:
        import wandb

        # wandb would cut a longer table at its end, where the samples of the final weights are.
        tables = all_sample_tables(self._run, max_rows=wandb.Table.MAX_ARTIFACT_ROWS)
        if tables:
            last = self._run.read_evaluation(self._run.evaluated_steps()[-1])
            self({"train/tokens_seen": last["train/tokens_seen"], **tables})


def sample_tables(run: RunDirectory, step: int) -> dict[str, dict[str, Any]]:
    """Samples that were drawn from the weights of `step`: a table for each scenario, by the original's name."""
    import pyarrow.parquet as pq

    path = run.evaluation_folder(step) / "samples.parquet"
    if not path.exists():
        return {}
    columns = ["prompt", "text", "score", "error"]
    rows: dict[str, list[list[Any]]] = {}
    for sample in pq.read_table(path, columns=["scenario", *columns]).to_pylist():
        rows.setdefault(sample["scenario"], []).append([sample[column] for column in columns])
    return {
        f"generation/{scenario}/current_samples": {"columns": columns, "rows": found}
        for scenario, found in rows.items()
    }


def all_sample_tables(run: RunDirectory, *, max_rows: int) -> dict[str, dict[str, Any]]:
    """Samples of all evaluated weights: a table for each scenario, with the step first.

    Where they might be more than `max_rows`, the first of each step, equally many.
    """
    tables: dict[str, dict[str, Any]] = {}
    steps = run.evaluated_steps()
    most = max_rows // max(1, len(steps))
    is_cut = False
    for step in steps:
        for name, table in sample_tables(run, step).items():
            whole = name.removesuffix("current_samples") + "all_samples"
            found = tables.setdefault(whole, {"columns": ["step", *table["columns"]], "rows": []})
            found["rows"] += [[step, *row] for row in table["rows"][:most]]
            is_cut = is_cut or len(table["rows"]) > most
    if is_cut:
        log.warning(
            "a table on wandb has at most %d rows: all_samples has the first %d samples of each of %d steps; all are "
            "in %s",
            max_rows,
            most,
            len(steps),
            run.evaluations,
        )
    return tables


def _as_wandb(value: Any) -> Any:
    import wandb

    if not isinstance(value, Mapping):
        return value
    if "pre" in value:
        # As they are written, and no markup.
        shown = "".join(f"<pre>{html.escape(text)}</pre>\n" for text in value["pre"])
        return wandb.Html(shown, inject=False)
    if "counts" in value:
        return wandb.Histogram(np_histogram=(value["counts"], value["edges"]))
    return wandb.Table(columns=list(value["columns"]), data=[list(row) for row in value["rows"]])


def wants_wandb() -> bool:
    mode = os.environ.get("WANDB_MODE")
    return mode != "disabled" and (mode is not None or "WANDB_API_KEY" in os.environ)


def start_tracker(
    run: RunDirectory, *, group: str | None, tags: Sequence[str], config: Mapping[str, Any]
) -> WandbTracker | None:
    """None where wandb is not asked for, or does not answer: metrics.jsonl has everything."""
    if not wants_wandb():
        return None
    import wandb

    try:
        return WandbTracker(run, group=group, tags=tags, config=config)
    except wandb.errors.Error as error:
        log.warning("wandb is not available (%s); the run goes on, metrics.jsonl has everything", error)
        return None


_FINISHED_STEPS = {
    "generation/*": "train/tokens_seen",
    "KL/*": "train/tokens_seen",
    "capabilities/*": "train/tokens_seen",
    # An attack's, by the names of the original.
    "best_*": "red_team/round",
    "average_score": "red_team/round",
    "round_*": "red_team/round",
    "target_lm_responses": "red_team/round",
}
"""By pattern of metrics, what they are drawn over."""


def track_finished(
    directory: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    identity: str,
    group: str,
    config: Mapping[str, Any],
) -> bool:
    """Log what is already over, such as an evaluation, as a wandb run; False where wandb is not asked for or answers
    not.

    `identity`: two calls with the same one continue one wandb run. A value may be a table, `{columns, rows}`, a
    histogram, `{counts, edges}`, or texts to be shown as they are written, `{pre}`.
    """
    if not wants_wandb():
        return False
    import wandb

    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "phf-ray"),
            id=hashlib.blake2b(identity.encode(), digest_size=6).hexdigest(),
            resume="allow",
            name=name,
            group=group,
            config=dict(config),
            dir=str(directory),
            reinit="finish_previous",
        )
    except wandb.errors.Error as error:
        log.warning("wandb is not available (%s); report.json has everything", error)
        return False
    for pattern, step in _FINISHED_STEPS.items():
        run.define_metric(step)
        run.define_metric(pattern, step_metric=step)
    for row in rows:
        run.log({key: _as_wandb(value) for key, value in row.items() if value is not None})
    run.finish()
    return True
