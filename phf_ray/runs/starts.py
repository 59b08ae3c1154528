"""Whether a command is working on a run: a command leaves a note in the run's folder and removes it when it ends."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phf_ray.storage.files import write_text

_NOTE = "started.json"


@contextmanager
def started(run: Path) -> Iterator[None]:
    """Leave a note in the folder `run` while the body works on it. The note of a later start replaces it."""
    start = uuid.uuid4().hex
    write_text(run / _NOTE, json.dumps({"start": start, "host": socket.gethostname(), "pid": os.getpid()}) + "\n")
    try:
        yield
    finally:
        if _read(run).get("start") == start:
            (run / _NOTE).unlink(missing_ok=True)


def may_be_under_way(run: Path) -> bool:
    """Whether a command may still be working on the run.

    A killed command leaves its note. Another machine's processes can't be seen, so its note counts as a running one.
    """
    note = _read(run)
    if not note:
        return False
    return note["host"] != socket.gethostname() or _is_alive(int(note["pid"]))


def _read(run: Path) -> dict[str, str]:
    try:
        return dict(json.loads((run / _NOTE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
