"""Reads rows of judgements, human labels and model outputs from files, folders and feedback corpora."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile, find_files
from phf_ray.corpus.read import read_rows_of
from phf_ray.corpus.tables import read_rows
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.layout import is_feedback_corpus
from phf_ray.feedback.reader import list_feedback_parts
from phf_ray.judging.board.rows import JudgedRow, judged_row
from phf_ray.judging.board.stored import ROWS, holds_board, read_rows_file
from phf_ray.records import Rejected
from phf_ray.storage.files import open_filesystem, store_errors

Numbered = tuple[str, dict[str, Any]]
"""A record, and where it is, for messages."""


def read_judged(sources: Sequence[str], *, option: str, generators: Sequence[str] | None = None) -> list[JudgedRow]:
    """Return the rows of files, folders, comparisons corpora and stored leaderboards, in their order.

    `option`: the user's name for `sources`. Raises ConfigError if a source does not exist, DataError at the first
    record that is no judgement.
    """
    rows = [judged_row(record, place, generators=generators) for place, record in read_records(sources, option=option)]
    if not rows:
        raise DataError(f"{option} {' '.join(sources)}: there are no rows; give files that are not empty")
    return rows


def read_records(sources: Sequence[str], *, option: str) -> Iterator[Numbered]:
    return itertools.chain.from_iterable(_records(source, option=option) for source in sources)


def _records(source: str, *, option: str) -> Iterator[Numbered]:
    if holds_board(source):
        for index, row in enumerate(read_rows_file(source)[0]):
            yield f"{source}/{ROWS}, record {index}", asdict(row)
    elif is_feedback_corpus(source):
        for part in list_feedback_parts(source):
            yield from _numbered(part)
    else:
        yield from _records_of_files(source, option=option)


def _numbered(table: str) -> Iterator[Numbered]:
    for index, record in enumerate(read_rows(table)):
        yield f"{table}, record {index}", record


def _records_of_files(source: str, *, option: str) -> Iterator[Numbered]:
    for file in _find(source, option=option):
        if file.kind not in ("lines", "table"):
            raise ConfigError(f"{option} {file.name}: text has no columns; give JSON, JSON lines or Parquet")
        for index, record in read_rows_of(file, Piece(0, 0)):
            place = f"{file.name}, record {index}"
            if isinstance(record, Rejected):
                raise DataError(f"{place} can't be read: {record.reason}: {record.detail}; repair the file")
            yield place, record


def _find(source: str, *, option: str) -> Sequence[InputFile]:
    """Find the files of a source. In a folder, JSON files count, which other jobs take for descriptions of the data."""
    filesystem, root = open_filesystem(source)
    with store_errors(source):
        has_json = filesystem.isdir(root) and filesystem.glob(f"{root.rstrip('/')}/**/*.json")
    json_files = f"{source.rstrip('/')}/**/*.json"
    try:
        files = find_files([source], text_suffixes=frozenset(), option=option).files
    except ConfigError:
        if not has_json:
            raise
        files = ()
    return [*files, *find_files([json_files], option=option).files] if has_json else files
