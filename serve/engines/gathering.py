"""Waits for several calls or streams at once, and cancels the rest at the first failure."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

Answer = TypeVar("Answer")


async def all_of(calls: Sequence[Awaitable[Answer]]) -> list[Answer]:
    """Return all answers, in order. At the first failure, or if the caller goes away, cancel the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def merged_streams(streams: Sequence[AsyncIterator[Answer]]) -> AsyncIterator[Answer]:
    """Yield the items of all streams as they come; the first failure ends all streams."""
    arrived: asyncio.Queue[Answer | asyncio.Task[None]] = asyncio.Queue()

    async def pump(stream: AsyncIterator[Answer]) -> None:
        async for item in stream:
            arrived.put_nowait(item)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    for task in tasks:
        task.add_done_callback(arrived.put_nowait)
    try:
        num_open = len(tasks)
        while num_open:
            item = await arrived.get()
            if isinstance(item, asyncio.Task):
                num_open -= 1
                item.result()
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
