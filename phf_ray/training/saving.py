"""Writes checkpoints in a thread, and counts the seconds for which the loop pauses."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WallCost:
    """Seconds for which the loop paused, by reason, and its total seconds."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(("evaluation", "held_out", "checkpoint"), 0.0)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count the seconds inside the `with` block for `name`, except those that a nested block counts."""
        since, before = time.perf_counter(), sum(self._seconds.values())
        try:
            yield
        finally:
            inside = sum(self._seconds.values()) - before
            self._seconds[name] += time.perf_counter() - since - inside

    def figures(self) -> dict[str, float]:
        return {
            "loop_s": time.perf_counter() - self._began,
            **{f"{name}_s": seconds for name, seconds in self._seconds.items()},
        }

    def row(self) -> dict[str, float]:
        figures = self.figures()
        seconds = figures["evaluation_s"]
        return {"evaluation/blocked_s": seconds, "evaluation/blocked_fraction": seconds / figures["loop_s"]}


class Saver:
    """Writes one checkpoint at a time in a thread; the next `submit`, or `close`, raises its error."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], object]) -> None:
        self.close()

        def work() -> None:
            try:
                write()
            except BaseException as error:  # noqa: BLE001  (border of a thread: raised by close)
                self._error = error

        self._thread = threading.Thread(target=work, name="save-checkpoint")
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
