"""Prepares shards of feedback in Ray tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from phf_ray.corpus.on_ray import as_they_finish


def run_feedback_on_ray(work: Callable[[Mapping[str, Any]], Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Do each row in a Ray task, and yield the results as they come. A `FeedbackRunner`. Ray must be running."""
    body: Any = work
    task = ray.remote(num_cpus=1)(body)
    return as_they_finish([task.remote(row) for row in rows])
