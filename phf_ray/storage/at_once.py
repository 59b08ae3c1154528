"""Asks a disk or a store many things at once: over a network each answer takes a round trip, which is waiting."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

AT_ONCE = 32
"""Requests in flight. More gain little: then Python itself is what takes the time."""


def at_once(ask: Callable[[Item], Answer], items: Iterable[Item], *, most: int = AT_ONCE) -> Iterator[Answer]:
    """Yield `ask(item)` in the order of the items, with `most` calls at the same time.

    Memory: answers of `4 * most` items, so that those of many items do not pile up behind a slow one. Raises the error
    of the first item, in their order, that has one, and then asks nothing more.
    """
    left = iter(items)
    first = list(islice(left, 2))
    if len(first) < 2:
        yield from map(ask, first)  # nothing to wait for at the same time
        return
    ahead: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(most) as threads:
        try:
            for item in first:
                ahead.append(threads.submit(ask, item))
            for item in left:
                ahead.append(threads.submit(ask, item))
                if len(ahead) >= 4 * most:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:
                waiting.cancel()
