"""Small inputs of feedback, and the files of a finished corpus, for tests."""

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

QUESTION = "\n\nHuman: Hello?\n\nAssistant: Yes?\n\nHuman: What is up?\n\nAssistant:"


def write_lines(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_folder(folder: Path, records: list[Any], *, each: int = 3) -> Path:
    """Write files of a few records. With `shard_bytes=1` each is a shard; a small file is not cut."""
    for number, begin in enumerate(range(0, len(records), each)):
        write_lines(folder / f"{number}.jsonl", records[begin : begin + each])
    return folder


def hh_record(number: int) -> dict[str, str]:
    question = f"\n\nHuman: Question {number}\n\nAssistant:"
    return {"chosen": f"{question} Good {number}", "rejected": f"{question} Bad {number}"}


def rejected_in(output: Path) -> list[tuple[str, int, str]]:
    """(source, record, reason) of every rejected record."""
    tables = [pq.read_table(path).to_pylist() for path in sorted((output / "rejected").glob("*.parquet"))]
    return [(row["source"], row["record"], row["reason"]) for table in tables for row in table]


def bytes_of(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def die_once(marks: str, work: Callable[[Mapping[str, Any]], Any], row: Mapping[str, Any]) -> Any:
    """Do the work of a shard, but the first time that it is asked for end as if killed, half the time only after it."""
    mark = Path(marks) / f"{work.__name__}-{row['shard']}"
    if mark.exists():
        return work(row)
    mark.touch()
    if row["shard"] % 2:
        work(row)
    os.kill(os.getpid(), signal.SIGKILL)
    return None
