"""Writes the records of a feedback corpus as JSON lines with `fields`, for other trainers."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from phf_ray.errors import ConfigError
from phf_ray.feedback.reader import read_feedback
from phf_ray.feedback.rows import Example
from phf_ray.storage.files import publish


def json_lines(corpus: str) -> Iterator[str]:
    """Yield each record of a finished corpus as a line: its texts by name, and `fields`."""
    for row in read_feedback(corpus):
        assert isinstance(row, Example)
        assert row.record is not None, "the form of the corpus was checked"
        yield json.dumps({**row.record.texts, "fields": row.record.fields}, ensure_ascii=False) + "\n"


def write_json_lines(corpus: str, file: Path) -> int:
    """Write all records into a local file, which appears whole, and return their number."""
    if not file.parent.is_dir():
        raise ConfigError(f"--jsonl {file}: there is no folder {file.parent}; create it")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, prefix=".phf-", delete=False) as scratch:
        number = 0
        for line in json_lines(corpus):
            scratch.write(line)
            number += 1
    publish(Path(scratch.name), file)
    return number
