"""Runs: the directory of a training run, the follower of its metrics, and the tracker.

In: metrics, checkpoints and evaluations of a run. Out: files that are either complete or absent, and rows for sinks.
`directory.py` names and guards everything on disk, `following.py` passes rows on, and only `tracking.py` knows
Weights & Biases. Open `directory.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {"RunDirectory": "directory"}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
