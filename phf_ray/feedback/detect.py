"""Tells by the first records of the input which format it is in, and what rows it makes."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.read import read_rows_of
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.formats.base import JOINED, Record
from phf_ray.feedback.formats.table import AUTO, FORMATS, formats_of, unknown_columns
from phf_ray.feedback.join import joined
from phf_ray.feedback.layout import RowForm
from phf_ray.feedback.prepare import NO_COMPARISON, Prepared, RowSettings, prepare_record
from phf_ray.records import Rejected

_MOST_FILES = 32
_MOST_RECORDS = 100
"""Of each file. One odd record at its beginning must not decide."""


@dataclass(frozen=True, slots=True)
class Detected:
    settings: RowSettings
    form: RowForm
    columns: tuple[str, ...] = field(default=(), compare=False)
    """Columns that the format asks for and the input has."""
    others: tuple[str, ...] = field(default=(), compare=False)
    """Formats that would fit, too, but ask for fewer columns."""

    def __str__(self) -> str:
        return f"{self.settings.format} ({self.form})"

    @property
    def reason(self) -> str:
        """Say why this format is taken, and which others would fit."""
        others = f"; {', '.join(self.others)} would fit, too" if self.others else ""
        return f"because of the columns {', '.join(self.columns)}{others}"


@dataclass(slots=True)
class _Seen:
    """What was seen in files whose records make no row."""

    columns: dict[str, None] = field(default_factory=dict)
    where: str = ""
    reasons: Counter[str] = field(default_factory=Counter)
    detail: str = ""


def detect(files: Sequence[InputFile], wanted: RowSettings) -> Detected:
    """Return the settings with the format of the input in place of `auto`, and the form of its rows.

    Raises ConfigError if the columns are of no known format, or files differ, and DataError if no record looked at
    makes a row.
    """
    seen = _Seen()
    found: tuple[str, Detected] | None = None
    for file in files[:: -(-len(files) // _MOST_FILES) or 1]:
        one = _detect_in(file, wanted, seen)
        if one is None:
            continue
        if found is not None and one != found[1]:
            raise ConfigError(
                f"{found[0]} is {found[1]}, but {file.name} is {one}; the rows of a feedback corpus have one form: "
                "prepare these files apart"
            )
        found = found or (file.name, one)
    if found is not None:
        return found[1]
    if seen.reasons:
        _raise_unfit(seen, wanted)
    if not seen.where:
        raise ConfigError(
            f"--input has no records ({len(files)} files were looked into); give files that are not empty"
        )
    raise unknown_columns(list(seen.columns), where=seen.where, wanted=wanted.format)


def _detect_in(file: InputFile, wanted: RowSettings, seen: _Seen) -> Detected | None:
    records: list[tuple[int, Record]] = []
    fitting: Counter[tuple[str, ...]] = Counter()
    for index, record in itertools.islice(read_rows_of(file, Piece(0, 0)), _MOST_RECORDS):
        if isinstance(record, Rejected):
            continue
        records.append((index, record))
        names = _formats_of(record, wanted.format)
        if names:
            fitting[names] += 1
        else:
            seen.columns.update(dict.fromkeys(record))
            seen.where = seen.where or file.name
    if not fitting:
        return None
    name, *others = fitting.most_common(1)[0][0]
    settings = replace(wanted, format=name)
    for index, one in joined(records, FORMATS[name]):
        assert not isinstance(one, Rejected), "they were left out"
        for made in prepare_record(one, source=file.source, index=index, settings=settings):
            if isinstance(made, Prepared):
                columns = FORMATS[name].columns_in(one.get(JOINED, [one])[0]) or ()
                return Detected(settings, RowForm.of(made.rows[0]), columns, tuple(others))
            seen.reasons[made.reason] += 1
            seen.detail = seen.detail or f"{file.name}, record {index}: {made.detail}"
    return None


def _formats_of(record: Record, wanted: str) -> tuple[str, ...]:
    if wanted == AUTO:
        return tuple(formats_of(record))
    return () if FORMATS[wanted].columns_in(record) is None else (wanted,)


def _raise_unfit(seen: _Seen, wanted: RowSettings) -> None:
    if NO_COMPARISON in seen.reasons:
        raise ConfigError(
            f"--to {wanted.to} makes examples of comparisons, and the input has examples already; leave out --to"
        )
    reasons = ", ".join(f"{reason}: {count}" for reason, count in seen.reasons.most_common())
    raise DataError(
        f"none of the {seen.reasons.total()} records looked at makes a row ({reasons}); the first: {seen.detail}; fix "
        "the input, or give another --format"
    )
