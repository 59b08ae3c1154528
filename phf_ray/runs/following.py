"""Follows a run during training: passes new metrics rows on, and logs progress."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from phf_ray.runs.directory import RunDirectory
from phf_ray.runs.rows import EVALUATION, STEP, parse_row, row_key

log = logging.getLogger(__name__)


_LAST_ROWS_S = 60.0


class Follower:
    """Passes new rows of metrics.jsonl to functions, from its own thread, until it is closed.

    It warns when the workers restart. They then train some steps again, but each row is passed on once.
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
        # Rows of later steps are about to be dropped, and the rows that replace them are new.
        rows = [row for row in self._new_rows() if row[STEP] <= last_step]
        self._seen.update(row_key(row) for row in [*rows, *self._new_evaluations()])
        self._claim = run.current_claim()
        self._num_starts = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow-metrics", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Pass on the remaining rows, then end. A sink that hangs is abandoned."""
        self._closed.set()
        self._thread.join(_LAST_ROWS_S)
        if self._thread.is_alive():
            log.warning("the last rows could not be passed on within %g s; metrics.jsonl has all rows", _LAST_ROWS_S)

    def _follow(self) -> None:
        while not self._closed.wait(self._poll_s):
            self._hand_on()
        self._hand_on()

    def _hand_on(self) -> None:
        self._notice_restart()
        for row in [*self._new_rows(), *self._new_evaluations()]:
            if row_key(row) in self._seen:
                continue
            self._seen.add(row_key(row))
            for sink in [*self._sinks]:
                self._give(row, sink)

    def _give(self, row: dict[str, Any], sink: Callable[[dict[str, Any]], None]) -> None:
        try:
            sink(row)
        except Exception as error:  # noqa: BLE001  (end of a thread: an observer must not harm the training)
            self._sinks.remove(sink)
            log.warning(
                "%s gets no more rows, because it raised %s: %s; metrics.jsonl has all rows",
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
            log.warning("the workers died and were restarted; they continue from %s", origin)

    def _new_rows(self) -> list[dict[str, Any]]:
        try:
            with self._run.metrics_path.open(encoding="utf-8") as file:
                status = os.fstat(file.fileno())
                # The file was rewritten, because rows were dropped.
                if self._state != (status.st_dev, status.st_ino):
                    self._state, self._offset = (status.st_dev, status.st_ino), 0
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        self._offset += len(whole.encode())
        return [row for line in whole.splitlines() if (row := parse_row(line))]

    def _new_evaluations(self) -> list[dict[str, Any]]:
        steps = [step for step in self._run.evaluated_steps() if (step, EVALUATION) not in self._seen]
        return [self._run.read_evaluation(step) for step in steps]


class ProgressLines:
    """Logs one line per row, at most one every `every_s` seconds, with the time left."""

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
