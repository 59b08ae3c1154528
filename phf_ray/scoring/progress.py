"""Adds up the shards' statistics, and stops the job if too much fails."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from phf_ray.corpus.budget import JUDGED, rejected_records, shown_reasons, unread_files
from phf_ray.corpus.layout import REJECTED
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan
from phf_ray.corpus.stats import CorpusStats
from phf_ray.errors import IncompleteError

log = logging.getLogger(__name__)


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
        committed = place.committed(len(plan.shards))
        self.done = {*committed}
        self._place = place
        self._progress = progress
        self._limit = max_failed_fraction
        files = {piece.file for shard in plan.shards for piece in shard}
        self._num_files, self._file_bytes = len(files), sum(plan.files[file].size for file in files)
        self._bytes_here = self._bytes_done = 0
        self._bytes = sum(self._sizes)
        self._begin = time.monotonic()
        self.stats = CorpusStats()
        for shard, footer in place.footers(committed):
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
        stats, limit = self.stats, self._limit
        remedy = f"fix the input (see {self._place.name(REJECTED)})"
        for found in (
            unread_files(stats, num_files=self._num_files, num_bytes=self._file_bytes, limit=limit),
            rejected_records(stats, limit=limit, final=final),
        ):
            if found is not None:
                raise self._too_many(found, remedy=remedy)
        if stats.segments < JUDGED and not final:
            return
        for name, scorer in stats.scorers.items():
            failed = scorer.failed.total()
            if failed > limit * stats.segments:
                what = f"{name} could not score {failed} of {stats.segments} segments ({shown_reasons(scorer.failed)})"
                raise self._too_many(what, remedy="fix the scorer")

    def _too_many(self, what: str, *, remedy: str) -> IncompleteError:
        return IncompleteError(
            f"{what}, more than scoring.max_failed_fraction={self._limit}; stopped after "
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
