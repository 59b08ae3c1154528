"""Reads text that has no scores as a scoring job reads its input, without a stored copy.

It is found and cut into parts in the same way, and records that can't be read are rejected with the same reasons. The
cut is remembered, because finding where records begin means reading the input once.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from phf_ray.config import DatasetConfig
from phf_ray.corpus.columns import check_columns
from phf_ray.corpus.cut import Piece, plan_shards
from phf_ray.corpus.find import InputFile, find_files
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.read import read_piece
from phf_ray.corpus.splits import some_names
from phf_ray.corpus.stats import CorpusStats
from phf_ray.corpus.stored import StoredCorpus
from phf_ray.corpus.text_share import TextShares
from phf_ray.records import NEVER_SCORED, Document, Rejected, ScoredDocument
from phf_ray.storage.files import open_filesystem, write_text
from phf_ray.storage.hashing import json_fingerprint

log = logging.getLogger(__name__)

_PART_BYTES = 8 << 20
_BYTES_PER_STORED = 4
"""Text compresses about fourfold, so a part of 8 MB of text would be a file of 2 MB."""


@dataclass(frozen=True, slots=True)
class TextPart:
    """Consecutive pieces of files without scores."""

    pieces: tuple[tuple[InputFile, Piece], ...]
    column: str | None

    @property
    def label(self) -> str:
        """Text that changes with the documents of this part."""
        return json_fingerprint([self.column, *([_identity(file), piece.to_json()] for file, piece in self.pieces)])

    @property
    def size(self) -> int:
        """Estimated bytes of a file of a scored corpus with the same text."""
        return sum(piece.num_bytes for _, piece in self.pieces) // _BYTES_PER_STORED

    def documents(self, reject: Callable[[Rejected], None]) -> Iterator[ScoredDocument]:
        for file, piece in self.pieces:
            for record in read_piece(file, piece, text_column=self.column):
                if isinstance(record, Rejected):
                    reject(record)
                else:
                    text = record.text if isinstance(record, Document) else "".join(record.texts)
                    yield ScoredDocument(record.id, (text,), (None,), (NEVER_SCORED,), record.meta)


def _identity(file: InputFile) -> list[str | int]:
    return [file.path, file.kind, file.size, file.stamp]


def find_text(path: str, settings: DatasetConfig) -> tuple[InputFile, ...]:
    """Find the files of a data set without scores. Raises ConfigError if there is none, or no column with the text."""
    found = find_files([path], option="data set")
    if found.other_splits:
        log.info("reading the split to train on; leaving out %s", some_names(found.other_splits))
    check_columns(found.files, text_column=settings.text_column, option="dataset.text_column")
    if settings.text_unit == "document":
        return found.files
    return tuple(replace(file, kind="text_lines") if file.kind == "text" else file for file in found.files)


def open_text(
    path: str,
    files: Sequence[InputFile],
    *,
    settings: DatasetConfig,
    memory: str | None,
    remembers: bool,
    enough_bytes: int | None = None,
) -> StoredCorpus:
    """Cut the files into parts, or recall from `memory` how they were cut.

    `enough_bytes`: bytes of text that are enough for a training, other columns not counted. What lies behind them is
    not read.
    """
    if enough_bytes is not None and sum(file.text_bytes for file in files) <= enough_bytes:
        enough_bytes = None
    limits = [] if enough_bytes is None else ["text", enough_bytes]
    fingerprint = json_fingerprint(["text", settings.text_column, _PART_BYTES, *limits, *map(_identity, files)])
    remembered = None if memory is None else f"{memory}/{fingerprint}.json"
    cut = partial(
        plan_shards,
        files,
        shard_bytes=_PART_BYTES,
        max_bytes=enough_bytes,
        text_share=TextShares(settings.text_column).of,
    )
    shards = _shards(files, cut, remembered=remembered, remembers=remembers)
    parts = tuple(
        TextPart(tuple((files[piece.file], piece) for piece in shard), settings.text_column) for shard in shards
    )
    manifest = CorpusManifest(
        scorers=(), segmenter=settings.text_unit, stats=CorpusStats(), fingerprint=fingerprint, num_parts=len(parts)
    )
    return StoredCorpus(path, manifest, parts, num_files=len(files), num_bytes=sum(file.size for file in files))


def _shards(
    files: Sequence[InputFile], cut: Callable[[], Iterator[list[Piece]]], *, remembered: str | None, remembers: bool
) -> list[list[Piece]]:
    if remembered is None or not all(file.stamp for file in files):
        return list(cut())
    shards = _recall(remembered)
    if shards is None:
        shards = list(cut())
        if remembers:
            write_text(remembered, json.dumps([[piece.to_json() for piece in shard] for shard in shards]) + "\n")
    return shards


def _recall(file: str) -> list[list[Piece]] | None:
    filesystem, inner = open_filesystem(file)
    try:
        return [[Piece.from_json(piece) for piece in shard] for shard in json.loads(filesystem.cat_file(inner))]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        log.warning("%s can't be read (%r); looking into the data set again", file, error)
        return None


def read_text(
    files: Sequence[InputFile], *, settings: DatasetConfig, reject: Callable[[Rejected], None]
) -> Iterator[ScoredDocument]:
    """Yield all documents of the files, in order."""
    pieces = ((file, Piece(index, file.text_bytes)) for index, file in enumerate(files))
    for piece in pieces:
        yield from TextPart((piece,), settings.text_column).documents(reject)
