"""Tells a worker when to stop."""

import time

from phf_ray.runs.directory import RunDirectory

_POLL_S = 0.2


class StopWatch:
    """Tells rank 0 if a stop was requested, or if another start took over the run.

    The loop asks at every step; the watch reads the run's directory at most 5 times per second.
    """

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
