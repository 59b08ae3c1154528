"""Estimates how much of an input file is text: records hold other values too, which no training reads."""

from phf_ray.corpus.arrow_files import ARROW
from phf_ray.corpus.columns import TEXT_COLUMNS, table_columns
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.input_records import Segmented, record_of
from phf_ray.corpus.json_files import json_records
from phf_ray.corpus.json_text import parse_json
from phf_ray.corpus.parquet_end import parquet_metadata
from phf_ray.corpus.streams import UNREADABLE, raise_if_passing
from phf_ray.corpus.tables import read_batches
from phf_ray.records import Rejected

_SAMPLE_BYTES = 1 << 20
"""Bytes of records, from the beginning of a file, that stand for all of it."""
_SAMPLE_ROWS = 1000
_MOST_FILES = 256
"""Maximum of each kind that is looked into: on an object store each costs a round trip or two."""


class TextShares:
    """Bytes of text per byte of the pieces of a file. They depend on the files alone.

    A file is looked into when it is first asked for. After `_MOST_FILES` of a kind, their mean stands for the others.
    """

    def __init__(self, text_column: str | None) -> None:
        self._column = text_column
        self._found: dict[str, dict[str, float]] = {}
        """Kind -> file -> share."""

    def of(self, file: InputFile, piece: Piece) -> float:
        found = self._found.setdefault(file.kind, {})
        if file.name in found:
            return found[file.name]
        if len(found) >= _MOST_FILES:
            return sum(found.values()) / len(found)
        found[file.name] = min(1.0, _text_share(file, self._column, is_whole=piece.end is None))
        return found[file.name]


def _text_share(file: InputFile, text_column: str | None, *, is_whole: bool) -> float:
    """Return bytes of text per byte of a file; 0 if the records looked at have no text, or can't be read.

    `is_whole`: the file is one piece, whose size is an estimate.
    """
    if file.kind in ("text", "text_lines"):
        return 1.0
    try:
        if file.kind == "lines":
            return _share_of_records(file, text_column)
        names = table_columns(file.name)
        column = text_column or next((name for name in TEXT_COLUMNS if name in names), None)
        if column not in names:
            return 0.0
        if file.path.lower().endswith(ARROW):
            return _share_of_batches(file, column)
        text, total = _column_bytes(file, column)
        return text / max(1, file.text_bytes if is_whole else total)
    except UNREADABLE as error:
        raise_if_passing(file, error)
        return 0.0  # its reader will reject it


def _share_of_records(file: InputFile, text_column: str | None) -> float:
    text = total = 0
    try:
        for _, content in json_records(file, Piece(0, 0)):
            if content is not None:
                text += _text_bytes(content, text_column)
                total += len(content) + 1
            if total >= _SAMPLE_BYTES:
                break
    except UNREADABLE as error:
        raise_if_passing(file, error)  # what came before the damage counts
    return text / max(1, total)


def _text_bytes(content: bytes, text_column: str | None) -> int:
    try:
        row = parse_json(content.decode())
    except ValueError:
        return 0
    if not isinstance(row, dict):
        return 0
    record = record_of(row, source="", index=0, text_column=text_column)
    if isinstance(record, Rejected):
        return 0
    return len(("".join(record.texts) if isinstance(record, Segmented) else record.text).encode())


def _column_bytes(file: InputFile, column: str) -> tuple[int, int]:
    """Return the bytes of a column of a Parquet file and of all columns, before compression, from its footer."""
    metadata = parquet_metadata(file.name, size=file.size)
    text = total = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            # A column of lists is `texts.list.element`.
            if f"{chunk.path_in_schema}.".startswith(f"{column}."):
                text += chunk.total_uncompressed_size
        total += group.total_byte_size
    return text, total


def _share_of_batches(file: InputFile, column: str) -> float:
    text = total = 0
    for batch in read_batches(file.name, columns=None, begin=0, end=_SAMPLE_ROWS):
        text += batch.column(column).nbytes
        total += batch.nbytes
        if total >= _SAMPLE_BYTES:
            break
    return text / max(1, total)
