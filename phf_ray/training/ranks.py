"""The ranks of a training run, as far as a worker needs to know them: many under Ray Train, or one alone."""

from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class Ranks(Protocol):
    """One worker's view of all ranks. If torch has a process group, it has the same ranks."""

    rank: int
    world_size: int
    local_world_size: int
    """Number of workers on this node."""
    device: torch.device
    node: str
    """Name of the node, for people who look for the process."""

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank; all ranks must call this."""
        ...


class OneRank:
    """A single worker in this process, on its GPU if it has one."""

    rank = 0
    world_size = 1
    local_world_size = 1
    node = "local"

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def broadcast(self, value: T) -> T:
        return value


def everyones(value: T) -> list[T]:
    """Return the values of all ranks, in rank order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(value: T) -> T:
    """Return rank 0's value on every rank, whatever its size; all ranks must call this."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
