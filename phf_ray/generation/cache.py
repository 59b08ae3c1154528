"""Keys and values of all requests in the batch.

Each request has a slot: a row that is filled from position 0. The rows in use come first, so a step reads them without
a copy. The price: every row takes as many positions as the longest row in use.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


class KeyValueSlots(Cache):
    """Keys and values of the requests in the batch: row i is request i, filled from position 0.

    `aim` sets where the next forward pass writes and how far it reads.
    """

    def __init__(self, prefilled: DynamicCache):
        self._layers = [_SlotLayer(layer) for layer in _layers(prefilled)]
        if not self._layers:
            raise ValueError("the model keeps no keys and values")
        super().__init__(layers=list(self._layers))

    @property
    def bytes_per_position(self) -> int:
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in self._parts())

    def _parts(self) -> Iterable[Tensor]:
        for layer in self._layers:
            yield layer.keys
            yield layer.values

    @property
    def shape(self) -> tuple[int, int]:
        """Number of allocated rows, and of positions in each."""
        keys = self._layers[0].keys
        return keys.shape[0], keys.shape[2]

    def reserve(self, rows: int, length: int, *, limit: int, budget: float) -> None:
        """Make room for `rows` rows of `length` positions each; `limit` is the largest length of a row.

        Grows by doubling. If doubling would exceed `budget` positions in total, drops the unneeded rows and makes the
        rest only as long as the budget allows. Only a single row may exceed the budget.
        """
        old_rows, old_length = self.shape
        fits = old_rows * old_length <= budget or rows == 1
        if rows <= old_rows and length <= old_length and fits:
            return
        new_rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        new_length = old_length if length <= old_length else min(max(length, 2 * old_length, 64), limit)
        if new_rows * new_length > budget:
            new_rows = rows
            new_length = new_length if rows == 1 else int(max(length, min(new_length, budget // rows)))
        for layer in self._layers:
            layer.resize(new_rows, new_length)

    def adopt(self, prefilled: DynamicCache, source_rows: Tensor, *, first_row: int) -> None:
        """Copy rows `source_rows` of a finished prefill to consecutive rows, starting at `first_row`."""
        for mine, theirs in zip(self._layers, _layers(prefilled), strict=True):
            last_row, length = first_row + len(source_rows), theirs.keys.shape[2]
            mine.keys[first_row:last_row, :, :length] = theirs.keys[source_rows]
            mine.values[first_row:last_row, :, :length] = theirs.values[source_rows]

    def move(self, source_row: int, target_row: int, *, length: int) -> None:
        for part in self._parts():
            part[target_row, :, :length] = part[source_row, :, :length]

    def aim(self, positions: list[int], *, device: str, aligns_right: bool = False) -> Tensor:
        """Make the next pass write one position in each of the first rows: `positions[i]` in row i.

        Returns the position of each key that the pass reads, (rows, longest row). With `aligns_right`, every row ends
        at the last key, and keys before its beginning have negative positions: for models that count a window back from
        the last key of the batch. The price is a copy of all keys and values in use.
        """
        num_rows, length = len(positions), max(positions) + 1
        shared = positions[0] if len(set(positions)) == 1 else None
        positions_B = torch.tensor(positions, device=device)
        key_positions_BL = torch.arange(length, device=device).expand(num_rows, -1)
        columns_BL = None
        if aligns_right and shared is None:
            key_positions_BL = key_positions_BL - (length - 1 - positions_B)[:, None]
            columns_BL = key_positions_BL.clamp(min=0)
        index = (torch.arange(num_rows, device=device), positions_B)
        for layer in self._layers:
            layer.rows, layer.length, layer.shared, layer.index = num_rows, length, shared, index
            layer.columns_BL = columns_BL
        return key_positions_BL


def _layers(prefilled: DynamicCache) -> list[Any]:
    """Return the layers of keys and values (B, heads, L, size). A model with other state fails the engine's check."""
    return list(prefilled.layers)


class _SlotLayer(DynamicLayer):
    keys: Tensor
    values: Tensor
    rows: int
    length: int
    shared: int | None
    index: tuple[Tensor, Tensor]
    columns_BL: Tensor | None

    def __init__(self, like: Any):
        super().__init__()
        self.keys, self.values = (
            part.new_zeros(0, part.shape[1], 0, part.shape[3]) for part in (like.keys, like.values)
        )
        self.is_initialized = True
        self.length = 1

    def get_seq_length(self) -> int:
        """Return the number of keys of the longest row before this pass, not the number that there is room for."""
        return self.length - 1

    def resize(self, rows: int, length: int) -> None:
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(rows, old.shape[1], length, old.shape[3])
            kept = old[:rows, :, :length]
            new[: kept.shape[0], :, : kept.shape[2]] = kept
            setattr(self, name, new)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.shared is not None:
            self.keys[: self.rows, :, self.shared] = key_states[:, :, 0]
            self.values[: self.rows, :, self.shared] = value_states[:, :, 0]
        else:
            rows, positions = self.index
            self.keys[rows, :, positions] = key_states[:, :, 0]
            self.values[rows, :, positions] = value_states[:, :, 0]
        return self._read(self.keys), self._read(self.values)

    def _read(self, part: Tensor) -> Tensor:
        part_BHLD = part[: self.rows, :, : self.length]
        if self.columns_BL is None:
            return part_BHLD
        return part_BHLD.gather(2, self.columns_BL[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))
