"""Assigns blocks to ranks and steps, and reads them ahead.

With a batch of N sequences, step k takes positions [k N, (k + 1) N) of the training order, for any number of workers
and after any restart.

Shapes: B sequences per micro-batch, S tokens per sequence.
"""

import contextlib
import dataclasses
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from phf_ray.objectives.base import Objective, ObjectiveOutput
from phf_ray.records import TokenKind

T = TypeVar("T")


class BlockSlice(Protocol):
    """n consecutive blocks of the training order; each array has shape (n, S)."""

    @property
    def input_ids(self) -> NDArray[np.int32]: ...
    @property
    def token_scores(self) -> NDArray[np.float32]: ...
    @property
    def token_kinds(self) -> NDArray[np.uint8]: ...
    @property
    def channels(self) -> Mapping[str, NDArray[np.float32]]: ...


ReadBlocks = Callable[[int, int], BlockSlice]
"""Reads the blocks at positions [begin, end) of the training order, which covers all epochs."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    input_ids_BS: Tensor
    token_scores_BS: Tensor
    token_kinds_BS: Tensor
    first_block: int
    """Position of the first block in the training order; -1 for padding, which has no targets."""
    channels: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Named numbers of each token, float32 (B, S), for objectives that read them."""

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            _moved(self.input_ids_BS, device),
            _moved(self.token_scores_BS, device),
            _moved(self.token_kinds_BS, device),
            self.first_block,
            {name: _moved(channel_BS, device) for name, channel_BS in self.channels.items()},
        )

    def only(self, keep_BS: Tensor | None) -> "MicroBatch":
        """Return these tokens, moved together at the beginning of each sequence. None: all."""
        if keep_BS is None:
            return self
        keep_BS = keep_BS & (self.token_kinds_BS != int(TokenKind.PAD))
        # At least two tokens, because an objective reads what one says of the next.
        width = max(2, int(keep_BS.sum(1).max()))
        order_BS = torch.argsort(~keep_BS, dim=1, stable=True)[:, :width]

        def moved(tensor_BS: Tensor) -> Tensor:
            return tensor_BS.gather(1, order_BS)

        return MicroBatch(
            moved(self.input_ids_BS),
            moved(self.token_scores_BS),
            torch.where(moved(keep_BS), moved(self.token_kinds_BS), int(TokenKind.PAD)),
            self.first_block,
            {name: moved(channel_BS) for name, channel_BS in self.channels.items()},
        )

    def through(self, model: nn.Module, objective: Objective, *, is_forgetful: bool = False) -> ObjectiveOutput:
        """Run the model on this batch, and the objective inside the same forward call.

        `is_forgetful`: tell the model the batch's place, from which it draws what it hides.
        """
        place = {"first_block": self.first_block} if is_forgetful else {}
        output: ObjectiveOutput = model(
            self.input_ids_BS, self.token_scores_BS, self.token_kinds_BS, objective, self.channels, **place
        )
        return output


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device.type == device.type:
        return tensor
    # A copy to a GPU from memory that is not pinned waits for everything launched before it.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def share_of_step(
    step: int, rank: int, *, world_size: int, batch_size: int, micro_batch_size: int
) -> list[tuple[int, int]]:
    """Return the ranges of positions that `rank` computes in `step`, one per micro-batch; an empty range is padding.

    The ranks' shares are contiguous and differ by at most one micro-batch. All ranks get the same number of ranges,
    because a forward pass under FSDP is a collective operation.
    """
    first = step * batch_size
    num_micro_batches = math.ceil(batch_size / micro_batch_size)
    begin, end = (r * num_micro_batches // world_size for r in (rank, rank + 1))
    ranges = [
        (first + index * micro_batch_size, first + min((index + 1) * micro_batch_size, batch_size))
        for index in range(begin, end)
    ]
    return ranges + [(first, first)] * (math.ceil(num_micro_batches / world_size) - len(ranges))


@dataclass(frozen=True, slots=True)
class DataShare:
    """The part of the training order that this rank reads."""

    batch_size: int
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    first_block: int = 0
    """Number of blocks to skip at the head of the order."""


def step_batches(read: ReadBlocks, share: DataShare, *, steps: range) -> Iterator[list[MicroBatch]]:
    """Yield this rank's micro-batches of each step."""
    for step in steps:
        yield [
            _micro_batch(read, share.first_block + begin, share.first_block + end)
            for begin, end in share_of_step(
                step,
                share.rank,
                world_size=share.world_size,
                batch_size=share.batch_size,
                micro_batch_size=share.micro_batch_size,
            )
        ]


def batch_of(blocks: BlockSlice, part: slice, *, first_block: int = 0) -> MicroBatch:
    """Return some of the blocks as a micro-batch."""
    return MicroBatch(
        torch.from_numpy(blocks.input_ids[part].astype(np.int64)),
        torch.from_numpy(np.array(blocks.token_scores[part], dtype=np.float32)),
        torch.from_numpy(np.array(blocks.token_kinds[part], dtype=np.uint8)),
        first_block,
        {name: torch.from_numpy(np.array(channel[part], np.float32)) for name, channel in blocks.channels.items()},
    )


def _micro_batch(read: ReadBlocks, begin: int, end: int) -> MicroBatch:
    if begin < end:
        return batch_of(read(begin, end), slice(None), first_block=begin)
    padding = batch_of(read(begin, begin + 1), slice(None), first_block=-1)
    return dataclasses.replace(padding, token_kinds_BS=torch.full_like(padding.token_kinds_BS, int(TokenKind.PAD)))


def prefetched(items: Iterable[T], *, depth: int = 4) -> Iterator[T]:
    """Yield the same items while a thread reads up to `depth` of them ahead; raise the source's exceptions here."""
    buffer: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                buffer.put(entry, timeout=0.1)
                return

    def fill() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:  # noqa: BLE001  (border of a thread: handed to the consumer)
            put((None, error))

    threading.Thread(target=fill, name="prefetch", daemon=True).start()
    try:
        while True:
            item, error = buffer.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
