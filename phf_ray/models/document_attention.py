"""Attention inside each document of a block, one document after the other, and nothing computed for padding.

The other way, a mask of tokens x tokens, computes the products of all pairs and hides most of them. On a CPU that is
most of the cost of attention in blocks of short documents. On a GPU one call per document costs more than it saves, so
the mask stays; `attn_implementation: flash_attention_2` does there what this file does here.

Shapes: B sequences, S tokens, N tokens that are not padding, H heads, D size of a state or head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_document"
_FULL = {"full_attention"}


def attend_by_document(
    module: nn.Module,
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of transformers' interface. Whole numbers as mask, (1, 1, 1, N), are each token's document; any other
    mask means what it means to sdpa."""
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query_1HND, key_1HND, value_1HND, attention_mask, **options)
    lengths: list[int] = attention_mask.flatten().unique_consecutive(return_counts=True)[1].tolist()
    # Split, not sliced: the gradient of a slice is as large as the whole.
    split = zip(*(each.split(lengths, dim=2) for each in (query_1HND, key_1HND, value_1HND)), strict=True)
    states = [sdpa_attention_forward(module, query, key, value, None, **options)[0] for query, key, value in split]
    return torch.cat(states, dim=1), None


AttentionInterface.register(NAME, attend_by_document)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_attention_by_document(backbone: PreTrainedModel) -> bool:
    """Make the model's layers understand documents as mask. Returns False if some layer has a window, or not sdpa."""
    config: Any = backbone.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    types = set(getattr(config, "layer_types", None) or ())
    sees_all = types <= _FULL if types else sizes == [None, None]
    if backbone.config._attn_implementation != "sdpa" or not sees_all:
        return backbone.config._attn_implementation == NAME
    backbone.set_attn_implementation(NAME)
    return True


def states_by_document(
    run: Callable[..., Tensor], input_ids_BS: Tensor, positions_BS: Tensor, kept_BS: Tensor
) -> Tensor:
    """Run the model on the tokens to be kept as one row, and return all states, (B, S, D): 0 where none was kept."""
    places_N = kept_BS.flatten().nonzero().squeeze(1)
    positions_1N = positions_BS.flatten()[None, places_N]
    documents_1N = (positions_1N == 0).cumsum(dim=1)
    states_1ND = run(
        input_ids_BS.flatten()[None, places_N],
        attention_mask=documents_1N[:, None, None],
        position_ids_BS=positions_1N,
    )
    all_states = states_1ND.new_zeros(kept_BS.numel(), states_1ND.shape[-1])
    return all_states.index_copy(0, places_N, states_1ND[0]).unflatten(0, kept_BS.shape)
