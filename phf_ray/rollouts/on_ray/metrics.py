"""Shows the rounds of a run in Ray's metrics while it runs. The rows themselves are in its metrics.jsonl."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

from phf_ray.runs.rows import ROUND

_SHOWN = {
    "round_reward": "reward",
    "round_gold": "rollouts/gold",
    "round_kl": "kl",
    "round_answer_tokens": "completions/mean_length",
    "round_failed_answers": "rollouts/failed",
}
"""Name of the metric -> key of the row."""


class RoundGauges:
    """Sets gauges to the figures of the newest round; a sink of `runs.following`. Ray must be running."""

    def __init__(self, run: str, num_rounds: int) -> None:
        self._tags, self._num_rounds = {"run": run}, num_rounds
        self._gauges = {
            name: Gauge(f"phf_{name}", description=f"{name.replace('_', ' ')} of jobs.train_rl", tag_keys=("run",))
            for name in (
                "rounds",
                "rounds_drawn",
                "round_reward",
                "round_gold",
                "round_kl",
                "round_answer_tokens",
                "round_failed_answers",
            )
        }

    def __call__(self, row: Mapping[str, Any]) -> None:
        if ROUND not in row:
            return
        values = {"rounds": self._num_rounds, "rounds_drawn": row[ROUND] + 1}
        values |= {name: row.get(key) for name, key in _SHOWN.items()}
        for name, value in values.items():
            self._gauges[name].set(value, tags=self._tags)  # None, as of a round without gold, sets nothing
