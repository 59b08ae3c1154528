"""Loads an engine, or only a tokenizer, from a model directory, and runs no code or pickle from that directory."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from phf_ray.adapter_folder import model_or_base
from phf_ray.checkpoint import CheckpointInfo, Control, read_info, require_model, starts_with_end_of_text
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.engine import Engine
from phf_ray.generation.reach import DEFAULT_CONTEXT
from phf_ray.generation.requests import EngineSettings
from phf_ray.generation.tokens import TokenStrings
from phf_ray.models.backbone import load_tokenizer_beside
from phf_ray.models.merging import load_merged
from phf_ray.models.positions import declared_positions


def load_strings(
    directory: str | Path, *, control: Control | None = None
) -> tuple[TokenStrings, CheckpointInfo | None, int]:
    """Return tokenizer, checkpoint info and context of a model with weights elsewhere. Raises like `load_engine`."""
    path = require_model(directory)
    tokenizer = load_tokenizer_beside(path)
    try:
        config = AutoConfig.from_pretrained(model_or_base(path), trust_remote_code=False).get_text_config()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} can't be loaded as the tokenizer of a language model: {error}") from None
    info = read_info(path)
    control = control or (info.control if info is not None else None)
    strings = TokenStrings(
        tokenizer,
        # An adapter may have tokens that its base model lacks.
        num_logits=max(config.vocab_size, len(tokenizer)),
        control=control,
        starts_with_eos=starts_with_end_of_text(info, control),
    )
    # The other server applies the model's windows itself.
    return strings, info, declared_positions(config) or DEFAULT_CONTEXT


def load_engine(
    directory: str | Path, *, control: Control | None = None, settings: EngineSettings | None = None
) -> Engine:
    """Load an engine from a Hugging Face causal LM directory; an adapter is merged into its base model.

    No code or pickle from the directory runs.

    Raises ConfigError if there is no model or the device is missing, DataError if the model can't be read.
    """
    path, settings = require_model(directory), settings or EngineSettings()
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {settings.device} was requested, but no GPU is visible here; use device cpu")
    model: Any = load_merged(path, dtype=getattr(torch, settings.dtype))
    _refuse_without_attention(model, path)
    tokenizer = load_tokenizer_beside(path)
    return Engine(model.to(settings.device), tokenizer, info=read_info(path), control=control, settings=settings)


def _refuse_without_attention(model: Any, path: Path) -> None:
    if model._is_stateful and not hasattr(model.config.get_text_config(), "num_attention_heads"):
        raise ConfigError(
            f"{path}: {type(model).__name__} keeps a running state in place of keys and values, which this engine "
            "can't batch; choose a model with attention, or put an OpenAI-compatible server in front of this one"
        )
