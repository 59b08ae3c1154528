"""One line in the log for each round."""

import logging
from collections.abc import Mapping
from typing import Any

from phf_ray.runs.rows import ROUND

log = logging.getLogger(__name__)


class RoundLines:
    """Logs the rows of rounds; a sink of `runs.following`."""

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds

    def __call__(self, row: Mapping[str, Any]) -> None:
        if ROUND not in row:
            return
        shown = {"reward": "reward", "rollouts/gold": "gold", "kl": "KL", "completions/mean_length": "tokens"}
        figures = [f"{name} {row[key]:.4g}" for key, name in shown.items() if row.get(key) is not None]
        log.info("round %d/%d: %s", row[ROUND] + 1, self._num_rounds, ", ".join(figures) or "no reward")
