"""Waits for several calls or streams at once, and cancels the rest with the first failure."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

Answer = TypeVar("Answer")


async def all_of(calls: Sequence[Awaitable[Answer]]) -> list[Answer]:
    """All answers, in order. With the first failure, or when the caller goes away, the others are cancelled."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def merged_streams(streams: Sequence[AsyncIterator[Answer]]) -> AsyncIterator[Answer]:
    """Items of all streams as they come; the first failure of any ends them all."""
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
