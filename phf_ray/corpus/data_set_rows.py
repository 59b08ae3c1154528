"""Rows of a data set that is opened by name, as they are: prompts are structs in some, strings in others."""

import json
import posixpath
from collections.abc import Iterator
from typing import Any

from phf_ray.corpus.kinds import KindRules
from phf_ray.corpus.streams import text_lines
from phf_ray.corpus.tables import read_rows
from phf_ray.errors import DataError
from phf_ray.storage.data_sets import DataSet
from phf_ray.storage.files import open_filesystem


def rows_of(data_set: DataSet) -> Iterator[Any]:
    """Yield the rows of tables, and the values of JSON lines, file by file: what is not asked for is not read."""
    for file in data_set.files:
        name = posixpath.join(data_set.root, file)
        kind = KindRules().by_name(*open_filesystem(name))
        if kind == "table":
            yield from read_rows(name)
        elif kind == "lines":
            yield from (json.loads(line) for line in text_lines(name) if line.strip())
        else:
            raise DataError(f"{data_set.name}: {file} holds no records; give a data set of Parquet or JSON lines")
