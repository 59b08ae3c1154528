"""Repairs a generation_config.json that transformers reads but refuses to write once an id in it has changed."""

import copy
import logging
from typing import Any

from transformers import GenerationConfig

log = logging.getLogger(__name__)

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def savable_generation_config(config: Any) -> Any:
    """Return `config` if transformers would write it, else a copy that it writes.

    Values for sampling without `do_sample`, as in early Llama 2 and Vicuna, mean that the model is to be sampled. If
    anything else is wrong, only the ids of special tokens remain.
    """
    problem = _problem_of(config)
    if problem is None:
        return config
    sampling = copy.deepcopy(config)
    sampling.do_sample = True
    if _problem_of(sampling) is None:
        log.warning("generation_config.json samples without do_sample; the checkpoints' will have do_sample: true")
        return sampling
    log.warning("generation_config.json can't be saved (%s); the checkpoints' will have special tokens alone", problem)
    return GenerationConfig(**{name: getattr(config, name) for name in _IDS})


def _problem_of(config: Any) -> str | None:
    try:
        config.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())
    return None
