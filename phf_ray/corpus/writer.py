"""Writes the parts of a scored corpus, and finishes the corpus when all parts are there."""

import contextlib
import hashlib
import json
import math
import os
import posixpath
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.corpus.footers import FOOTER_KEY, read_footers
from phf_ray.corpus.layout import (
    CARD,
    MANIFEST,
    SUCCESS,
    TEMPORARY,
    columns_of,
    part_name,
    part_schema,
    scratch_for,
    write_corpus_file,
)
from phf_ray.corpus.manifest import CorpusManifest, data_card
from phf_ray.corpus.segments import SEGMENTER_VERSIONS
from phf_ray.corpus.stats import CorpusStats, ScorerStats
from phf_ray.errors import IncompleteError
from phf_ray.records import Rejected, ScorerIdentity, Scores
from phf_ray.storage.files import full_name, is_local, open_filesystem, publish
from phf_ray.storage.hashing import json_fingerprint

FLUSH_CHARACTERS = 4 << 20
_FLUSH_DOCUMENTS = 4096


class PartWriter:
    """Writes one part under a temporary name; only `commit` adds it to the corpus.

    Memory: 4 M characters of text, whatever the part's size.
    """

    def __init__(self, path: str, *, rejects: str | None, scorers: Sequence[str], footer: Mapping[str, Any]):
        """`path`, `rejects`: files for the part and its rejected records. `rejects` is None if those exist already.

        `footer`: JSON that `read_footer` returns together with the statistics.
        """
        self._filesystem, self._path = open_filesystem(path)
        self._rejects = None if rejects is None else open_filesystem(rejects)[1]
        self._scorers = tuple(scorers)
        self._schema = part_schema(self._scorers)
        self._footer = dict(footer)
        self.stats = CorpusStats(scorers={name: ScorerStats() for name in self._scorers})
        self._digest = hashlib.blake2b(digest_size=16)
        self._rejected: list[Rejected] = []
        self._rows: list[tuple[str, Sequence[str], Mapping[str, Scores], str]] = []
        self._buffered = 0
        if is_local(self._filesystem):
            self._scratch = scratch_for(self._path)
        else:
            # An object store has no rename: the part is finished on local disk and uploaded with one PUT.
            handle, name = tempfile.mkstemp(prefix="phf-", suffix=".parquet")
            os.close(handle)
            self._scratch = Path(name)
        self._writer = pq.ParquetWriter(self._scratch, self._schema, compression="zstd")

    def add(self, document_id: str, texts: Sequence[str], *, scores: Mapping[str, Scores], meta: str) -> None:
        """Add one document. `scores` has an entry for each scorer."""
        characters = sum(map(len, texts))
        self.stats.documents += 1
        self.stats.segments += len(texts)
        self.stats.characters += characters
        self._rows.append((document_id, texts, scores, meta))
        self._buffered += characters
        # Short documents are buffered: updating the statistics for a few at a time would cost more than scoring them.
        if self._buffered >= FLUSH_CHARACTERS or len(self._rows) >= _FLUSH_DOCUMENTS:
            self._flush()

    def reject(self, rejected: Rejected) -> None:
        self.stats.rejected[rejected.reason] += 1
        if rejected.loss is not None:
            self.stats.losses.add(rejected.loss)
        self._rejected.append(rejected)

    def commit(self) -> CorpusStats:
        """Publish the part. A second commit, or one by a worker whose driver is gone, leaves the same part."""
        self._flush()
        footer = {**self._footer, "digest": self._digest.hexdigest(), "stats": self.stats.to_json()}
        self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps(footer, separators=(",", ":")).encode()})
        self._writer.close()
        self._commit_rejected()
        if is_local(self._filesystem):
            publish(self._scratch, Path(self._path))
        else:
            self._filesystem.put_file(str(self._scratch), self._path)
            self._scratch.unlink()
        return self.stats

    def abandon(self) -> None:
        """Discard the part. Harmless after `commit`."""
        # On a full disk, closing fails again, because it writes the footer. The first error is the one to show.
        with contextlib.suppress(OSError):
            self._writer.close()
        self._scratch.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._rows:
            return
        ids, texts, scores, meta = zip(*self._rows, strict=True)
        columns: dict[str, Any] = {"id": ids, "texts": texts, "num_sents": list(map(len, texts)), "meta": meta}
        lengths = [len(segment) for segments in texts for segment in segments]
        self._digest.update("".join(ids).encode() + np.array(lengths, np.int64).tobytes())
        for index, name in enumerate(self._scorers):
            documents = [by_scorer[name] for by_scorer in scores]
            assert all(len(a) == len(b) == len(c) for (a, b), c in zip(documents, texts, strict=True)), name
            averages = self.stats.scorers[name].add(documents)
            values, errors = zip(*documents, strict=True)
            columns.update(zip(columns_of(name, is_first=index == 0), (values, errors, averages), strict=True))
            numbers = [math.nan if value is None else value for document in values for value in document]
            self._digest.update(np.array(numbers, np.float64).tobytes())
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows, self._buffered = [], 0

    def _commit_rejected(self) -> None:
        """Write the rejected records before the part itself, so that a committed part has all of its rejects."""
        if self._rejects is None:
            assert not self._rejected, self._path
            return
        if not self._rejected:
            # An earlier try rejected records that this one could read.
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(self._rejects)
            return
        table = pa.table(
            {
                "source": pa.array([entry.source for entry in self._rejected], pa.string()),
                "record": pa.array([entry.record for entry in self._rejected], pa.int64()),
                "reason": pa.array([entry.reason for entry in self._rejected], pa.string()),
                "detail": pa.array([entry.detail for entry in self._rejected], pa.string()),
            }
        )
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        write_corpus_file(self._filesystem, self._rejects, buffer.getvalue().to_pybytes())


def finish_corpus(  # noqa: PLR0913  (everything that a manifest says)
    directory: str,
    *,
    shards: Sequence[str],
    scorers: Sequence[ScorerIdentity],
    segmenter: str,
    config: Mapping[str, Any],
    input_fingerprint: str,
    sources: Sequence[Mapping[str, str]] = (),
) -> CorpusManifest:
    """Merge the parts' footers into the manifest, write the data card, and `_SUCCESS` last.

    `shards`: the digest that each part's footer must have in `shard`. `segmenter`: what cut the documents that the
    input did not give as segments. Raises IncompleteError if a part belongs to another job or is torn.
    """
    filesystem, root = open_filesystem(directory)
    parts = [posixpath.join(root, part_name(shard)) for shard in range(len(shards))]
    stats = CorpusStats(scorers={scorer.name: ScorerStats() for scorer in scorers})
    digest = hashlib.blake2b(digest_size=16)
    footers = read_footers([full_name(filesystem, part) for part in parts])
    for path, shard, footer in zip(parts, shards, footers, strict=True):
        if footer is None or footer["shard"] != shard:
            raise IncompleteError(f"{path} is damaged or from another job; run the same command again to rewrite it")
        stats.merge(CorpusStats.from_json(footer["stats"]))
        digest.update(footer["digest"].encode())
    manifest = CorpusManifest(
        scorers=tuple(scorer.to_json() for scorer in scorers),
        segmenter=_segmenter_of(stats, segmenter),
        segmenter_versions=config.get(SEGMENTER_VERSIONS, {}),
        stats=stats,
        fingerprint=digest.hexdigest(),
        config=config,
        config_fingerprint=json_fingerprint(config),
        input_fingerprint=input_fingerprint,
        num_parts=len(parts),
        sources=tuple(sources),
    )
    content = json.dumps(manifest.to_json(), indent=2, ensure_ascii=True) + "\n"
    write_corpus_file(filesystem, posixpath.join(root, MANIFEST), content.encode())
    write_corpus_file(filesystem, posixpath.join(root, CARD), data_card(manifest).encode())
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm(posixpath.join(root, TEMPORARY), recursive=True)
    filesystem.touch(posixpath.join(root, SUCCESS))
    return manifest


def _segmenter_of(stats: CorpusStats, segmenter: str) -> str:
    if not stats.cut_elsewhere:
        return segmenter
    return "unknown" if stats.cut_elsewhere == stats.documents else f"{segmenter}, unknown"
