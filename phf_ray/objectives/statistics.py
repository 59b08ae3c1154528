"""What an objective measures beside its loss, in a form that adds up over micro-batches, ranks and steps.

A statistic's name begins with how two of it become one: `sum/`, `min/` or `max/`. Ratios are taken once, at the end,
from the totals (`Objective.summarize`), so no figure depends on how a batch was split.
"""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

Statistics = dict[str, Tensor]
"""Name -> detached scalar, float64."""

_MERGE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sum": torch.add, "min": torch.minimum, "max": torch.maximum}
_REDUCE = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}


def combine(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Statistics:
    """Statistics of two batches together; a name that only one of them has is kept."""
    merged = dict(left)
    for name, value in right.items():
        merged[name] = _MERGE[name.partition("/")[0]](merged[name], value) if name in merged else value
    return merged


def all_reduce(statistics: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> Statistics:
    """Statistics over all ranks, on all of them; every rank must bring the same names. One call per kind."""
    totals = dict(statistics)
    if not dist.is_available() or not dist.is_initialized():
        return totals
    for kind, operation in _REDUCE.items():
        names = sorted(name for name in totals if name.startswith(f"{kind}/"))
        if names:
            packed = torch.stack([totals[name] for name in names])
            dist.all_reduce(packed, op=operation, group=group)
            totals.update(zip(names, packed.unbind(), strict=True))
    return totals
