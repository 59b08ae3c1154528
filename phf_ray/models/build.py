"""Builds the model that a configuration describes, from scratch or from published weights."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from phf_ray.config import ModelConfig
from phf_ray.errors import ConfigError
from phf_ray.models.adapters import Adapter, add_adapter
from phf_ray.models.architecture import architecture_of, padded_rows
from phf_ray.models.backbone import first_words, load_backbone
from phf_ray.models.embeddings import embedding_weights, fill_with_mean, learn_padding_rows, start_new_rows
from phf_ray.models.frozen_base import base_model, load_in_4bit, refuse_rows_without_tokens
from phf_ray.models.generation_config import savable_generation_config
from phf_ray.models.heads import ValueHead, head_width, load_value_head
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.merging import load_merged
from phf_ray.models.probing import probe_batches


def build_model(config: ModelConfig, *, tokenizer: Any, seed: int) -> LanguageModel:
    """Build a model on the CPU in fp32, with adapters if `model.lora` is set.

    The same seed gives the same weights on any number of workers.

    Raises ConfigError for an architecture, field or revision that does not exist, for a head that is not linear, and
    for a model that could not be served.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos_token, which separates documents; set tokenizer.special_tokens")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = _from_scratch if config.from_scratch else _from_pretrained
        backbone: PreTrainedModel = make(config, tokenizer)
        learn_padding_rows(backbone, is_new=config.from_scratch)
        start_new_rows(backbone, tokenizer, num_new=config.num_additional_tokens)
    adapter = _with_adapter(backbone, config, tokenizer, seed=seed)
    _set_special_tokens(backbone, tokenizer)
    model = _with_value_head(backbone, config)
    model.adapter = adapter
    probe_batches(backbone)
    return model


def _with_adapter(backbone: PreTrainedModel, config: ModelConfig, tokenizer: Any, *, seed: int) -> Adapter | None:
    if config.lora is None:
        return None
    num_new = config.num_additional_tokens
    first_new_row = len(tokenizer) - num_new if num_new else None
    return add_adapter(backbone, config.lora, base=base_model(config), first_new_row=first_new_row, seed=seed)


def _with_value_head(backbone: PreTrainedModel, config: ModelConfig) -> LanguageModel:
    value_head_config = config.model_kwargs.value_head_config
    if value_head_config is None:
        return LanguageModel(backbone)
    value_head = ValueHead(head_width(backbone), is_bounded=value_head_config.is_bounded)
    if not config.from_scratch and config.path_or_name is not None:
        load_value_head(value_head, config.path_or_name, revision=config.revision)
    return LanguageModel(backbone, value_head=value_head, detach_values=value_head_config.is_detached)


def _from_scratch(config: ModelConfig, tokenizer: Any) -> PreTrainedModel:
    architecture = architecture_of(config)
    architecture.vocab_size = padded_rows(len(tokenizer), multiple=config.pad_vocab_to_multiple_of)
    for key, token_id in special_ids(tokenizer).items():
        setattr(architecture, key, token_id)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            architecture, dtype=torch.float32, trust_remote_code=False
        )
    except ValueError as error:
        raise ConfigError(f"model type {architecture.model_type!r}: {first_words(error)}; choose a causal LM") from None
    return model


def _from_pretrained(config: ModelConfig, tokenizer: Any) -> PreTrainedModel:
    if config.config_kwargs:
        raise ConfigError(
            f"model.config_kwargs={config.config_kwargs} would not fit the weights of {config.path_or_name!r}; "
            "remove them or set model.from_scratch: true"
        )
    assert config.path_or_name is not None  # ModelConfig checks it
    model = _loaded(config)
    num_rows = embedding_weights(model)[0].shape[0]
    num_old_ids = len(tokenizer) - config.num_additional_tokens
    if num_rows < num_old_ids:
        raise ConfigError(
            f"{config.path_or_name!r} has {num_rows} embedding rows, but the tokenizer has {len(tokenizer)} ids; "
            f"set model.num_additional_tokens: {len(tokenizer) - num_rows}"
        )
    wanted = padded_rows(max(num_rows, len(tokenizer)), multiple=config.pad_vocab_to_multiple_of)
    if wanted > num_rows:
        refuse_rows_without_tokens(config, num_rows=num_rows, wanted=wanted)
        model.resize_token_embeddings(wanted, mean_resizing=False)
        for weight in embedding_weights(model):
            fill_with_mean(weight, first=num_rows, last=wanted, num_known=min(num_rows, num_old_ids))
    return model


def _loaded(config: ModelConfig) -> PreTrainedModel:
    assert config.path_or_name is not None
    if config.lora is None:
        return load_merged(config.path_or_name, revision=config.revision, dtype=torch.float32)
    folder = base_model(config).folder(option="model.path_or_name")
    if config.load_in_4bit:
        return load_in_4bit(folder)
    return load_backbone(folder, revision=None, dtype=torch.float32)


def special_ids(tokenizer: Any) -> dict[str, int]:
    """End-of-text stands in for a missing begin-of-text or padding token, because documents begin with it."""
    end = tokenizer.eos_token_id
    begin = tokenizer.bos_token_id
    pad = tokenizer.pad_token_id
    return {
        "eos_token_id": end,
        "bos_token_id": end if begin is None else begin,
        "pad_token_id": end if pad is None else pad,
    }


def _set_special_tokens(model: PreTrainedModel, tokenizer: Any) -> None:
    for key, token_id in special_ids(tokenizer).items():
        setattr(model.config, key, token_id)
        setattr(model.generation_config, key, token_id)
    model.generation_config = savable_generation_config(model.generation_config)
