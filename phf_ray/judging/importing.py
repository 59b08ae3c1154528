"""Judgements from elsewhere: AlpacaFarm's and AlpacaEval's `annotations.json`, kept in the store as known judgements.

A known judgement is one of an annotator, by name, on an instruction and two outputs. It spares the call.
"""

import json
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phf_ray.characters import half_at, whole_characters
from phf_ray.errors import DataError
from phf_ray.judging.pairs import NOT_PARSED, OLD_TIE, Judgement, Pair, pair_of
from phf_ray.judging.store import Store
from phf_ray.storage.hashing import digest

log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the rows of a file."""

    judged: int = 0
    not_parsed: int = 0
    """Failures, which stay failures: asked again, the judge would say the same."""
    empty: int = 0
    """Rows without a judgement, which say nothing."""

    def __str__(self) -> str:
        left_out = f", {self.empty:,} without a judgement left out" if self.empty else ""
        return f"{self.judged:,} judgements and {self.not_parsed:,} failures{left_out}"


def known_key(annotator: str, pair: Pair) -> str:
    return digest([annotator, pair.key], size=16)


def import_annotations(store: Store, file: str | Path) -> Imported:
    """Keep the judgements of a file; later rows replace earlier ones of the same pair and annotator.

    Raises DataError that names the row if one can't be understood; then nothing of the file is kept.
    """
    stored = rows_of_array(file, remedy="AlpacaFarm's or AlpacaEval's annotations.json")
    rows = [_known_row(row, number=number) for number, row in enumerate(stored, start=1)]
    known = [row for row in rows if row is not None]
    for begin in range(0, len(known), _ROWS_AT_ONCE):
        store.submit(lambda db, some=known[begin : begin + _ROWS_AT_ONCE]: _keep(db, some)).result()  # type: ignore[misc]
    failed = sum(row[2] is None for row in known)
    imported = Imported(judged=len(known) - failed, not_parsed=failed, empty=len(rows) - len(known))
    log.info("%s: %s", file, imported)
    return imported


def find_known(store: Store, asked: Mapping[str, str]) -> dict[str, Judgement]:
    """Return the known judgements of {known_key: annotator}, by key."""
    found = {}
    for key, annotator in asked.items():
        row = store.reader.execute(
            "SELECT preference, error, price, seconds, raw FROM known WHERE key = ?", (key,)
        ).fetchone()
        if row is not None:
            preference, error, price, seconds, raw = row
            found[key] = Judgement(annotator, preference, error, source="stored", raw=raw, price=price, seconds=seconds)
    return found


def has_known(store: Store) -> bool:
    return store.reader.execute("SELECT 1 FROM known").fetchone() is not None


def rows_of_array(file: str | Path, *, remedy: str) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a JSON array. Raises DataError if the file holds none; `remedy`: what to give."""
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} can't be read as a JSON array of judgements: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} is no JSON array of rows; give {remedy}")
    return rows


def _known_row(row: Mapping[str, Any], *, number: int) -> tuple[Any, ...] | None:
    preference, name = row.get("preference"), row.get("annotator")
    if preference is None or preference != preference:
        return None
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise DataError(f"row {number}: preference {preference!r} is no number")
    if not (1 <= preference <= 2 or preference in (OLD_TIE, NOT_PARSED)):
        raise DataError(
            f"row {number}: preference {preference!r} is neither between 1 and 2, nor 0 (AlpacaFarm's old tie), nor -1 "
            "(not parsed)"
        )
    if not isinstance(name, str) or not name or half_at(name) is not None:
        raise DataError(f"row {number}: annotator {name!r} is no name; nobody knows who judged")
    is_failed = preference == NOT_PARSED
    raw = row.get("raw", row.get("raw_completion", row.get("preference_raw_completion")))
    return (
        known_key(name, pair_of(row, number=number)),
        name,
        None if is_failed else 1.5 if preference == OLD_TIE else float(preference),
        "unparsed: imported as -1" if is_failed else None,
        _number(row, "price"),
        _number(row, "seconds", "time"),
        raw if raw is None else whole_characters(raw) if isinstance(raw, str) else json.dumps(raw),
    )


def _number(row: Mapping[str, Any], *names: str) -> float | None:
    for name in names:
        value = row.get(name, row.get(f"{name}_per_example", row.get(f"preference_{name}_per_example")))
        if isinstance(value, int | float) and value == value:
            return float(value)
    return None


def _keep(db: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
