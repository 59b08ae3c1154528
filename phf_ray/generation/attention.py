"""Which keys a token sees when many texts of different length are decoded together.

Full attention sees every key of the row. Some layers see fewer: the last ones (a sliding window), or those in the same
chunk of positions. The engine builds the masks itself, because transformers counts the positions of all rows from the
longest one.

Shapes: B rows, L keys of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SLIDING = ("sliding_attention", "hybrid_sliding", "reference_sliding_attention")


@dataclass(frozen=True, slots=True)
class Sight:
    """The keys that a layer's tokens see: all if both sizes are None."""

    window: int | None = None
    """Number of last keys, with the token's own."""
    chunk: int | None = None
    """Number of positions in a chunk; the first begins at 0."""

    def hidden(self, key_positions_BL: Tensor, positions_B: Tensor) -> Tensor:
        """Return where a row's token, at its position, does not see a key; keys at negative positions are padding."""
        own_B1 = positions_B[:, None]
        hidden_BL = (key_positions_BL > own_B1) | (key_positions_BL < 0)
        if self.window is not None:
            hidden_BL |= key_positions_BL <= own_B1 - self.window
        if self.chunk is not None:
            hidden_BL |= key_positions_BL // self.chunk != own_B1 // self.chunk
        return hidden_BL


class AttentionMasks:
    """The masks of a model's layers, by its configuration."""

    def __init__(self, config: Any):
        window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
        types = set(getattr(config, "layer_types", None) or ())
        self._sights = {type_: _sight(type_, window=window, chunk=chunk) for type_ in types}
        if not types:
            self._sights = {"": Sight(window=window) if window is not None else Sight(chunk=chunk)}
        sizes = [size for sight in self._sights.values() for size in (sight.window, sight.chunk) if size is not None]
        self.smallest: int | None = min(sizes, default=None)
        """Number of keys within which all layers see the same; None: any number."""

    def build(self, key_positions_BL: Tensor, positions_B: Tensor, *, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
        """Return the mask of one decoded token per row, (B, 1, 1, L), or one for each type of layer.

        Masks are additive: eager attention adds them, and the fused kernels accept either kind.
        """

        def mask(sight: Sight) -> Tensor:
            hidden_BL = sight.hidden(key_positions_BL, positions_B)
            mask_BL = torch.zeros(hidden_BL.shape, dtype=dtype, device=hidden_BL.device)
            return mask_BL.masked_fill_(hidden_BL, torch.finfo(dtype).min)[:, None, None]

        if self.smallest is None or key_positions_BL.shape[1] <= self.smallest:
            return mask(Sight())
        if len(set(self._sights.values())) == 1:
            return mask(next(iter(self._sights.values())))
        return {type_: mask(sight) for type_, sight in self._sights.items()}


def _sight(layer_type: str, *, window: int | None, chunk: int | None) -> Sight:
    if layer_type in _SLIDING:
        return Sight(window=window)
    return Sight(chunk=chunk) if layer_type == "chunked_attention" else Sight()
