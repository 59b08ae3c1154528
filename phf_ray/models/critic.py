"""The critic that training starts from: a reward model, whose head says values from now on, or a plain language model.

A plain language model gets a head that says 0. An adapter is merged into its base model: all weights of a critic train.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from phf_ray.adapter_folder import is_adapter, judges_texts, model_or_base
from phf_ray.errors import ConfigError, DataError
from phf_ray.model_folder import check_weight_files
from phf_ray.models.backbone import first_words, is_classifier
from phf_ray.models.build import special_ids
from phf_ray.models.embeddings import learn_padding_rows
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.merging import load_merged
from phf_ray.models.recovery import REWARD_BIAS, reward_bias_of
from phf_ray.models.reward_model import (
    HEAD,
    RewardModel,
    as_reward_model,
    classifier_without_weights,
    load_reward_model,
    refuse_several,
)
from phf_ray.models.shape import ModelShape, shape_of


def load_critic(folder: Path, *, tokenizer: Any, starts_at_zero: bool = False) -> RewardModel:
    """Load a critic in fp32. `starts_at_zero`: with a head that says 0 in place of a reward model's own.

    Raises like `load_reward_model`, and like `load_merged` for a language model.
    """
    if _judges(folder):
        model = load_reward_model(folder)
    else:
        model = as_reward_model(LanguageModel(load_merged(folder, dtype=torch.float32)))
        learn_padding_rows(model.backbone, is_new=False)
    described: Any = model.backbone.config
    if described.pad_token_id is None:
        # transformers reads a classifier's answer before the padding.
        described.pad_token_id = special_ids(tokenizer)["pad_token_id"]
    for parameter in model.parameters():
        # Tensors of a mapped file keep the file's alignment, and sums in matrix products can depend on it.
        parameter.data = parameter.data.clone()
        parameter.requires_grad_()
    if starts_at_zero:
        with torch.no_grad():
            for tensor in model.head()[:2]:
                if tensor is not None:
                    tensor.zero_()
        setattr(described, REWARD_BIAS, 0.0)
    return model.train()


def planned_critic_shape(folder: Path) -> ModelShape:
    """Return the shape of what `load_critic` loads, without loading a weight.

    Raises DataError if weights are missing or damaged, its bias is no number or it is a classifier with several
    outputs, ConfigError if it can be none with one.
    """
    config = critic_config(folder)
    reward_bias_of(config)
    if not is_adapter(folder):
        check_weight_files(folder)
        if _judges(folder):
            refuse_several(folder, num_labels=config.num_labels)
    try:
        classifier = classifier_without_weights(config, role="a critic")
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    if not isinstance(getattr(classifier, HEAD, None), nn.Linear):
        raise ConfigError(f"{folder}: {type(classifier).__name__} has no linear head on a trunk; choose another model")
    return shape_of(RewardModel(classifier, is_probed=False))


def critic_config(folder: Path) -> Any:
    """Read its architecture, an adapter's from its base model. Raises DataError if it can't be read."""
    try:
        return AutoConfig.from_pretrained(model_or_base(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: config.json can't be read: {first_words(error)}; fetch it again") from None


def _judges(folder: Path) -> bool:
    return judges_texts(folder) if is_adapter(folder) else is_classifier(folder)
