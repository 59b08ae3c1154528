"""Joins records that belong together, for formats in which each answer to a prompt is a record of its own."""

from collections.abc import Iterable, Iterator

from phf_ray.feedback.formats.base import JOINED, FeedbackFormat, Record
from phf_ray.records import Rejected


def joined(
    records: Iterable[tuple[int, Record | Rejected]], format: FeedbackFormat
) -> Iterator[tuple[int, Record | Rejected]]:
    """Yield the records as the format takes them, each with its index: as they are, or a run of them as one.

    A run has equal texts in the format's column `joins`, and the index of its first record.
    """
    if format.joins is None:
        yield from records
        return
    run: list[Record] = []
    begin = 0
    for index, record in records:
        shared = None if isinstance(record, Rejected) else record.get(format.joins)
        if run and not (isinstance(shared, str) and shared == run[0].get(format.joins)):
            yield begin, _as_one(run, format.joins)
            run = []
        if isinstance(record, Rejected):
            yield index, record
            continue
        if not run:
            begin = index
        run.append(record)
    if run:
        yield begin, _as_one(run, format.joins)


def _as_one(run: list[Record], column: str) -> Record:
    return {column: run[0].get(column), JOINED: run}
