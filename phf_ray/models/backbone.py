"""Loads the weights of a causal LM, and refuses weights that are damaged or incomplete."""

import pickle
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from phf_ray.errors import ConfigError, DataError


def load_backbone(source: str | Path, *, revision: str | None, dtype: torch.dtype | None) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype if dtype is not None else "auto",
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision is not None else ""
        raise ConfigError(f"{str(source)!r}{at} is not a causal language model: {first_words(error)}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{source}: the weights can't be read: {first_words(error)}; write or fetch them again"
        ) from None
    model: PreTrainedModel = loaded[0]
    loading: dict[str, Any] = loaded[1]
    # transformers initialises missing weights at random and only warns.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise DataError(f"{source}: the weights lack {missing[:5]} ({len(missing)} in all); write or fetch them again")
    model.train()
    return model


def first_words(error: BaseException) -> str:
    """Return an error's first sentence: some of transformers' messages go on to list every architecture it knows."""
    return textwrap.shorten(str(error).split(". ")[0], width=200) or type(error).__name__
