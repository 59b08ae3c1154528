"""Prepares shards of feedback in Ray tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError

from phf_ray.errors import PhfError


def run_feedback_on_ray(work: Callable[[Mapping[str, Any]], Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Do each row in a Ray task, and yield the results as they come. A `FeedbackRunner`. Ray must be running."""
    body: Any = work
    task = ray.remote(num_cpus=1)(body)
    pending = [task.remote(row) for row in rows]
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
