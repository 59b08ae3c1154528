"""Estimates the cost of a scoring job from a sample of its input."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.input_records import Record
from phf_ray.corpus.read import read_piece
from phf_ray.corpus.sample import plan_sample
from phf_ray.errors import DataError
from phf_ray.records import Document, Rejected
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask, without_gpus
from phf_ray.scoring.request import ScoringRequest


@dataclass(frozen=True, slots=True)
class ScoringEstimate:
    """Time to score a sample, and the resulting estimate for the whole input."""

    documents: int
    characters: int
    elapsed_s: float
    sample_bytes: int
    total_bytes: int
    """Size of all input; estimated for compressed files and under --limit."""

    @property
    def cpu_hours(self) -> float:
        return self.elapsed_s * self.total_bytes / max(1, self.sample_bytes) / 3600


def estimate_scoring(request: ScoringRequest, *, documents: int = 1000) -> ScoringEstimate:
    """Score about `documents` documents, spread evenly over the input, on one core. Needs no Ray and writes nothing.

    The size of the input comes from the sizes of its files, not from reading them. A compressed file counts as a few
    times its size. Raises DataError if no document could be read.
    """
    files = request.find().files
    wanted = documents if request.limit is None else min(documents, request.limit)
    sample = [
        record
        for one in plan_sample(files, num_records=wanted)
        for record in itertools.islice(_read(files, one.piece, request), one.num_records)
        if not isinstance(record, Rejected)
    ]
    if not sample:
        raise DataError(f"no document could be read from --input {' '.join(request.inputs)}")
    texts = [record.text if isinstance(record, Document) else "".join(record.texts) for record in sample]
    process = ScoringProcess(_on_one_core(request.setup()))
    try:
        process.submit([ScoringTask(text=text) for text in texts[:1]])
        process.collect()
        begin = time.monotonic()
        process.submit([ScoringTask(text=text) for text in texts])
        process.collect()
        elapsed = time.monotonic() - begin
    finally:
        process.close()
    sample_bytes = sum(len(text.encode()) for text in texts)
    total_bytes = sum(file.text_bytes for file in files)
    if request.limit is not None:
        total_bytes = min(total_bytes, request.limit * sample_bytes // len(sample))
    return ScoringEstimate(
        documents=len(sample),
        characters=sum(map(len, texts)),
        elapsed_s=elapsed,
        sample_bytes=sample_bytes,
        total_bytes=total_bytes,
    )


def _on_one_core(setup: ScoringSetup) -> ScoringSetup:
    """Return the setup for one CPU core, even on a machine with a GPU: the estimate is in CPU hours."""
    return replace(without_gpus(setup), num_threads=1)


def _read(files: Sequence[InputFile], piece: Piece, request: ScoringRequest) -> Iterator[Record]:
    return read_piece(files[piece.file], piece, text_column=request.text_column)
