"""Finds the column of an input file that holds the text."""

import json
from collections.abc import Sequence

import pyarrow.parquet as pq

from phf_ray.corpus import streams
from phf_ray.corpus.arrow_files import ARROW, open_arrow
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.streams import UNREADABLE, open_lines, raise_if_passing
from phf_ray.errors import ConfigError
from phf_ray.storage.files import open_filesystem

TEXT_COLUMNS = ("texts", "text", "content")
META_COLUMNS = ("id", "meta", "metadata")


def check_columns(files: Sequence[InputFile], *, text_column: str | None) -> None:
    """Check the first file of each kind: an error now is better than a corpus of rejected records.

    Raises ConfigError that lists the columns of the file.
    """
    for kind in ("lines", "table"):
        first = next((file for file in files if file.kind == kind), None)
        if first is None:
            continue
        columns = _columns_of_file(first)
        wanted = (text_column,) if text_column else TEXT_COLUMNS
        if columns and not set(wanted) & set(columns):
            raise ConfigError(
                f"{first.name} has no column {' or '.join(map(repr, wanted))}; "
                f"set --text-column to one of {', '.join(map(repr, columns))}"
            )


def _columns_of_file(file: InputFile) -> list[str]:
    """Return the columns; empty if the file can't be read, which is reported when its records are read."""
    try:
        if file.kind == "lines":
            with open_lines(file.name) as stream:
                first = json.loads(stream.readline(streams.MAX_DOCUMENT_BYTES) or b"{}")
            return list(first) if isinstance(first, dict) else []
        return table_columns(file.name)
    except (*UNREADABLE, ValueError, RecursionError) as error:
        raise_if_passing(file, error)
        return []


def table_columns(name: str) -> list[str]:
    if name.endswith(ARROW):
        with open_arrow(name) as (schema, _):
            return list(schema.names)
    filesystem, path = open_filesystem(name)
    with filesystem.open(path, "rb") as stream:
        return list(pq.read_schema(stream).names)
