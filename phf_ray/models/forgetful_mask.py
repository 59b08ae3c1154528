"""Forgetful causal masking: in training, each token overlooks some of the tokens before it (Liu et al. 2022).

Each sequence draws a ratio between `min` and `max`; each pair of a query and a key is dropped with that probability,
alike in all layers. The first key of each document and the token itself are never dropped. The numbers are drawn from
the seed and the sequence's place in the training order, so any number of workers draws the same.

The mask is added to the products of queries and keys. Masks of true and false would be wrong in transformers' eager
attention, and its flash attention takes none.

The price: S x S random numbers per sequence, and attention without its fastest kernels.

Shapes: B sequences, S tokens, Q queries, K keys.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from phf_ray.errors import ConfigError

# A constant that every precision holds as a number, or as minus infinity.
_HIDDEN = float(torch.finfo(torch.bfloat16).min)


@dataclass(frozen=True, slots=True)
class ForgetfulMask:
    min: float
    max: float
    seed: int
    keeps_itself: bool = True
    """False: the token itself may be dropped too, and of a row's keys only the first is kept, as in the original."""

    def additive(self, positions_BS: Tensor, *, first_block: int, by_document: bool, dtype: torch.dtype) -> Tensor:
        """Return 0 where a query sees a key and a large negative number elsewhere, (B, 1, Q, K).

        positions_BS: each token's position in its document. `by_document`: whether other documents are hidden.
        """
        seen_BQK = visible(positions_BS, by_document=by_document)
        dropped = [
            self._dropped(first_block + row, size=positions_BS.shape[1], device=positions_BS.device)
            for row in range(len(positions_BS))
        ]
        kept_BK = positions_BS == 0
        if not self.keeps_itself and not by_document:
            kept_BK = torch.zeros_like(kept_BK)
        kept_BK = kept_BK | (torch.arange(kept_BK.shape[1], device=kept_BK.device) == 0)
        lost_BQK = torch.stack(dropped) & ~kept_BK[:, None, :]
        if self.keeps_itself:
            lost_BQK = lost_BQK & ~torch.eye(kept_BK.shape[1], dtype=torch.bool, device=kept_BK.device)
        return as_additive(seen_BQK & ~lost_BQK, dtype=dtype)

    def _dropped(self, place: int, *, size: int, device: torch.device) -> Tensor:
        """Return whether each key is dropped for each query, (Q, K), for the sequence at this place."""
        words = np.random.SeedSequence([self.seed % 2**64, place, 3]).generate_state(2, np.uint64)
        ratio = self.min + (self.max - self.min) * int(words[0]) / 2**64
        generator = torch.Generator(device=device)
        generator.manual_seed(int(words[1] >> np.uint64(1)))
        return torch.rand(size, size, generator=generator, device=device) < ratio


def visible(positions_BS: Tensor, *, by_document: bool) -> Tensor:
    """Return which keys each query may see, (B, Q, K): those before it and itself, in its document or in its row."""
    size = positions_BS.shape[1]
    causal_QK = torch.ones(size, size, dtype=torch.bool, device=positions_BS.device).tril()
    if not by_document:
        return causal_QK.expand(len(positions_BS), -1, -1)
    document_BS = (positions_BS == 0).cumsum(1)
    return causal_QK & (document_BS[:, :, None] == document_BS[:, None, :])


def as_additive(seen_BQK: Tensor, *, dtype: torch.dtype) -> Tensor:
    hidden = torch.zeros(seen_BQK.shape, dtype=dtype, device=seen_BQK.device)
    return hidden.masked_fill(~seen_BQK, _HIDDEN)[:, None]


def check_takes_masks(backbone: PreTrainedModel) -> None:
    """Raise ConfigError if the model's attention can't take a mask of its own for each pair of tokens."""
    config: Any = backbone.config.get_text_config()
    implementation = str(config._attn_implementation)
    if "flash" in implementation or "flex" in implementation:
        raise ConfigError(
            f"training.forgetful_mask needs a mask for each pair of tokens, which {implementation} does not take; set "
            "model.attn_implementation: sdpa"
        )
    types = set(getattr(config, "layer_types", None) or ())
    sizes = {name: getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")}
    window = types - {"full_attention"} if types else {name for name, size in sizes.items() if size is not None}
    if window:
        raise ConfigError(
            f"{type(backbone).__name__} has layers that see only a part ({', '.join(sorted(window))}), which "
            "training.forgetful_mask would undo; remove it, or choose another model"
        )
    _probe(backbone)


def _probe(backbone: PreTrainedModel) -> None:
    """Hide a token and check that those after it don't change with it."""
    embedding: Any = backbone.get_input_embeddings()
    weight: Tensor = embedding.weight
    ids_BS = torch.arange(4, device=weight.device)[None] + weight.shape[0] // 2
    other_BS = ids_BS.clone()
    other_BS[0, 1] += 1
    positions_BS = torch.arange(4, device=weight.device)[None]
    seen_BQK = visible(positions_BS, by_document=False).clone()
    seen_BQK[:, 2:, 1] = False
    mask = as_additive(seen_BQK, dtype=weight.dtype)
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            states = [
                backbone.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, 2:]
                for ids in (ids_BS, other_BS)
            ]
    finally:
        backbone.train(was_training)
    if not torch.allclose(states[0].float(), states[1].float(), rtol=1e-3, atol=1e-5):
        raise ConfigError(
            f"{type(backbone).__name__} does not hide the tokens that a mask hides; remove training.forgetful_mask or "
            "choose another model"
        )
