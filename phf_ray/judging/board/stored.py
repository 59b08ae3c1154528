"""Reads and writes `rows.parquet`: every row of a leaderboard and, in its metadata, how it was computed.

Every figure of a leaderboard is a function of this one file.
"""

import io
import posixpath
from collections.abc import Sequence
from dataclasses import asdict, fields

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from phf_ray.errors import DataError
from phf_ray.judging.board.rows import JudgedRow
from phf_ray.storage.files import open_filesystem, store_errors, write_file

ROWS = "rows.parquet"
BOARD = "leaderboard.json"
_METADATA_KEY = b"phf_ray.leaderboard"

_NUMBERS = {"preference", "preference_12", "preference_21", "price", "human_preference"}
_SCHEMA = pa.schema(
    [(field.name, pa.float64() if field.name in _NUMBERS else pa.string()) for field in fields(JudgedRow)]
)


class BoardSettings(BaseModel):
    """How a leaderboard is computed from its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: float = 0.95
    """Of the intervals of win rates, ratings and differences."""
    seed: int = 0
    """Of resampling, of the order of battles and of the judge that guesses."""
    num_resamples: int = 1000
    show_published: bool = False
    judged_by: str | None = None
    """Name or file of the annotators that judged outputs for this leaderboard."""
    notes: tuple[str, ...] = ()
    """What a reader must know of how the rows came about."""


def sort_rows(rows: Sequence[JudgedRow]) -> list[JudgedRow]:
    """Sort by content, so that the order of arrival leaves no trace."""
    return sorted(rows, key=lambda row: [(value is not None, str(value)) for value in asdict(row).values()])


def write_rows(directory: str, rows: Sequence[JudgedRow], settings: BoardSettings) -> None:
    table = pa.Table.from_pylist([asdict(row) for row in sort_rows(rows)], schema=_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_METADATA_KEY: settings.model_dump_json()}), sink, compression="zstd")
    write_file(f"{directory}/{ROWS}", sink.getvalue())


def holds_board(directory: str) -> bool:
    """Whether this folder holds a leaderboard that phf-ray wrote."""
    filesystem, root = open_filesystem(directory)
    with store_errors(directory):
        names = [posixpath.join(root, name) for name in (ROWS, BOARD)]
        return all(filesystem.isfile(name) for name in names)


def read_rows_file(directory: str) -> tuple[list[JudgedRow], BoardSettings]:
    path = f"{directory}/{ROWS}"
    filesystem, inner = open_filesystem(path)
    try:
        table = pq.read_table(io.BytesIO(filesystem.cat_file(inner)))
        settings = BoardSettings.model_validate_json((table.schema.metadata or {})[_METADATA_KEY])
        known = [name for name in _SCHEMA.names if name in table.column_names]  # older files have fewer
        return [JudgedRow(**row) for row in table.select(known).to_pylist()], settings
    except (OSError, KeyError, TypeError, pa.ArrowInvalid, ValidationError) as error:
        raise DataError(
            f"{path} can't be read as the rows of a leaderboard ({type(error).__name__}: {error}); give the --output "
            "of phf leaderboard, or make it anew from --comparisons"
        ) from None
