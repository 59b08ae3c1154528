"""Writes checkpoints in a thread, and counts the seconds that the loop stood still."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class WallCost:
    """Seconds that the loop stood still, by what for, and its seconds in all."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds = dict.fromkeys(("evaluation", "held_out", "checkpoint"), 0.0)

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """What is counted inside is not counted again."""
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
    """Writes checkpoints in a thread, one at a time; an error comes up at the next one, or at the end."""

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
