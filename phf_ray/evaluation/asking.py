"""Runs work that sends requests to servers: item by item in this process, or in several processes (`on_ray`)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
Outcome = dict[str, Any]
"""The result of an item, or of a part of it. `refused`: `all` if the server refuses every request."""


class ServerWork(Protocol[Item]):
    """Work that sends requests to servers. Plain values only, because it travels to the processes that do the work."""

    takes_long: ClassVar[bool]
    """Whether an item takes minutes. Then every process takes one item at a time."""

    @property
    def urls(self) -> Sequence[str]:
        """URLs of the servers."""
        ...

    def run(self, item: Item) -> list[Outcome]:
        """Send the requests of one item, and store the answers. A failure is an outcome, not an exception."""
        ...


class AskRunner(Protocol):
    def __call__(
        self,
        work: ServerWork[Any],
        items: Sequence[Any],
        *,
        max_clients: int | None,
        progress: Callable[[], None] = lambda: None,
    ) -> Iterator[Outcome]:
        """Yield outcomes as they arrive. `max_clients`: processes that work at once; None: the runner decides.

        The runner calls `progress` now and then.
        """
        ...


def run_here(
    work: ServerWork[Any],
    items: Sequence[Any],
    *,
    max_clients: int | None,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """An `AskRunner` in this process, without Ray."""
    del max_clients
    for item in items:
        yield from work.run(item)
        progress()
