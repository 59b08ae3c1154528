"""Writes the records of a feedback corpus as JSON lines with `fields`, for other trainers."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from phf_ray.errors import ConfigError
from phf_ray.feedback.reader import read_feedback
from phf_ray.feedback.rows import Example
from phf_ray.storage.files import write_lines


def json_lines(corpus: str) -> Iterator[str]:
    """Yield each record of a finished corpus as a line: its texts by name, and `fields`."""
    for row in read_feedback(corpus):
        assert isinstance(row, Example)
        assert row.record is not None, "the form of the corpus was checked"
        yield json.dumps({**row.record.texts, "fields": row.record.fields}, ensure_ascii=False) + "\n"


def check_json_lines_file(file: Path) -> None:
    """Raise ConfigError if nothing can be written there. For before the records are made."""
    if not file.parent.is_dir():
        raise ConfigError(f"--jsonl {file}: there is no folder {file.parent}; create it")
    if file.is_dir():
        raise ConfigError(f"--jsonl {file} is a folder; give the name of a file in it")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"--jsonl {file}: nothing can be written into {file.parent}; give another folder")


def write_json_lines(corpus: str, file: Path) -> int:
    """Write all records into a local file, which appears whole, and return their number."""
    check_json_lines_file(file)
    return write_lines(file, json_lines(corpus))
