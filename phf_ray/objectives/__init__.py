"""Objectives for pretraining with human preferences: MLE, Unlikelihood, RWR and AWR, on one fused kernel.

In: hidden states, the head, and a micro-batch's token ids, kinds and scores. Out: a loss, its normaliser, statistics.
`base.py` defines an objective, each rule has its own file, and `fused.py` computes loss and gradients without ever
holding the (tokens x vocabulary) matrix. Importing this package loads no torch. Open `base.py` first, then `mle.py`.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "AWR": "awr",
    "DPO": "dpo",
    "MLE": "mle",
    "RWR": "rwr",
    "Objective": "base",
    "ObjectiveOutput": "base",
    "PolicyGradient": "policy_gradient",
    "PairwiseReward": "bradley_terry",
    "Rules": "base",
    "Unlikelihood": "unlikelihood",
    "WeightedLikelihood": "weighted_likelihood",
    "divergence_loss": "divergence",
    "build_objective": "build",
    "preference_loss": "pairs",
    "unpaired_loss": "unpaired",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
