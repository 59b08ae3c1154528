"""Scores one shard: reads it, scores it, and commits it as one part.

Scorers that need a GPU form a second stage with its own actors. Between the stages a shard is stored under `_tmp/`.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.footers import read_footer
from phf_ray.corpus.input_records import Record, Segmented
from phf_ray.corpus.layout import TEMPORARY, columns_of
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import as_stored_json
from phf_ray.corpus.read import read_piece
from phf_ray.corpus.segments import segmenter_versions
from phf_ray.corpus.stats import CorpusStats
from phf_ray.corpus.tables import read_rows
from phf_ray.corpus.writer import PartWriter
from phf_ray.errors import ConfigError
from phf_ray.records import Document, Rejected
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringOutcome, ScoringSetup, ScoringTask
from phf_ray.storage.files import remove_file

_BATCH_CHARACTERS = 64 << 10
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True, slots=True)
class ScoringStage:
    """The work that one pool of actors does on a shard."""

    setup: ScoringSetup
    """Setup with only the scorers of this stage."""
    identities: tuple[dict[str, Any], ...]
    scorers_before: tuple[str, ...]
    """Names of the scorers whose scores a shard already has, from the input or the previous stage."""
    scorers: tuple[str, ...]
    """All names, in the order of the columns."""
    output: str
    text_column: str | None
    keep_columns: tuple[str, ...]
    segmenter_versions: Mapping[str, str] | None
    """Versions that cut the other shards; None if the plan is too old to say."""
    is_first: bool
    is_last: bool

    @property
    def scorers_after(self) -> tuple[str, ...]:
        """Names of the scorers whose scores a shard has after this stage, in the order of the columns."""
        mine = {*self.scorers_before, *(identity["name"] for identity in self.identities)}
        return tuple(name for name in self.scorers if name in mine)


def score_records(
    records: Iterable[Record], process: ScoringProcess, writer: PartWriter, *, counted: Callable[[CorpusStats], None]
) -> None:
    """Score the documents of a shard and write them to its part. The next batch is read while one is scored.

    Calls `counted` with the writer's statistics after each batch except the last.
    """
    scored: list[tuple[Document | Segmented, ScoringTask]] | None = None
    for batch in _batches(records, writer):
        if scored is not None:
            answer = process.collect()
            process.submit([task for _, task in batch])
            _write(scored, answer.outcomes, truncated=answer.truncated, writer=writer)
            counted(writer.stats)
        else:
            process.submit([task for _, task in batch])
        scored = batch
    if scored is not None:
        answer = process.collect()
        _write(scored, answer.outcomes, truncated=answer.truncated, writer=writer)


def _batches(records: Iterable[Record], writer: PartWriter) -> Iterator[list[tuple[Document | Segmented, ScoringTask]]]:
    batch: list[tuple[Document | Segmented, ScoringTask]] = []
    characters = 0
    for record in records:
        if isinstance(record, Rejected):
            writer.reject(record)
            continue
        if isinstance(record, Document):
            task = ScoringTask(text=record.text)
            characters += len(record.text)
        else:
            task = ScoringTask(texts=record.texts, scores=record.scores)
            characters += sum(map(len, record.texts))
        batch.append((record, task))
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write(
    batch: Sequence[tuple[Document | Segmented, ScoringTask]],
    outcomes: Sequence[ScoringOutcome],
    *,
    truncated: Mapping[str, int],
    writer: PartWriter,
) -> None:
    for (record, _), outcome in zip(batch, outcomes, strict=True):
        if outcome.problem is not None:
            origin = json.loads(record.meta)
            writer.reject(
                Rejected(str(origin.get("source", record.id)), int(origin.get("record", 0)), *outcome.problem)
            )
        else:
            writer.add(record.id, outcome.texts, scores=outcome.scores, meta=record.meta)
    for name, count in truncated.items():
        writer.stats.scorers[name].truncated += count


class ShardScorer:
    """Owns a scoring process and scores one shard per call."""

    def __init__(self, stage: ScoringStage):
        self._stage = stage
        here = segmenter_versions(stage.setup.segmenter)
        if stage.segmenter_versions is not None and here != stage.segmenter_versions:
            raise ConfigError(
                f"{platform.node()} would cut texts with {here}; the job began with {stage.segmenter_versions}; "
                "install the same versions on all nodes"
            )
        self._process = ScoringProcess(stage.setup)
        identities = tuple(as_stored_json(identity.to_json()) for identity in self._process.identities)
        if identities != stage.identities:
            raise ConfigError(
                f"{platform.node()} would score differently: {identities}; the job began with {stage.identities}; "
                "install the same versions on all nodes"
            )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        stage, output = self._stage, CorpusFolder(self._stage.output)
        shard, staged = int(row["shard"]), str(row["staged"])
        if stage.is_last and (done := output.stats_of(shard, digest=row["digest"])) is not None:
            # If a node dies after the commit, Ray may send the shard again. The staged file may be gone by then.
            if staged:
                remove_file(staged)
            return {**row, "staged": "", "stats": json.dumps(done.to_json())}
        between = output.name(TEMPORARY, f"stage-{shard}-{os.urandom(8).hex()}.parquet")
        path = output.part(shard) if stage.is_last else between
        writer = PartWriter(
            path,
            rejects=output.rejects(shard) if stage.is_first else None,
            scorers=stage.scorers_after,
            footer={"shard": row["digest"]},
        )
        try:
            if stage.is_first:
                pieces = json.loads(row["pieces"])
                records: Iterable[Record] = read_shard(pieces, stage=stage, writer=writer)
                count_reused(pieces, writer)
            else:
                records = read_staged(staged, scorers=stage.scorers_before, writer=writer)
            score_records(records, self._process, writer, counted=self.count)
            stats = writer.commit()
            self.count(stats)
        finally:
            writer.abandon()
        if staged:
            remove_file(staged)
        return {**row, "staged": "" if stage.is_last else path, "stats": json.dumps(stats.to_json())}

    def close(self) -> None:
        self._process.close()

    def count(self, stats: CorpusStats) -> None:
        """Called with the current shard's statistics, between batches and at its end."""


def read_shard(pieces: Sequence[Mapping[str, Any]], *, stage: ScoringStage, writer: PartWriter) -> Iterator[Record]:
    """Yield the records of a shard. Counts in `writer` those that an unknown segmenter has cut."""
    for entry in pieces:
        for record in read_piece(
            InputFile(*entry["file"]),
            Piece.from_json(entry["piece"]),
            text_column=stage.text_column,
            keep=stage.keep_columns,
            reuse={name: (scores, errors) for name, (scores, errors) in entry["reuse"].items()},
        ):
            if isinstance(record, Segmented) and not entry["is_cut_alike"]:
                writer.stats.cut_elsewhere += 1
            yield record


def count_reused(pieces: Sequence[Mapping[str, Any]], writer: PartWriter) -> None:
    """Add the number of texts that were truncated when the reused scores were computed.

    Each part of the input has one such number. The shard with the part's first row gets all of it, even under --limit.
    """
    for entry in pieces:
        reused = set(entry["reuse"]) & set(writer.stats.scorers)
        if reused and Piece.from_json(entry["piece"]).begin == 0:
            footer = read_footer(InputFile(*entry["file"]).name)
            before = CorpusStats.from_json(footer["stats"]) if footer is not None else CorpusStats()
            for name in reused & set(before.scorers):
                writer.stats.scorers[name].truncated += before.scorers[name].truncated


def read_staged(path: str, *, scorers: Sequence[str], writer: PartWriter) -> Iterator[Segmented]:
    """Yield the documents that the previous stage stored. Adds that stage's other counts to `writer` first."""
    footer = read_footer(path)
    assert footer is not None, path
    before = CorpusStats.from_json(footer["stats"])
    writer.stats.rejected += before.rejected
    writer.stats.losses.merge(before.losses)
    writer.stats.cut_elsewhere += before.cut_elsewhere
    columns = {name: columns_of(name, is_first=index == 0)[:2] for index, name in enumerate(scorers)}
    for name in scorers:
        writer.stats.scorers[name].truncated += before.scorers[name].truncated
    for row in read_rows(path):
        known = {name: (row[scores], row[errors]) for name, (scores, errors) in columns.items()}
        yield Segmented(id=row["id"], texts=tuple(row["texts"]), meta=row["meta"], scores=known)
