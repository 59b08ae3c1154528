"""Reads the architecture that a configuration names, and checks its overrides."""

import difflib
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from phf_ray.adapter_folder import base_folder, is_adapter
from phf_ray.config import ModelConfig
from phf_ray.errors import ConfigError
from phf_ray.models.backbone import first_words


def architecture_of(config: ModelConfig) -> Any:
    try:
        if config.path_or_name is not None:
            stored, _ = PreTrainedConfig.get_config_dict(_folder_or_name(config.path_or_name), revision=config.revision)
        else:
            stored = {"model_type": config.model_type}
        # It describes the stored weights, and a new model has its own.
        stored.pop("quantization_config", None)
        kind = type(AutoConfig.for_model(stored.pop("model_type", None)))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path_or_name={config.path_or_name!r}, model.model_type={config.model_type!r}: "
            f"{first_words(error)}; give a model directory, or a model_type (such as gpt2) with config_kwargs"
        ) from None
    overrides = dict(config.config_kwargs)
    if "vocab_size" in overrides:
        raise ConfigError("model.config_kwargs.vocab_size follows from the tokenizer; remove it")
    # transformers would store an unknown field and ignore it, as it did the original's scale_attn_by.
    known = {*kind.__dataclass_fields__, *kind.attribute_map} - {*PreTrainedConfig.__dataclass_fields__}
    unknown = sorted(set(overrides) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(sorted(known))}"
        raise ConfigError(f"model.config_kwargs has {unknown}, which {kind.model_type} does not have; {hint}")
    named = {kind.attribute_map.get(key, key): value for key, value in overrides.items()}
    try:
        return kind(**{**stored, **named})
    except Exception as error:  # noqa: BLE001 - each architecture checks its fields with exceptions of its own
        raise ConfigError(f"model.config_kwargs={overrides}: {' '.join(str(error).split())}") from None


def _folder_or_name(source: str) -> str:
    return str(base_folder(source)) if is_adapter(source) else source


def padded_rows(num_ids: int, *, multiple: int | None) -> int:
    return num_ids if multiple is None else -(-num_ids // multiple) * multiple
