"""Waits for Ray tasks that each do a part of a corpus, for every stage that has such tasks."""

from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayTaskError

from phf_ray.errors import PhfError


def as_they_finish(pending: list[Any]) -> Iterator[Any]:
    """Yield the results of tasks. Raises a task's PhfError as it is; cancels the rest if the caller stops."""
    try:
        while pending:
            finished, pending = ray.wait(pending)
            yield from ray.get(finished)
    except RayTaskError as error:
        if isinstance(error.cause, PhfError):
            raise error.cause from None
        raise
    finally:
        for reference in pending:
            ray.cancel(reference)
