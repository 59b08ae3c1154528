"""The ranks of a training run, as far as a worker needs to know them: many under Ray Train, or one alone."""

from typing import Protocol, TypeVar

import torch

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
