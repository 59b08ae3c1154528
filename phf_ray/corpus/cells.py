"""Python values of table cells. A cell that Python can't represent costs neither its row nor the rows next to it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a cell that has no Python value."""

    reason: str
    """Reason of the rejection if the cell holds the text: not_utf8, not_text, two_columns."""
    detail: str
    shown: str | None = None
    """The raw value as text, if there is one."""

    def __str__(self) -> str:
        return self.shown if self.shown is not None else f"unreadable: {self.detail}"


def rows_of(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield each row. Cells of columns that share a name are Unreadable: nothing says which one is meant."""
    names = batch.schema.names
    columns: dict[str, list[Any]] = {}
    for index, name in enumerate(names):
        if (count := names.count(name)) > 1:
            problem = Unreadable("two_columns", f"{count} columns are named {name!r}; rename all but one")
            columns[name] = [problem] * len(batch)
        else:
            columns[name] = _values(batch.column(index))
    for row in range(len(batch)):
        yield {name: values[row] for name, values in columns.items()}


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except Exception:  # noqa: BLE001  a type's own library decides what is raised: time zones, dates, extensions
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        problem = Unreadable("not_utf8", f"byte {error.start}: {error.reason}", _raw_text(cell))
    except Exception as error:  # noqa: BLE001  as above
        problem = Unreadable("not_text", f"{type(error).__name__}: {error}", _raw_text(cell))
    if isinstance(cell, pa.StructScalar):
        pairs = [(field.name, _value(cell[index])) for index, field in enumerate(cell.type)]
        # A dictionary would lose all but one of several fields with the same name.
        return dict(pairs) if len({name for name, _ in pairs}) == len(pairs) else pairs
    if isinstance(getattr(cell, "values", None), pa.Array):
        return [_value(item) for item in cell.values]
    inner = getattr(cell, "value", None)
    return _value(inner) if isinstance(inner, pa.Scalar) else problem


def _raw_text(cell: pa.Scalar) -> str | None:
    if isinstance(cell, pa.BinaryScalar):
        return str(cell.as_buffer().to_pybytes().decode(errors="backslashreplace"))
    raw = getattr(cell, "value", None)
    return f"{raw} ({cell.type})" if isinstance(raw, int) else None
