"""Which settings may change between two starts of one run, and which did."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from phf_ray.config import parse_config
from phf_ray.config.annotators import OF_NO_CONSEQUENCE
from phf_ray.errors import ConfigError

# These settings may differ between two starts of one run. They do not change what is learned, except for the order of
# fp32 sums and, with torch_compile, the masks that a dropout seed gives. The micro-batch size is not one of them:
# dropout is drawn once per micro-batch, and under compat the loss is a mean over each micro-batch.
_MAY_CHANGE = {
    "training.num_workers",
    "training.resources_per_worker",
    "training.resources_per_evaluation",
    "training.max_failures",
    "training.parallelism",
    "training.torch_compile",
    "model.attn_implementation",
    "training.gradient_checkpointing",
    "training.logging_steps",
    "training.eval_steps",
    "dataset.eval_datasets",
    "dataset.eval_overlap",
    "plan.eval_sets",
    "training.inspect_every_n_micro_batches",
    "training.save_steps",
    "training.save_total_limit",
    "training.push_to_hub",
    "training.hub_model_id",
    "training.hub_private_repo",
    "rollouts.place",
    "rollouts.actors",
    "rollouts.sampling_batch",
    "rollouts.max_failed_fraction",
    "rollouts.stop",
}
# The same inside the lists of rewards: how servers are asked, and where models run.
_ASKED = rf"(batch_size|{'|'.join(OF_NO_CONSEQUENCE)})"
_MAY_CHANGE_OF_REWARDS = re.compile(
    rf"rollouts\.(reward\.\d+|gold)\.(url\.{_ASKED}|annotators\.cache|annotators\.pool\.(.+\.)?"
    rf"({'|'.join(OF_NO_CONSEQUENCE)})(\..+)?|scorer\.(device|tokens_per_batch))"
)
# Hashes and figures of a plan say little. These are what a user changed.
_MEANING = {
    "plan.blocks_hash": "the training data or its tokens",
    "plan.checkpoint_path": "--checkpoint-path",
    "plan.reference": "the weights of the model that the run starts from",
    "plan.start": "the weights of the model that the run starts from",
    "plan.critic": "the weights of the model that the critic starts from",
    "plan.prompts_hash": "the prompts of the rounds, or the words of their template",
}
LEARNED_FROM = ("dataset", "tokenizer", "model", "objective", "training", "rollouts", "algorithm", "compat")


def with_defaults(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored configuration with the keys that were added since it was written, at their defaults.

    If this version no longer reads it, because a key is gone, return it unchanged.
    """
    try:
        return parse_config(stored).model_dump(mode="json")
    except ConfigError:
        return stored


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], *, sections: Sequence[str]) -> list[str]:
    old, new = (
        {key: value for key, value in _flat(values) if key.split(".")[0] in sections} for values in (before, now)
    )
    return [
        f"{_named(key)}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _may_change(key)
    ]


def _may_change(key: str) -> bool:
    is_free = any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)
    return is_free or _MAY_CHANGE_OF_REWARDS.fullmatch(key) is not None


def _named(key: str) -> str:
    return f"{_MEANING[key]} ({key})" if key in _MEANING else key


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    # Through JSON, like the stored configuration: tuples become lists.
    for key, value in json.loads(json.dumps(values)).items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
