"""Reads the records of a piece of input.

Every record becomes a Document, a Segmented document (if its text is already cut) or Rejected with a reason; nothing is
dropped silently. Files are read as streams: the largest document bounds memory, and documents above
`MAX_DOCUMENT_BYTES` are rejected.
"""

import itertools
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from phf_ray.corpus import streams
from phf_ray.corpus.cells import rows_of
from phf_ray.corpus.columns import META_COLUMNS, TEXT_COLUMNS, table_columns
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.decompress import TrailingBytesError
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.input_records import Record, document_of, record_of, too_large
from phf_ray.corpus.json_files import json_records, raw_lines
from phf_ray.corpus.json_text import parse_json
from phf_ray.corpus.missing import loss_of
from phf_ray.corpus.streams import UNREADABLE, open_lines, raise_if_passing
from phf_ray.corpus.tables import read_batches
from phf_ray.records import Rejected
from phf_ray.storage.data_set_names import is_hub_url
from phf_ray.storage.hub_files import local_copy


def read_piece(
    file: InputFile,
    piece: Piece,
    *,
    text_column: str | None = None,
    keep: Sequence[str] = (),
    reuse: Mapping[str, tuple[str, str]] | None = None,
) -> Iterator[Record]:
    """Yield the records of a piece, in order.

    `keep`: columns to put into the metadata. `reuse`: scorer name -> columns of scores and errors to reuse.

    If a file can't be read to its end, the record where reading stopped is Rejected. On a remote store, only damage
    that a retry would not fix is rejected; other failures are raised, and the job can be run again.
    """
    file = _at_hand(file, piece)
    if file.kind == "text":
        records: Iterable[tuple[int, Record]] = _read_text(file)
    elif file.kind == "text_lines":
        records = _read_text_lines(file, piece)
    elif file.kind == "lines":
        records = (
            (index, _from_row(row, file.source, index, text_column, keep=keep))
            for index, row in _read_json(file, piece)
        )
    else:
        records = _read_table(file, piece, text_column=text_column, keep=keep, reuse=reuse or {})
    for _, record in _until_damage(file, piece, records):
        yield record


def read_rows_of(file: InputFile, piece: Piece) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """Yield the records of a piece of JSON or of a table as they are, all columns, each with its index.

    Otherwise like `read_piece`. A cell of a table that Python can't represent is `Unreadable`.
    """
    assert file.kind not in ("text", "text_lines"), file.name
    file = _at_hand(file, piece)
    if file.kind == "lines":
        return _until_damage(file, piece, _read_json(file, piece))
    rows = (
        row
        for batch in read_batches(file.name, columns=None, begin=piece.begin, end=piece.end)
        for row in rows_of(batch)
    )
    return _until_damage(file, piece, enumerate(rows, piece.begin))


def _until_damage(file: InputFile, piece: Piece, records: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """Yield the numbered records. One that is Rejected stands for those after the place where the file is damaged."""
    index = piece.begin
    try:
        for number, record in records:
            index = number + 1
            yield number, record
    except UNREADABLE as error:
        raise_if_passing(file, error)
        reason = "trailing_bytes" if isinstance(error, TrailingBytesError) else "unreadable"
        loss = loss_of(file, piece, index, error)
        missing = f"; {loss.records} records are missing" if loss.records > 1 else ""
        yield index, Rejected(file.source, index, reason, f"{type(error).__name__}: {error}{missing}", loss)


def _at_hand(file: InputFile, piece: Piece) -> InputFile:
    """Return the file, or its copy in the hub's cache if the piece lies behind others in a compressed file of the hub.

    Every piece of such a file is reached by reading all before it: 16 times the file, if there are 32 pieces.
    """
    if not piece.begin or not file.is_compressed or not is_hub_url(file.root):
        return file
    return replace(file, root=local_copy(file.name).removesuffix(f"/{file.path}"))


def _read_text(file: InputFile) -> Iterator[tuple[int, Record]]:
    with open_lines(file.name) as stream:
        content = stream.read(streams.MAX_DOCUMENT_BYTES + 1)
        stream.raise_if_cut()
        yield 0, _from_text(content, source=file.source, index=0)
        stream.read(1)  # raises if bytes follow that are no data


def _read_text_lines(file: InputFile, piece: Piece) -> Iterator[tuple[int, Record]]:
    """Yield every line that is not blank, without its end. Blank lines have an index."""
    for index, line in raw_lines(file, piece):
        if line is None:
            yield index, too_large(file.source, index)
        elif line.strip():
            yield index, _from_text(line.rstrip(b"\r\n"), source=file.source, index=index)


def _from_text(content: bytes, *, source: str, index: int) -> Record:
    if len(content) > streams.MAX_DOCUMENT_BYTES:
        return too_large(source, index)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejected(source, index, "not_utf8", f"byte {error.start}: {error.reason}{_encoding_of(content)}")
    return document_of(text, source=source, record=index, meta={"source": source})


def _encoding_of(content: bytes) -> str:
    return "; it is UTF-16: convert it to UTF-8" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else ""


def _read_json(file: InputFile, piece: Piece) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    for index, content in json_records(file, piece):
        yield index, too_large(file.source, index) if content is None else _parsed(content, file.source, index)


def _parsed(content: bytes, source: str, index: int) -> dict[str, Any] | Rejected:
    try:
        record = parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        place = f"byte {error.start} of the record"
        return Rejected(source, index, "not_utf8", f"{place}: {error.reason}{_encoding_of(content)}")
    except ValueError as error:
        return Rejected(source, index, "bad_json", f"{type(error).__name__}: {error}")
    if not isinstance(record, dict):
        return Rejected(source, index, "bad_json", f"a {type(record).__name__}, not an object")
    return record


def _from_row(
    row: dict[str, Any] | Rejected, source: str, index: int, text_column: str | None, *, keep: Sequence[str]
) -> Record:
    if isinstance(row, Rejected):
        return row
    return record_of(row, source=source, index=index, text_column=text_column, keep=keep)


def _read_table(
    file: InputFile,
    piece: Piece,
    *,
    text_column: str | None,
    keep: Sequence[str],
    reuse: Mapping[str, tuple[str, str]],
) -> Iterator[tuple[int, Record]]:
    names = table_columns(file.name)
    text = text_column or next((name for name in TEXT_COLUMNS if name in names), None)
    wanted = {text, *META_COLUMNS, *keep, *itertools.chain.from_iterable(reuse.values())}
    columns = [name for name in names if name in wanted]
    index = piece.begin
    for batch in read_batches(file.name, columns=columns, begin=piece.begin, end=piece.end):
        for record in _rows_below_limit(batch, text):
            if record is None:
                yield index, too_large(file.source, index)
            else:
                yield (
                    index,
                    record_of(record, source=file.source, index=index, text_column=text, keep=keep, reuse=reuse),
                )
            index += 1


def _rows_below_limit(batch: pa.RecordBatch, text: str | None) -> Iterator[dict[str, Any] | None]:
    """Yield rows, with None for a row whose text is too large: its Python strings would take several times its size."""
    begin = 0
    sizes = None if batch.schema.names.count(text) != 1 else _text_sizes(batch.column(text))
    for row in () if sizes is None else np.flatnonzero(sizes > streams.MAX_DOCUMENT_BYTES).tolist():
        yield from rows_of(batch.slice(begin, row - begin))
        yield None
        begin = row + 1
    yield from rows_of(batch.slice(begin))


def _text_sizes(column: pa.Array) -> NDArray[np.int64] | None:
    """Return the bytes of each row's string or strings. None if the column has another type."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        sizes = _text_sizes(column.dictionary)
        if sizes is None:
            return None
        indices = column.indices.cast(pa.int64()).fill_null(len(sizes))
        return np.append(sizes, 0)[indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        items = _text_sizes(column.flatten())
        if items is None:
            return None
        ends = np.cumsum(_numbers(pc.list_value_length(column)))
        upto = np.concatenate([[0], np.cumsum(items)])
        return np.diff(upto[ends], prepend=0)
    if any(is_text(kind) for is_text in (pa.types.is_string, pa.types.is_large_string)):
        return _numbers(pc.binary_length(column))
    return None


def _numbers(column: pa.Array) -> NDArray[np.int64]:
    """Convert to int64, with 0 for null."""
    return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
