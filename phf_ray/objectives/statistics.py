"""Statistics that an objective returns with its loss, in a form that merges over micro-batches, ranks and steps.

A statistic's name begins with the operation that merges two of its values: `sum/`, `min/` or `max/`.
`Objective.summarize` computes ratios once, from the final totals, so no figure depends on how a batch was split.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypedDict

import torch
import torch.distributed as dist
from torch import Tensor

Statistics = dict[str, Tensor]
"""Name -> detached float64 tensor: a scalar, or counts per bin (`sum/..._bins`)."""

NUM_BINS = 40

_MERGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "min": torch.minimum, "max": torch.maximum}
_REDUCE = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


def combine(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Statistics:
    """Merge the statistics of two batches; keep a name that only one of them has."""
    merged = dict(left)
    for name, value in right.items():
        merged[name] = _MERGE[name.partition("/")[0]](merged[name], value) if name in merged else value
    return merged


def all_reduce(statistics: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> Statistics:
    """Merge statistics over all ranks; every rank must pass the same names. One collective call per operation."""
    totals = dict(statistics)
    if not dist.is_available() or not dist.is_initialized():
        return totals
    for kind, operation in _REDUCE.items():
        names = sorted(name for name in totals if name.startswith(f"{kind}/"))
        if names:
            packed = torch.cat([totals[name].reshape(-1) for name in names])
            dist.all_reduce(packed, op=operation, group=group)
            totals.update(unpacked(packed, like={name: totals[name] for name in names}))
    return totals


def unpacked(packed: Tensor, *, like: Mapping[str, Tensor]) -> Statistics:
    """Split one row of numbers into tensors with the names, order and shapes of `like`."""
    parts = packed.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}


class BinCounts(TypedDict):
    edges: list[float]
    """One more edge than counts."""
    counts: list[float]


def counts_by_bin(places_N: Tensor, *, counted_N: Tensor) -> Tensor:
    """Count the places that `counted_N` selects in NUM_BINS equal bins of [0, 1); places outside go to the end bins."""
    bins_N = (places_N * NUM_BINS).clamp(0, NUM_BINS - 1).long()
    counts = torch.zeros(NUM_BINS, dtype=torch.float64, device=places_N.device)
    return counts.scatter_add_(0, bins_N, counted_N.double())


# Weights differ from 1 by a percent in one run and by a factor of a hundred in another. So bins have equal widths in
# asinh(log(w) / 0.01), which is linear in log(w) near w = 1 and logarithmic in log(w) far from it.
_FINE = 0.01


def weight_places(weights_N: Tensor, *, largest: float) -> Tensor:
    """Map each weight to its place in [0, 1]: 1 / largest to 0, largest to 1."""
    places_N = torch.asinh(weights_N.double().log() / _FINE) / math.asinh(_reach(largest) / _FINE)
    return (places_N.clamp(-1, 1) + 1) / 2


def weight_edges(*, largest: float) -> list[float]:
    whole = math.asinh(_reach(largest) / _FINE)
    return [math.exp(_FINE * math.sinh(whole * (2 * edge / NUM_BINS - 1))) for edge in range(NUM_BINS + 1)]


def _reach(largest: float) -> float:
    return max(abs(math.log(largest)), 1.0)
