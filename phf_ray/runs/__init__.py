"""Runs: the directory of a training run, who follows it, and the tracker that is told.

In: metrics, checkpoints and evaluations of a run. Out: files that are there whole or not at all, and rows for sinks.
`directory.py` names and guards everything on disk, `following.py` hands rows on, `tracking.py` alone knows
Weights & Biases. Open `directory.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {"RunDirectory": "directory"}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
