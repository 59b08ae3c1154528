"""Tells a worker that it should stop."""

import time

from phf_ray.runs.directory import RunDirectory

_POLL_S = 0.2


class StopWatch:
    """Whether rank 0 was told to stop, or another start took the run. Asked at every step, looks 5 times a second."""

    def __init__(self, run: RunDirectory, claim: str | None):
        self._run, self._claim = run, claim
        self._stop = False
        self._looked_s = 0.0

    def wants_stop(self) -> bool:
        now = time.monotonic()
        if self._claim is not None and not self._stop and now - self._looked_s > _POLL_S:
            self._looked_s = now
            self._stop = self._run.is_stop_requested() or not self._run.is_claimed_by(self._claim)
        return self._stop

    def is_superseded(self) -> bool:
        return self._claim is not None and not self._run.is_claimed_by(self._claim)
