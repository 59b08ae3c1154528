"""Waits for Ray's work on parts of a corpus, for every stage that has such work."""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import ray
from ray.data import DataContext
from ray.exceptions import RayTaskError

from phf_ray.errors import PhfError


def cluster_resources() -> dict[str, float]:
    """Return what Ray has in all; of a Ray on this machine alone, no more CPUs than the machine.

    Ray may have been told more CPUs than the machine has. More actors than cores use more memory and save no time.
    """
    found: dict[str, float] = ray.cluster_resources()
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        found["CPU"] = min(found.get("CPU", 0.0), os.cpu_count() or 1)
    return found


_WATCHED = 1024
"""Tasks that are waited for, the first of those that are left: each wait costs as much as it has tasks."""


def as_they_finish(pending: list[Any]) -> Iterator[Any]:
    """Yield the results of tasks. Raises a task's PhfError as it is; cancels the rest if the caller stops."""
    left, watched = deque(pending), list[Any]()
    try:
        while left or watched:
            while left and len(watched) < _WATCHED:
                watched.append(left.popleft())
            finished, watched = ray.wait(watched)
            yield from ray.get(finished)
    except RayTaskError as error:
        if isinstance(error.cause, PhfError):
            raise error.cause from None
        raise
    finally:
        for reference in (*watched, *left):
            ray.cancel(reference)


@contextlib.contextmanager
def data_settings() -> Iterator[None]:
    """Turn off Ray Data's progress bars (the job shows its own progress), and get workers' errors unwrapped."""
    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.raise_original_map_exception, logger.level
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        context.enable_progress_bars, context.raise_original_map_exception, level = before
        logger.setLevel(level)


_RAYS_NOTE = "\nFailed to apply UDF transform"
"""Begins what Ray Data adds to the message of an error."""


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """Unwrap a PhfError that a worker raised, so that the user sees its message."""
    try:
        yield
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None:
            # Ray's wrapper is of the class of what it wraps, too.
            if isinstance(inner, PhfError) and not isinstance(inner, RayTaskError):
                if inner is error:
                    raise
                message, *rest = inner.args
                raise type(inner)(str(message).partition(_RAYS_NOTE)[0], *rest) from error
            inner = getattr(inner, "cause", None) or inner.__cause__
        raise
