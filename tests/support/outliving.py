"""Waits for workers of a Ray whose driver was killed: they may finish what they were asked for."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


def wait_for_workers_to_end(session: int, *, patience_s: float = 120.0) -> None:
    """`session`: the process id of a driver that was started in a new session, whose local Ray is part of it."""
    deadline = time.monotonic() + patience_s
    while any(_workers(session)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _workers(session: int) -> Iterator[bool]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (folder / "cmdline").read_bytes().startswith(b"ray::") and os.getsid(int(folder.name)) == session
