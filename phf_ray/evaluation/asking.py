"""How jobs that ask servers are run: item by item in this process, or (`on_ray`) by several processes at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
Outcome = dict[str, Any]
"""What became of an item, or of a part of it. `refused`: `all` if the server refuses whatever it is asked."""


class ServerWork(Protocol[Item]):
    """What is asked of servers. Values only: it travels to the processes that ask."""

    takes_long: ClassVar[bool]
    """An item takes minutes: every process takes one at a time."""

    @property
    def urls(self) -> Sequence[str]:
        """The servers."""
        ...

    def run(self, item: Item) -> list[Outcome]:
        """Ask for one item, and store the answers. A failure is an outcome."""
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
        """Outcomes as they come. `max_clients`: processes that ask at once; None: as many as seems right.

        `progress` is called now and then.
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
