"""Computes the sizes that determine a model's memory and arithmetic."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from phf_ray.config import ModelConfig
from phf_ray.models.adapters import Adapter, add_adapter
from phf_ray.models.architecture import architecture_of, padded_rows
from phf_ray.models.frozen_base import base_model, refuse_rows_without_tokens
from phf_ray.models.heads import ValueHead, head_width
from phf_ray.models.language_model import LanguageModel, transformer_blocks
from phf_ray.models.reward_model import as_reward_model


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes that determine a model's memory and arithmetic."""

    num_parameters: int
    """Number of parameters; a tied weight counts once."""
    num_multiplied: int
    """Parameters that multiply every token: the head, and all others except embeddings, which are looked up."""
    num_trained: int
    """Parameters that are not frozen, or of which a part is not."""
    num_trained_multiplied: int
    """Those of `num_multiplied` that are not frozen."""
    trains_head: bool
    num_layers: int
    width: int
    """Width of the hidden states."""
    attention_width: int
    """Number of heads x size of a head."""
    num_rows: int
    """Rows of the head: the vocabulary with padding."""

    def flops_per_token(self, length: int) -> float:
        """Return FLOPs of a forward and backward pass at context `length`: 6 N + 12 L H Q T (PaLM, appendix B).

        A frozen parameter costs 4 in place of 6, because it needs no gradient of its own.
        """
        products = 4.0 * self.num_multiplied + 2.0 * self.num_trained_multiplied
        return products + 12.0 * self.num_layers * self.attention_width * length


def shape_of(model: LanguageModel) -> ModelShape:
    """Return the shape of one model; each of its `parts` has its own."""
    head_VD = model.head()[0]
    looked_up = {
        id(parameter)
        for module in model.backbone.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    } - {id(head_VD)}
    config: Any = model.backbone.config
    num_heads = getattr(config, "num_attention_heads", None) or 1
    size_of_head = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    others = {id(each) for part in model.parts()[1:] for each in part.parameters()}
    parameters = [each for each in model.parameters() if id(each) not in others]
    trained = [each for each in parameters if each.requires_grad]
    return ModelShape(
        num_parameters=sum(each.numel() for each in parameters),
        num_multiplied=sum(each.numel() for each in parameters if id(each) not in looked_up),
        num_trained=sum(each.numel() for each in trained),
        num_trained_multiplied=sum(each.numel() for each in trained if id(each) not in looked_up),
        trains_head=head_VD.requires_grad,
        num_layers=len(transformer_blocks(model)),
        width=head_VD.shape[1],
        attention_width=num_heads * size_of_head,
        num_rows=head_VD.shape[0],
    )


def planned_shape(config: ModelConfig, *, tokenizer: Any, is_reward_model: bool = False) -> ModelShape:
    """Return the shape of the model that `build_model` would build, without allocating a single weight.

    `is_reward_model`: that of the reward model that `as_reward_model` makes of it.

    Raises ConfigError if `model.lora` names layers that the model does not have, or can't have such a base model.
    """
    adapted = None if config.lora is None else base_model(config)
    if adapted is not None:
        config = config.model_copy(update={"path_or_name": str(adapted.folder(option="model.path_or_name"))})
    if config.from_scratch:
        architecture = architecture_of(config)
        architecture.vocab_size = padded_rows(len(tokenizer), multiple=config.pad_vocab_to_multiple_of)
    else:
        architecture = architecture_of(config.model_copy(update={"config_kwargs": {}}))
        num_rows = architecture.vocab_size
        architecture.vocab_size = padded_rows(max(num_rows, len(tokenizer)), multiple=config.pad_vocab_to_multiple_of)
        if architecture.vocab_size > num_rows:
            refuse_rows_without_tokens(config, num_rows=num_rows, wanted=architecture.vocab_size)
    if (getattr(architecture, "pad_token_id", None) or 0) >= architecture.vocab_size:
        # The default of some (Phi-3: 32000) is beyond a small vocabulary; `build_model` sets the tokenizer's own.
        architecture.pad_token_id = 0
    adapter: Adapter | None = None
    with torch.device("meta"):
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
        backbone.tie_weights()
        if config.lora is not None and adapted is not None:
            first_new_row = len(tokenizer) - config.num_additional_tokens if config.num_additional_tokens else None
            adapter = add_adapter(backbone, config.lora, base=adapted, first_new_row=first_new_row, seed=0)
        value_head = None if config.model_kwargs.value_head_config is None else ValueHead(head_width(backbone))
    model = LanguageModel(backbone, value_head=value_head, is_probed=False)
    model.adapter = adapter
    return shape_of(as_reward_model(model, is_probed=False) if is_reward_model else model)
