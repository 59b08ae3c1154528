"""Where a corpus comes from: finding files, cutting them into pieces of work, reading their records.

A record becomes a Document, a Segmented document (of a data set whose texts are cut already), or Rejected with a
reason; nothing is dropped without a trace. Reading is streaming: memory is bounded by the largest document, and
documents above `MAX_DOCUMENT_BYTES` are rejected. Files are known by size and time stamp (or ETag), so a changed input
is noticed without reading it.
"""

import gzip
import io
import itertools
import json
import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard
from fsspec.utils import glob_translate
from numpy.typing import NDArray

from phf_ray import corpus
from phf_ray.corpus import Scores
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import Document, Rejected

MAX_DOCUMENT_BYTES = 64 << 20
"""A longer document is rejected as `too_large`: checkers need many times its size in memory."""

Kind = Literal["text", "lines", "table"]

_SUFFIXES: dict[str, Kind] = {
    **dict.fromkeys((".py", ".pyi", ".txt", ".text", ".md", ".rst"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst"), "lines"),
    **dict.fromkeys((".parquet", ".arrow"), "table"),
}
_DANGLING = "dangling links"
"""Beside suffixes, among what was not taken."""
_TEXT_COLUMNS = ("texts", "text", "content")
_META_COLUMNS = ("id", "meta", "metadata")
# Text compresses about fourfold; only used to decide what is large.
_EXPANSION = {".gz": 4, ".zst": 4, ".parquet": 3}
_COMPRESSED = (".gz", ".zst")
_COMPRESSED_PIECES = 32
"""About so many pieces of a compressed file: each is reached by reading the file from its begin, 16 times in all."""
_CHUNK = 1 << 20
_SAMPLED_PLACES = 32
"""In one file, at least a chunk apart: on an object store each is a round trip or two."""
_CUT_AT_ONCE = 16
"""Files: where records begin is known only when a file was read, which on an object store is waiting."""
# Of a damaged archive at most so much is lost before the damage.
_BUFFER = 16 << 10
_TO_THE_END = 1 << 62


@dataclass(frozen=True, slots=True)
class Segmented:
    """A document that is cut into segments already, with scores that need not be computed again."""

    id: str
    texts: tuple[str, ...]
    meta: str
    scores: Mapping[str, Scores] = field(default_factory=dict)
    """Scorer name -> scores and errors, of the scorers whose scores are reused."""


Record = Document | Segmented | Rejected


@dataclass(frozen=True, slots=True)
class InputFile:
    root: str
    """Folder or URL that `path` is relative to."""
    path: str
    kind: Kind
    size: int
    stamp: str
    """Changes whenever the file does: ETag, hash of a file of the hub, or time of modification."""

    @property
    def name(self) -> str:
        return posixpath.join(self.root, self.path)

    @property
    def source(self) -> str:
        """`path` as it can be stored: a name on disk need not be UTF-8."""
        return self.path.encode(errors="backslashreplace").decode()

    @property
    def text_bytes(self) -> int:
        """Estimate of the text in it."""
        return self.size * _EXPANSION.get(posixpath.splitext(self.path)[1], 1)


@dataclass(frozen=True, slots=True)
class Found:
    """All input files, by root in the order given and then by path, each once."""

    files: tuple[InputFile, ...]
    ignored: Counter[str]
    """Suffix, or `_DANGLING` -> files that were not taken."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Records [begin, end) of a file; end None: to its end."""

    file: int
    """Index in the list of files."""
    num_bytes: int
    begin: int = 0
    end: int | None = None
    offset: int = 0
    """Where record `begin` starts, in bytes of uncompressed text (lines only)."""

    def to_json(self) -> list[int | None]:
        return [self.file, self.num_bytes, self.begin, self.end, self.offset]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "Piece":
        file, num_bytes, begin, end, offset = values
        return cls(file=file, num_bytes=num_bytes, begin=begin, end=end, offset=offset)


# ------------------------------------------------------------------------------------------------------------ finding


def find_files(inputs: Sequence[str]) -> Found:
    """Files under folders, globs, files, URLs, hub ids, scored corpora and data sets saved by `datasets`.

    Raises ConfigError for an input that does not exist or holds nothing to read.
    """
    files: dict[str, InputFile] = {}
    ignored: Counter[str] = Counter()
    for source in inputs:
        with corpus.store_errors(f"--input {source}"):
            found = list(_find(source, ignored))
        if not found:
            raise ConfigError(f"--input {source}: {_nothing(ignored)}")
        for file in found:
            files.setdefault(file.name, file)
    return Found(files=tuple(files.values()), ignored=ignored)


def would_read(source: str, folder: str, *, names: Iterable[str]) -> bool:
    """Whether files by these names in `folder`, a full name, would be input."""
    if corpus.hub_url(source) is not None:
        return False
    filesystem, path = corpus.open_filesystem(source)
    path = path.rstrip("/")
    with corpus.store_errors(f"--input {source}"):
        is_folder = filesystem.isdir(path or "/")
    if is_folder:
        return f"{folder}/".startswith(f"{corpus.full_name(filesystem, path)}/")
    pattern = re.compile(glob_translate(corpus.full_name(filesystem, path)))
    return corpus.is_glob(path) and any(pattern.match(posixpath.join(folder, name)) for name in names)


def _nothing(ignored: Counter[str]) -> str:
    known = ", ".join(sorted(_SUFFIXES))
    others = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in ignored.most_common(5))
    seen = f"only files of other kinds ({others})" if others else "no files"
    return f"{seen}; give a folder with files of {known}, or a quoted glob such as 'folder/**/*.c' to read any as text"


def _find(source: str, ignored: Counter[str]) -> Iterator[InputFile]:
    filesystem, path = corpus.open_source(source)
    path = path.rstrip("/") or "/"
    if filesystem.isfile(path):
        yield _input_file(filesystem, posixpath.dirname(path), filesystem.info(path))
    elif filesystem.isdir(path):
        yield from _find_in_folder(source, filesystem, path, ignored)
    elif corpus.is_glob(path):
        root = corpus.glob_root(path)
        entries = corpus.match_files(filesystem, path)
        for name in sorted(entries):
            entry = corpus.follow(filesystem, entries[name])
            if entry is None:
                ignored[_DANGLING] += 1
            elif entry["type"] == "file":
                yield _input_file(filesystem, root, entry)
    else:
        raise ConfigError(f"--input {source} does not exist; give a folder, a file, a quoted glob, a URL or a hub id")


def _find_in_folder(
    source: str, filesystem: fsspec.AbstractFileSystem, root: str, ignored: Counter[str]
) -> Iterator[InputFile]:
    if corpus.is_scored_corpus(source):
        for part in corpus.list_parts(source):
            yield _input_file(filesystem, root, filesystem.info(corpus.open_filesystem(part)[1]))
        return
    entries = corpus.list_files(filesystem, root, enters=lambda folder: not _is_aside(posixpath.basename(folder)))
    saved = {posixpath.basename(name) for name in entries} & {"dataset_dict.json", "dataset_info.json"}
    if saved or corpus.hub_url(source) is not None:
        names = corpus.data_files(entries, root) or [name for name in sorted(entries) if "train" in name]
    else:
        names = sorted(entries)
    for name in names:
        relative = posixpath.relpath(name, root)
        if any(map(_is_aside, relative.split("/"))):
            continue
        suffix = posixpath.splitext(name)[1]
        if _kind(name) is None:
            ignored[suffix] += 1
            continue
        entry = corpus.follow(filesystem, entries[name])
        if entry is None or entry["type"] != "file":
            ignored[_DANGLING if entry is None else suffix] += 1
        else:
            yield _input_file(filesystem, root, entry)


def _is_aside(name: str) -> bool:
    """Of a file or folder that is not taken when the folder above it is given."""
    return name.startswith(".") or name == "__pycache__"


def _kind(name: str) -> Kind | None:
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _input_file(filesystem: fsspec.AbstractFileSystem, root: str, info: Mapping[str, Any]) -> InputFile:
    name = str(info["name"])
    stamp = next(
        (
            info[key]
            for key in ("ETag", "etag", "blob_id", "mtime", "LastModified", "updated", "created")
            if info.get(key)
        ),
        "",
    )
    return InputFile(
        root=corpus.full_name(filesystem, root),
        path=posixpath.relpath(name, root),
        # What a glob or a path names is read, whatever its suffix.
        kind=_kind(name) or "text",
        size=int(info["size"] or 0),
        stamp=str(stamp),
    )


# ----------------------------------------------------------------------------------------------------------- planning


def shard_bytes(total: int) -> int:
    """Text per shard, from the size of the corpus alone, so that a plan does not depend on the cluster.

    About 32 shards of a small corpus keep a few actors busy to the end; 16 MB are some seconds of work to lose; and
    more than 16,384 shards would burden the driver.
    """
    return max(512 << 10, min(16 << 20, total // 32), min(64 << 20, total // 16384))


def plan_shards(
    files: Sequence[InputFile], *, shard_bytes: int, limit: int | None = None, first_file: int = 0
) -> Iterator[list[Piece]]:
    """Files in order, grouped where they are small and cut between records where they are large.

    `limit`: records in all. `first_file`: index of files[0] in the plan.
    """
    shard: list[Piece] = []
    size = 0
    for piece in _limited(_pieces(files, shard_bytes, exact=limit is not None), limit):
        shard.append(Piece(piece.file + first_file, piece.num_bytes, piece.begin, piece.end, piece.offset))
        size += piece.num_bytes
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _limited(pieces: Iterator[Piece], limit: int | None) -> Iterator[Piece]:
    if limit is None:
        yield from pieces
        return
    left = limit
    for piece in pieces:
        assert piece.end is not None
        taken = min(left, piece.end - piece.begin)
        share = taken / max(1, piece.end - piece.begin)
        yield Piece(piece.file, round(piece.num_bytes * share), piece.begin, piece.begin + taken, piece.offset)
        left -= taken
        if left <= 0:
            return


def _pieces(files: Sequence[InputFile], target: int, *, exact: bool) -> Iterator[Piece]:
    """`exact`: every piece knows its number of records."""

    def is_cut(file: InputFile) -> bool:
        return file.kind != "text" and (exact or file.text_bytes > target)

    large = [(index, file) for index, file in enumerate(files) if is_cut(file)]
    with ThreadPoolExecutor(_CUT_AT_ONCE) as threads:
        # A limit is reached in the first files: others are not read.
        cuts = (
            (_cut(file, target, index) for index, file in large)
            if exact
            else threads.map(lambda one: list(_cut(one[1], target, one[0])), large)
        )
        for index, file in enumerate(files):
            if is_cut(file):
                yield from next(cuts)
            else:
                yield Piece(index, file.size, end=1) if file.kind == "text" else Piece(index, file.text_bytes)


def _cut(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    cut = _cut_lines if file.kind == "lines" else _cut_table
    least = file.text_bytes // _COMPRESSED_PIECES if file.path.endswith(_COMPRESSED) else 0
    last = Piece(index, 0)
    try:
        for last in cut(file, max(target, least), index):
            yield last
    except _UNREADABLE as error:
        _raise_passing(file, error)
        # Reading will come to the same place and reject what follows with the reason.
        yield Piece(index, 0, last.end or 0, _TO_THE_END, last.offset + last.num_bytes)


def _cut_lines(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    """Consecutive pieces of about `target` bytes. Reads the file once."""
    begin = line = start = position = 0
    with _open_lines(file.name) as stream:
        while chunk := stream.read(_CHUNK):
            newlines = chunk.count(b"\n")
            if newlines and position + len(chunk) - start >= target:
                cut = position + chunk.rindex(b"\n") + 1
                yield Piece(index, cut - start, begin, line + newlines, start)
                begin, start = line + newlines, cut
            line += newlines
            position += len(chunk)
    if position > start:
        yield Piece(index, position - start, begin, line + 1, start)


def _cut_table(file: InputFile, target: int, index: int) -> Iterator[Piece]:
    if file.path.endswith(".arrow"):
        filesystem, path = corpus.open_filesystem(file.name)
        with filesystem.open(path, "rb") as stream:
            rows = sum(len(batch) for batch in pa.ipc.open_stream(stream))
        size = file.size
    else:
        metadata = _parquet_metadata(file.name)
        rows = metadata.num_rows
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    count = max(1, min(rows, -(-size // target)))
    edges = [rows * part // count for part in range(count + 1)]
    for begin, end in itertools.pairwise(edges):
        yield Piece(index, size // count, begin, end)


def _parquet_metadata(name: str) -> pq.FileMetaData:
    filesystem, path = corpus.open_filesystem(name)
    with filesystem.open(path, "rb") as stream:
        return pq.read_metadata(stream)


@dataclass(frozen=True, slots=True)
class Sample:
    """The first records of a piece."""

    piece: Piece
    num_records: int


def plan_sample(files: Sequence[InputFile], *, num_records: int) -> Iterator[Sample]:
    """About so many records, spread evenly over the bytes of the files, without reading them through.

    Compressed files are read at their begin only, larger ones of uncompressed lines or Parquet at several places. The
    numbers of records in a line file are not told right.
    """
    step = max(1, len(files) // num_records)
    total = sum(file.text_bytes for file in files[::step])
    for index in range(0, len(files), step):
        file = files[index]
        wanted = max(1, round(num_records * file.text_bytes / max(1, total)))
        places = min(wanted, _SAMPLED_PLACES, max(1, file.size // _CHUNK))
        for piece in _sampled_pieces(file, index, places):
            yield Sample(piece, -(-wanted // places))


def _sampled_pieces(file: InputFile, index: int, places: int) -> Iterator[Piece]:
    whole = Piece(index, file.text_bytes)
    if file.kind == "lines" and not file.path.endswith(_COMPRESSED):
        try:
            offsets = {_line_at(file, file.size * place // places) for place in range(places)}
        except _UNREADABLE as error:
            _raise_passing(file, error)
            offsets = {0}  # reading will say why
        for offset in sorted(offsets):
            yield replace(whole, offset=offset)
    elif file.path.endswith(".parquet"):
        try:
            rows = _parquet_metadata(file.name).num_rows
        except _UNREADABLE as error:
            _raise_passing(file, error)
            rows = 0  # reading will say why
        for begin in sorted({rows * place // places for place in range(places)}):
            yield replace(whole, begin=begin)
    else:
        yield whole


def _line_at(file: InputFile, position: int) -> int:
    """Where the first line begins after this position; at 0 and in the last line: the begin of the file."""
    if position == 0:
        return 0
    with _open_lines(file.name) as stream:
        stream.seek(position)
        stream.readline(MAX_DOCUMENT_BYTES)
        found = stream.tell()
    return found if found < file.size else 0


def check_columns(files: Sequence[InputFile], *, text_column: str | None) -> None:
    """Look into the first file of each kind: better an error now than a corpus of rejected records.

    Raises ConfigError that names the columns there are.
    """
    for kind in ("lines", "table"):
        first = next((file for file in files if file.kind == kind), None)
        if first is None:
            continue
        columns = _columns(first)
        wanted = (text_column,) if text_column else _TEXT_COLUMNS
        if columns and not set(wanted) & set(columns):
            raise ConfigError(
                f"{first.name} has no column {' or '.join(map(repr, wanted))}; "
                f"give --text-column with one of {', '.join(map(repr, columns))}"
            )


def _columns(file: InputFile) -> list[str]:
    """Empty where that can't be told; reading the file will say why."""
    try:
        if file.kind == "lines":
            with _open_lines(file.name) as stream:
                first = json.loads(stream.readline(MAX_DOCUMENT_BYTES) or b"{}")
            return list(first) if isinstance(first, dict) else []
        return _table_columns(file.name)
    except (*_UNREADABLE, ValueError, RecursionError) as error:
        _raise_passing(file, error)
        return []


def _table_columns(name: str) -> list[str]:
    filesystem, path = corpus.open_filesystem(name)
    with filesystem.open(path, "rb") as stream:
        if name.endswith(".arrow"):
            return list(pa.ipc.open_stream(stream).schema.names)
        return list(pq.read_schema(stream).names)


# ------------------------------------------------------------------------------------------------------------ reading


_UNREADABLE = (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowInvalid, pa.ArrowException)


def read_piece(
    file: InputFile, piece: Piece, *, text_column: str | None = None, reuse: Mapping[str, tuple[str, str]] | None = None
) -> Iterator[Record]:
    """Records of a piece, in order. `reuse`: scorer name -> columns of scores and errors that are taken over.

    A file that can't be read, or can't be read to its end, is Rejected at the record where it ended. On a remote store
    only what a second try would not mend is rejected; other failures are raised, and the job can be run again.
    """
    index = piece.begin
    try:
        if file.kind == "text":
            yield _read_text(file)
            return
        if file.kind == "lines":
            records: Iterable[tuple[int, Record]] = _read_lines(file, piece, text_column=text_column)
        else:
            records = _read_table(file, piece, text_column=text_column, reuse=reuse or {})
        for number, record in records:
            index = number + 1
            yield record
    except _UNREADABLE as error:
        _raise_passing(file, error)
        yield Rejected(file.source, index, "unreadable", f"{type(error).__name__}: {error}")


def _raise_passing(file: InputFile, error: Exception) -> None:
    """Raises DataError where a second try may read the file; returns where the file itself is damaged."""
    if isinstance(error, FileNotFoundError):
        # It was there when the input was found: on this machine something is missing, not in the corpus.
        raise DataError(f"{file.name} is gone since the job began, or this machine does not see it") from error
    lasting = not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile | PermissionError)
    if not lasting and not corpus.is_local(corpus.open_filesystem(file.name)[0]):
        # Arrow's errors do not tell a store that fails from a damaged page.
        raise DataError(
            f"{file.name}: {type(error).__name__}: {error}; run the same command again, and if it ends in the same, "
            "leave the file out: it is damaged"
        ) from error


def _read_text(file: InputFile) -> Record:
    filesystem, path = corpus.open_filesystem(file.name)
    with filesystem.open(path, "rb") as stream:
        content = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        return _too_large(file.source, 0)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return Rejected(file.source, 0, "not_utf8", f"byte {error.start}: {error.reason}")
    return _document(text, source=file.source, record=0, meta={"source": file.source})


def _too_large(source: str, record: int) -> Rejected:
    return Rejected(source, record, "too_large", f"more than {MAX_DOCUMENT_BYTES} bytes; cut it into documents")


def _document(text: str, *, source: str, record: int, meta: Mapping[str, Any]) -> Document | Rejected:
    problem = _problem_of(text)
    if problem is not None:
        return Rejected(source, record, *problem)
    return Document(corpus.document_id(source, record, text), text, json.dumps(meta, ensure_ascii=True, default=str))


def _problem_of(text: str) -> tuple[str, str] | None:
    """Reason and detail, where the text can't be stored."""
    if not text:
        return "empty", "the document has no characters"
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        return "lone_surrogate", f"character {error.start} is half of a surrogate pair"
    if size > MAX_DOCUMENT_BYTES:
        return "too_large", f"{size} bytes, more than {MAX_DOCUMENT_BYTES}; cut it into documents"
    return None


def _open_lines(name: str) -> io.BufferedReader:
    """Uncompressed bytes of the file."""
    filesystem, path = corpus.open_filesystem(name)
    raw = filesystem.open(path, "rb")
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), _BUFFER)
    if name.endswith(".zst"):
        stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=True)
        return io.BufferedReader(stream, _BUFFER)
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _CHUNK)


def _read_lines(file: InputFile, piece: Piece, *, text_column: str | None) -> Iterator[tuple[int, Record]]:
    with _open_lines(file.name) as stream:
        _skip(stream, piece.offset, seekable=not file.path.endswith(_COMPRESSED))
        indices = itertools.count(piece.begin) if piece.end is None else range(piece.begin, piece.end)
        for index in indices:
            line = stream.readline(MAX_DOCUMENT_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
                while not line.endswith(b"\n") and line:
                    line = stream.readline(_CHUNK)
                yield index, _too_large(file.source, index)
            elif line.strip():
                yield index, _from_line(line, source=file.source, index=index, text_column=text_column)


def _skip(stream: io.BufferedReader, num_bytes: int, *, seekable: bool) -> None:
    if seekable:
        stream.seek(num_bytes)
        return
    while num_bytes > 0:
        num_bytes -= len(stream.read(min(_CHUNK, num_bytes))) or num_bytes


def _from_line(line: bytes, *, source: str, index: int, text_column: str | None) -> Record:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejected(source, index, "not_utf8", f"byte {error.start} of the line: {error.reason}")
    except (ValueError, RecursionError) as error:
        return Rejected(source, index, "bad_json", f"{type(error).__name__}: {error}")
    if not isinstance(record, dict):
        return Rejected(source, index, "bad_json", f"a {type(record).__name__}, not an object")
    return _from_record(record, source=source, index=index, text_column=text_column)


def _read_table(
    file: InputFile, piece: Piece, *, text_column: str | None, reuse: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[int, Record]]:
    names = _table_columns(file.name)
    text = text_column or next((name for name in _TEXT_COLUMNS if name in names), None)
    wanted = {text, *_META_COLUMNS, *itertools.chain.from_iterable(reuse.values())}
    columns = [name for name in names if name in wanted]
    index = piece.begin
    for batch in corpus.read_batches(file.name, columns=columns, begin=piece.begin, end=piece.end):
        for record in _rows_below_limit(batch, text):
            if record is None:
                yield index, _too_large(file.source, index)
            elif isinstance(record, UnicodeDecodeError):
                yield index, Rejected(file.source, index, "not_utf8", f"byte {record.start}: {record.reason}")
            else:
                yield index, _from_record(record, source=file.source, index=index, text_column=text, reuse=reuse)
            index += 1


def _rows_below_limit(batch: pa.RecordBatch, text: str | None) -> Iterator[dict[str, Any] | UnicodeDecodeError | None]:
    """None for a row whose text is too large: as strings of Python it would take its size several times over."""
    begin = 0
    sizes = None if text not in batch.schema.names else _text_sizes(batch.column(text))
    for row in () if sizes is None else np.flatnonzero(sizes > MAX_DOCUMENT_BYTES).tolist():
        yield from _rows_of(batch.slice(begin, row - begin))
        yield None
        begin = row + 1
    yield from _rows_of(batch.slice(begin))


def _text_sizes(column: pa.Array) -> NDArray[np.int64] | None:
    """Bytes of each row's string or strings; None where the column is of another type."""
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
    """0 for null."""
    return np.asarray(column.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def _rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """One cell that is not UTF-8 must not take its neighbours with it."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            yield error
            return
        for row in range(len(batch)):
            yield from _rows_of(batch.slice(row, 1))


def _from_record(
    record: Mapping[str, Any],
    *,
    source: str,
    index: int,
    text_column: str | None,
    reuse: Mapping[str, tuple[str, str]] | None = None,
) -> Record:
    name = text_column or next((name for name in _TEXT_COLUMNS if name in record), None)
    content = None if name is None else record.get(name)
    if content is None:
        return Rejected(source, index, "no_text", f"no value in column {name!r}" if name else "no column of text")
    if isinstance(content, str):
        origin = {"source": source, "record": index}
        kept = {key: record[key] for key in _META_COLUMNS if record.get(key) is not None}
        return _document(content, source=source, record=index, meta={**kept, **origin})
    if not isinstance(content, list) or not all(isinstance(segment, str) for segment in content):
        return Rejected(source, index, "not_text", f"column {name!r} holds neither a string nor a list of strings")
    return _segmented(record, content, source=source, index=index, reuse=reuse or {})


def _segmented(
    record: Mapping[str, Any],
    texts: list[str],
    *,
    source: str,
    index: int,
    reuse: Mapping[str, tuple[str, str]],
) -> Segmented | Rejected:
    problem = _problem_of("".join(texts))
    if problem is not None:
        return Rejected(source, index, *problem)
    identifier = corpus.id_of(record) or corpus.document_id(source, index, "".join(texts))
    try:
        meta = corpus.meta_text(record if "meta" in record else {"meta": {"source": source, "record": index}})
        f"{identifier}{meta}".encode()
    except (ValueError, TypeError, RecursionError) as error:
        return Rejected(source, index, "bad_meta", f"id or meta: {type(error).__name__}: {error}")
    return Segmented(
        id=identifier,
        texts=tuple(texts),
        meta=meta,
        scores={scorer: (record[scores], record[errors]) for scorer, (scores, errors) in reuse.items()},
    )
