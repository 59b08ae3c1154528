"""Runs a stage of a pipeline in a process of its own, which gets the signals that the pipeline gets."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from jobs import cli

ON_RAY = ("score-corpus", "build-blocks", "train-lm", "train-rl", "evaluate-lm", "leaderboard", "red-team")
"""Commands that need a Ray, or mostly do."""
_STOPPED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StageRunner:
    """Runs stages one after the other.

    A crash of a stage leaves the pipeline alive, and what a stage held in memory is free for the next. If several need
    a Ray of this machine, they share one, because each start takes ten seconds or more.
    """

    def __init__(self, commands: Sequence[tuple[str, Sequence[str]]]) -> None:
        """`commands`: those of all stages that may run, with their arguments."""
        num_on_ray = sum(_needs_ray(command, argv) for command, argv in commands)
        self._shares_ray = "RAY_ADDRESS" not in os.environ and num_on_ray > 1
        self._environment: dict[str, str] = {}
        self.stopped_by: signal.Signals | None = None

    def __call__(self, command: str, argv: Sequence[str]) -> int:
        """Run a command to its end. Return its exit code, as a shell would."""
        if self._shares_ray and _needs_ray(command, argv) and not self._environment:
            self._start_ray()
        with self._handling() as child:
            if self.stopped_by is not None:
                return 128 + self.stopped_by
            # In a session of its own: Ctrl-C at a terminal would reach it a second time, and end it at once.
            child.append(
                subprocess.Popen(
                    cli.command_of(command, list(argv)),
                    env={**os.environ, **self._environment},
                    start_new_session=True,
                )
            )
            if self.stopped_by is not None:
                child[0].send_signal(self.stopped_by)
            code = child[0].wait()
        return code if code >= 0 else 128 - code

    def _start_ray(self) -> None:
        import ray

        cli.start_ray()
        self._environment = {cli.SHARED_RAY: ray.get_runtime_context().gcs_address}

    @contextmanager
    def _handling(self) -> Iterator[list["subprocess.Popen[bytes]"]]:
        """Send the signals that this process gets on to the child, which saves and ends."""
        child: list[subprocess.Popen[bytes]] = []

        def forward(number: int, _: FrameType | None) -> None:
            self.stopped_by = signal.Signals(number)
            if child:
                child[0].send_signal(number)

        if threading.current_thread() is not threading.main_thread():
            yield child
            return
        # After Ray, whose own handler would end this process at once.
        before = {number: signal.signal(number, forward) for number in _STOPPED_BY}
        try:
            yield child
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _needs_ray(command: str, argv: Sequence[str]) -> bool:
    return command in ON_RAY and "--in-process" not in argv
