"""Judges how much of the input may fail before a job must stop: `scoring.max_failed_fraction`."""

from collections import Counter

from phf_ray.corpus.stats import CorpusStats

JUDGED = 1000
"""Failures are judged once there are this many segments or records, or at the end."""
_TOLERATED_RECORDS = 10
"""This many rejected records never stop a job, unless they are more than half of all records. There is no such number
for files: nobody knows how many records a file has that can't be read."""
_RESTS = {"unreadable", "trailing_bytes"}
"""Reasons of rejects that stand for the rest of a file, not for one record."""


def unread_files(stats: CorpusStats, *, num_files: int, num_bytes: int, limit: float) -> str | None:
    """Say that more than `limit` of the files, or of their bytes, could not be read to their end; None if not.

    `num_files`, `num_bytes`: those of the whole input.
    """
    losses = stats.losses
    # If nothing at all can be read, the end of the job says so.
    if not stats.documents or (len(losses.files) <= limit * num_files and losses.num_bytes <= limit * num_bytes):
        return None
    rests = Counter({reason: stats.rejected[reason] for reason in _RESTS & stats.rejected.keys()})
    return (
        f"{len(losses.files)} of {num_files} input files could not be read to their end, {losses.num_bytes:,} of "
        f"{num_bytes:,} bytes are lost ({shown_reasons(rests)})"
    )


def rejected_records(stats: CorpusStats, *, limit: float, final: bool) -> str | None:
    """Say that more than `limit` of the records could not be read; None if not, or if it is too early to judge."""
    # An empty file is not a failure. The rest of a file counts as the records that are known to be missing.
    known = {"unreadable": max(stats.losses.records, stats.rejected["unreadable"])}
    aside = {"empty", *_RESTS}
    rejected = Counter({reason: count for reason, count in stats.rejected.items() if reason not in aside})
    rejected += Counter(known)
    records = stats.documents + rejected.total()
    if records < JUDGED and not final:
        return None
    if rejected.total() <= max(limit * records, min(_TOLERATED_RECORDS, records / 2)):
        return None
    return f"{rejected.total()} of {records} records could not be read ({shown_reasons(rejected)})"


def shown_reasons(failed: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in failed.most_common(5))
