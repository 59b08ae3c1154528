"""Initialises the embedding rows of new tokens, and lets every row learn."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from phf_ray.errors import ConfigError

# Standard deviation of the noise on new embedding rows. As in the original, they start at the mean of the others.
_NEW_ROW_NOISE = 0.01


def embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    """Return the input embedding, the head unless they are tied, and the head's bias as a column."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    weights: list[Tensor] = [embedding.weight, head.weight]
    if weights[0] is weights[1]:
        del weights[1]
    bias = getattr(head, "bias", None)
    return weights if bias is None else [*weights, bias.view(-1, 1)]


def start_new_rows(model: PreTrainedModel, tokenizer: Any, *, num_new: int) -> None:
    """Start the rows of new tokens, which are the tokenizer's last ids, at the mean of the others."""
    if not 0 <= num_new < len(tokenizer):
        raise ConfigError(f"model.num_additional_tokens={num_new}, but the tokenizer has {len(tokenizer)} ids")
    num_known = len(tokenizer) - num_new
    if num_new:
        for weight in embedding_weights(model):
            fill_with_mean(weight, first=num_known, last=len(tokenizer), num_known=num_known)


def fill_with_mean(weight_VD: Tensor, *, first: int, last: int, num_known: int) -> None:
    with torch.no_grad():
        mean_D = weight_VD[:num_known].mean(dim=0)
        weight_VD[first:last] = mean_D + _NEW_ROW_NOISE * torch.randn(last - first, mean_D.shape[0])


def learn_padding_rows(model: nn.Module, *, is_new: bool) -> None:
    """Let the padding token's embedding learn.

    Blocks have no padding, but end-of-text may stand in for a padding token, and every document begins with it. torch
    gives the row at an embedding's `padding_idx` no gradient: it would stay as it is for ever.

    `is_new`: draw the row like the others, because a new model's is zero. Loaded weights stay as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            weight_VD = module.weight.detach()
            if is_new:
                weight_VD[module.padding_idx] = torch.randn(weight_VD.shape[1]) * weight_VD.std()
            module.padding_idx = None
