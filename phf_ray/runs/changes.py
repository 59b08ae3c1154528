"""Which settings may change between two starts of one run, and which did."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# What may differ between two starts of one run: nothing that is learned depends on it, beyond the order of fp32 sums
# and, for torch_compile, which masks a seed of dropout stands for. The micro-batch is not among them: dropout is drawn
# once for each, and under compat the loss is a mean over each.
_MAY_CHANGE = {
    "training.num_workers",
    "training.resources_per_worker",
    "training.resources_per_evaluation",
    "training.max_failures",
    "training.parallelism",
    "training.torch_compile",
    "training.gradient_checkpointing",
    "training.logging_steps",
    "training.inspect_every_n_micro_batches",
    "training.save_steps",
    "training.save_total_limit",
    "training.push_to_hub",
    "training.hub_model_id",
    "training.hub_private_repo",
}
LEARNED_FROM = ("dataset", "tokenizer", "model", "objective", "training", "compat")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], *, sections: Sequence[str]) -> list[str]:
    old, new = (
        {key: value for key, value in _flat(values) if key.split(".")[0] in sections} for values in (before, now)
    )
    return [
        f"{key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    # By way of JSON, in which the stored one is: tuples become lists.
    for key, value in json.loads(json.dumps(values)).items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
