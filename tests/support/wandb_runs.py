"""Reads an offline run of Weights & Biases."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# By name, since only the pipelines may import the tracker.
RECORD = importlib.import_module("wandb.proto.wandb_internal_pb2").Record


def records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline run. Its blocks have 32 KiB, and every piece in them has a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = RECORD()
            record.ParseFromString(whole)
            yield record
            whole = b""


def logged_rows(found: list[Any]) -> list[dict[str, Any]]:
    """Return a row for each call of `log`."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]


def end_tracker() -> None:
    """End the tracker's own process, which writes the files. Only then are the files complete."""
    importlib.import_module("wandb").teardown()
