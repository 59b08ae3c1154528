"""Adds up the shards' statistics, and stops the job if too much fails."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from phf_ray.corpus.footers import read_footers
from phf_ray.corpus.layout import REJECTED
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan
from phf_ray.corpus.stats import CorpusStats
from phf_ray.errors import IncompleteError

log = logging.getLogger(__name__)


_JUDGED = 1000
"""Failures are judged once there are this many segments or records, or at the end."""
_TOLERATED_RECORDS = 10
"""This many rejected records never stop a job, unless they are more than half of all records. There is no such number
for files: nobody knows how many records a file has that can't be read."""
_RESTS = {"unreadable", "trailing_bytes"}
"""Reasons of rejects that stand for the rest of a file, not for one record."""


@dataclass(frozen=True, slots=True)
class ScoreProgress:
    """The progress of a job. Counts include earlier runs of the same job; the rate is this run's."""

    stats: CorpusStats
    """Documents, segments, characters, rejected records and failures so far."""
    shards_done: int
    shards: int
    bytes_left: int
    bytes_here: int
    """Bytes that this run has done."""
    elapsed_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.bytes_here / max(self.elapsed_s, 1e-9)

    @property
    def eta_s(self) -> float | None:
        return self.bytes_left / self.bytes_per_s if self.bytes_here else None


class ProgressTracker:
    """Adds up the shards' statistics, and stops the job if too much fails. Memory does not grow with the corpus."""

    def __init__(
        self,
        plan: CorpusPlan,
        place: CorpusFolder,
        *,
        progress: Callable[[ScoreProgress], None] | None,
        max_failed_fraction: float,
    ):
        self._sizes = [sum(piece.num_bytes for piece in shard) for shard in plan.shards]
        self.done = place.committed(len(plan.shards))
        self._place = place
        self._progress = progress
        self._limit = max_failed_fraction
        files = {piece.file for shard in plan.shards for piece in shard}
        self._num_files, self._file_bytes = len(files), sum(plan.files[file].size for file in files)
        self._bytes_here = self._bytes_done = 0
        self._bytes = sum(self._sizes)
        self._begin = time.monotonic()
        self.stats = CorpusStats()
        listed = sorted(self.done)
        for shard, footer in zip(listed, read_footers([place.part(shard) for shard in listed]), strict=True):
            if footer is None or footer["shard"] != plan.digest(shard):
                log.warning("%s is damaged or belongs to another job; the job writes it again", place.part(shard))
                self.done.remove(shard)
            else:
                self.stats.merge(CorpusStats.from_json(footer["stats"]))
                self._bytes_done += self._sizes[shard]
        self.judge(final=False)
        self._tell()

    def start_clock(self) -> None:
        """Start the clock of the rate now, so that it does not include starting Ray."""
        self._begin = time.monotonic()

    def shard_done(self, shard: int, stats: CorpusStats) -> None:
        self.done.add(shard)
        self.stats.merge(stats)
        self._bytes_here += self._sizes[shard]
        self._bytes_done += self._sizes[shard]
        self._tell()
        self.judge(final=False)

    def judge(self, *, final: bool) -> None:
        self._judge_files()
        self._judge_records(final=final)
        if self.stats.segments < _JUDGED and not final:
            return
        for name, scorer in self.stats.scorers.items():
            failed = scorer.failed.total()
            if failed > self._limit * self.stats.segments:
                what = f"{name} could not score {failed} of {self.stats.segments} segments"
                raise self._too_many(what, scorer.failed, remedy="fix the scorer")

    def _judge_files(self) -> None:
        """Judge files that can't be read to their end: as files, and by bytes. Both totals are known from the start."""
        losses = self.stats.losses
        # If nothing at all can be read, the end of the job says so.
        if self.stats.documents and (
            len(losses.files) > self._limit * self._num_files or losses.num_bytes > self._limit * self._file_bytes
        ):
            what = (
                f"{len(losses.files)} of {self._num_files} input files could not be read to their end, "
                f"{losses.num_bytes:,} of {self._file_bytes:,} bytes are lost"
            )
            rests = Counter({reason: self.stats.rejected[reason] for reason in _RESTS & self.stats.rejected.keys()})
            raise self._too_many(what, rests, remedy=f"fix the input (see {self._place.name(REJECTED)})")

    def _judge_records(self, *, final: bool) -> None:
        # An empty file is not a failure. The rest of a file counts as the records that are known to be missing.
        known = {"unreadable": max(self.stats.losses.records, self.stats.rejected["unreadable"])}
        aside = {"empty", *_RESTS}
        rejected = Counter({reason: count for reason, count in self.stats.rejected.items() if reason not in aside})
        rejected += Counter(known)
        records = self.stats.documents + rejected.total()
        if records < _JUDGED and not final:
            return
        if rejected.total() > max(self._limit * records, min(_TOLERATED_RECORDS, records / 2)):
            what = f"{rejected.total()} of {records} records could not be read"
            raise self._too_many(what, rejected, remedy=f"fix the input (see {self._place.name(REJECTED)})")

    def _too_many(self, what: str, failed: Counter[str], *, remedy: str) -> IncompleteError:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in failed.most_common(5))
        return IncompleteError(
            f"{what} ({reasons}), more than scoring.max_failed_fraction={self._limit}; stopped after "
            f"{len(self.done)} of {len(self._sizes)} shards, which stay in {self._place.path}; raise that fraction to "
            f"continue, or {remedy} and give --restart"
        )

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.progress())

    def progress(self) -> ScoreProgress:
        return ScoreProgress(
            stats=self.stats,
            shards_done=len(self.done),
            shards=len(self._sizes),
            bytes_left=self._bytes - self._bytes_done,
            bytes_here=self._bytes_here,
            elapsed_s=time.monotonic() - self._begin,
        )
