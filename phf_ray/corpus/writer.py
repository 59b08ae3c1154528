"""Writes the parts of a scored corpus, and finishes the corpus when all parts are there."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phf_ray.corpus.finish import checked_footers, write_end
from phf_ray.corpus.layout import columns_of, part_schema
from phf_ray.corpus.manifest import CorpusManifest, data_card
from phf_ray.corpus.part_file import PartFile
from phf_ray.corpus.segments import SEGMENTER_VERSIONS
from phf_ray.corpus.stats import CorpusStats, ScorerStats
from phf_ray.records import Rejected, ScorerIdentity, Scores
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
        self._scorers = tuple(scorers)
        self._file = PartFile(path, rejects=rejects, schema=part_schema(self._scorers))
        self._footer = dict(footer)
        self.stats = CorpusStats(scorers={name: ScorerStats() for name in self._scorers})
        self._digest = hashlib.blake2b(digest_size=16)
        self._rows: list[tuple[str, Sequence[str], Mapping[str, Scores], str]] = []
        self._buffered = 0

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
        self.stats.reject(rejected)
        self._file.reject(rejected)

    def commit(self) -> CorpusStats:
        """Publish the part. A second commit, or one by a worker whose driver is gone, leaves the same part."""
        self._flush()
        footer = {**self._footer, "digest": self._digest.hexdigest(), "stats": self.stats.to_json()}
        self._file.commit(footer)
        return self.stats

    def abandon(self) -> None:
        """Discard the part. Harmless after `commit`."""
        self._file.abandon()

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
        self._file.write(columns)
        self._rows, self._buffered = [], 0


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
    stats = CorpusStats(scorers={scorer.name: ScorerStats() for scorer in scorers})
    digest = hashlib.blake2b(digest_size=16)
    for footer in checked_footers(directory, shards):
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
        num_parts=len(shards),
        sources=tuple(sources),
    )
    write_end(directory, manifest=manifest.to_json(), card=data_card(manifest))
    return manifest


def _segmenter_of(stats: CorpusStats, segmenter: str) -> str:
    if not stats.cut_elsewhere:
        return segmenter
    return "unknown" if stats.cut_elsewhere == stats.documents else f"{segmenter}, unknown"
