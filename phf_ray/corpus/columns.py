"""Finds the column of the input that holds the text, and says which columns are left out."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from phf_ray.corpus.arrow_files import ARROW, open_arrow
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.json_files import json_records
from phf_ray.corpus.json_text import parse_json
from phf_ray.corpus.splits import some_names
from phf_ray.corpus.streams import UNREADABLE, raise_if_passing
from phf_ray.errors import ConfigError
from phf_ray.storage.files import open_filesystem

TEXT_COLUMNS = ("texts", "text", "content")
META_COLUMNS = ("id", "meta", "metadata")
SCORE_COLUMNS = ("scores", "errors", "avg_score", "num_sents")
"""Columns of a scored corpus, which names them `scores__NAME` for further scorers."""

_MOST_FILES = 32
"""Maximum of each kind that is looked into: on an object store each costs a round trip or two."""
_MOST_RECORDS = 32 << 10
"""Number of JSON lines that are looked at, over all files."""
_MOST_BYTES = 32 << 20


@dataclass(slots=True)
class _Look:
    """What was seen in the files of one kind."""

    files: list[str] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    """In the order in which they were seen."""

    def has_any(self, wanted: Sequence[str]) -> bool:
        return any(name in self.columns for name in wanted)


def check_columns(
    files: Sequence[InputFile], *, text_column: str | None, keep: Sequence[str] = (), option: str = "--text-column"
) -> tuple[str, ...]:
    """Return the columns that no document will keep, as far as they were seen. `option`: what names the text column.

    Tables and JSON lines are looked into until a text and all of `keep` are found: one record without them says
    nothing about the others. Raises ConfigError that lists the columns if there is no text in any record looked at, or
    a column of `keep` is nowhere: an error now is better than a corpus of rejected records.
    """
    texts = (text_column,) if text_column else TEXT_COLUMNS
    looks = [_look([file for file in files if file.kind == kind], texts, keep) for kind in ("lines", "table")]
    seen = list(dict.fromkeys(name for look in looks for name in look.columns))
    if seen and not any(look.has_any(texts) for look in looks):
        where = some_names([file for look in looks for file in look.files], most=3)
        raise ConfigError(
            f"no column {' or '.join(map(repr, texts))} in the records looked at, in {where}; "
            f"set {option} to one of {some_names(list(map(repr, seen)), most=50)}"
        )
    missing = [name for name in keep if name not in seen]
    if missing and seen:
        raise ConfigError(
            f"--keep-columns {' '.join(missing)}: not in the records looked at, which have the columns "
            f"{some_names(list(map(repr, seen)), most=50)}; give some of those"
        )
    known = {*texts, *META_COLUMNS, *keep}
    return tuple(name for name in seen if name not in known and name.partition("__")[0] not in SCORE_COLUMNS)


def _look(files: Sequence[InputFile], texts: Sequence[str], keep: Sequence[str]) -> _Look:
    look = _Look()
    some = files[:: -(-len(files) // _MOST_FILES) or 1]
    for file in some:
        look.files.append(file.name)
        for columns in _columns_of_file(file, share=len(some)):
            look.columns.update(dict.fromkeys(columns))
            if look.has_any(texts) and all(name in look.columns for name in keep):
                return look
    return look


def _columns_of_file(file: InputFile, *, share: int) -> Iterator[list[str]]:
    """Yield the columns of a table, or of records; none if the file can't be read, which its reader will report.

    `share`: number of files that share the limits.
    """
    try:
        if file.kind == "lines":
            yield from _columns_of_lines(file, most_records=_MOST_RECORDS // share, most_bytes=_MOST_BYTES // share)
        else:
            yield table_columns(file.name)
    except UNREADABLE as error:
        raise_if_passing(file, error)


def _columns_of_lines(file: InputFile, *, most_records: int, most_bytes: int) -> Iterator[list[str]]:
    num_bytes = 0
    for _, content in itertools.islice(json_records(file, Piece(0, 0)), most_records):
        if num_bytes >= most_bytes:
            return
        num_bytes += len(content or b"")
        try:
            record = parse_json((content or b"").decode())
        except ValueError:
            continue  # its reader will reject it
        if isinstance(record, dict):
            yield list(record)


def table_columns(name: str) -> list[str]:
    if name.lower().endswith(ARROW):
        with open_arrow(name) as (schema, _):
            return list(schema.names)
    filesystem, path = open_filesystem(name)
    with filesystem.open(path, "rb") as stream:
        return list(pq.read_schema(stream).names)
