"""Objectives of pretraining with human preferences: MLE, Unlikelihood, RWR, AWR, on one fused kernel.

In: hidden states, the head, token ids, kinds and scores of a micro-batch. Out: a loss, its normaliser, statistics.
`base.py` says what an objective is, one file holds each rule, `fused.py` computes loss and gradients without ever
holding (tokens x vocabulary). Importing this loads no torch. Open `base.py` first, then `mle.py`.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "AWR": "awr",
    "MLE": "mle",
    "RWR": "rwr",
    "Objective": "base",
    "ObjectiveOutput": "base",
    "Rules": "base",
    "Unlikelihood": "unlikelihood",
    "build_objective": "build",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
