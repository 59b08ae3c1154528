"""Opens scored corpora: the manifest and the list of parts of each, with one listing per folder.

A data set without a manifest is read through once for its statistics. They are remembered in a file, so that the next
start need not read it again.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.reader import find_corpus_manifest, list_parts, read_part
from phf_ray.corpus.stats import CorpusStats, ScorerStats
from phf_ray.errors import DataError
from phf_ray.records import Rejected, ScoredDocument
from phf_ray.storage.files import open_filesystem, store_errors, write_text
from phf_ray.storage.hashing import json_fingerprint
from phf_ray.storage.listing import entries_of, stamp_of

log = logging.getLogger(__name__)

_THREADS = 8
"""Files that are read at once: over a network, most of the time is waiting."""


@dataclass(frozen=True, slots=True)
class CorpusPart:
    """A file of a scored corpus."""

    file: str
    """Path or URL."""
    size: int
    """Bytes on disk."""
    stamp: str
    """Changes whenever the file does; empty if the store has no such figure."""

    @property
    def label(self) -> str:
        return self.file

    def documents(self, _reject: Callable[[Rejected], None], /) -> Iterator[ScoredDocument]:
        return read_part(self.file)


class Part(Protocol):
    """A part of a data set, small enough to be read by one worker: a `CorpusPart`, or a `TextPart` of `unscored`."""

    @property
    def label(self) -> str:
        """Name or hash that tells it from other parts."""
        ...

    @property
    def size(self) -> int:
        """Bytes as a stored table."""
        ...

    def documents(self, reject: Callable[[Rejected], None], /) -> Iterator[ScoredDocument]:
        """Yield the documents in order, and hand every record that can't be read to `reject`."""
        ...


def forget(_: Rejected) -> None:
    """Count no rejected record: a `reject` for those who only look at documents."""


@dataclass(frozen=True, slots=True)
class StoredCorpus:
    path: str
    manifest: CorpusManifest
    parts: tuple[Part, ...]
    num_files: int = 0
    num_bytes: int = 0
    """Input files of a data set without scores, and their bytes on disk."""


def open_corpora(paths: Sequence[str], *, memory: str | None = None, remembers: bool = False) -> list[StoredCorpus]:
    """Open several corpora at once.

    `memory`: folder or URL with the statistics of data sets without a manifest. `remembers`: whether to add to it.
    """
    with ThreadPoolExecutor(_THREADS) as files, ThreadPoolExecutor(_THREADS) as corpora:
        opened = corpora.map(lambda path: _open(path, files=files, memory=memory, remembers=remembers), paths)
        return list(opened)


def _open(path: str, *, files: ThreadPoolExecutor, memory: str | None, remembers: bool) -> StoredCorpus:
    parts = tuple(sized_parts(path))
    manifest = find_corpus_manifest(path)
    if manifest is not None:
        return StoredCorpus(path, manifest, parts)
    remembered = _memory_of(parts, memory=memory)
    manifest = None if remembered is None else _recall(remembered)
    if manifest is None:
        manifest = scan(path, [part.file for part in parts], files=files)
        if remembers and remembered is not None:
            write_text(remembered, json.dumps(manifest.to_json()) + "\n")
    return StoredCorpus(path, manifest, parts)


def sized_parts(path: str) -> Iterator[CorpusPart]:
    """Yield the files of a scored corpus in order, with one listing per folder and not a round trip per file."""
    names = list_parts(path)
    filesystem, _ = open_filesystem(names[0])
    inner = [open_filesystem(name)[1] for name in names]
    with store_errors(path):
        for name, entry in zip(names, entries_of(filesystem, inner), strict=True):
            if entry is None:
                raise DataError(f"{name} is a link to a file that does not exist; restore the file, or remove the link")
            yield CorpusPart(name, int(entry["size"] or 0), stamp_of(entry))


def _memory_of(parts: Sequence[CorpusPart], *, memory: str | None) -> str | None:
    """Return the file that remembers the statistics of these parts; None if the store can't tell a changed file."""
    if memory is None or not all(part.stamp for part in parts):
        return None
    key = json_fingerprint([[part.file, part.size, part.stamp] for part in parts])
    return f"{memory.rstrip('/')}/{key}.json"


def _recall(file: str) -> CorpusManifest | None:
    filesystem, inner = open_filesystem(file)
    try:
        return CorpusManifest.from_json(json.loads(filesystem.cat_file(inner)))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s can't be read (%r); reading the data set again", file, error)
        return None


def scan(path: str, parts: Sequence[str], *, files: ThreadPoolExecutor) -> CorpusManifest:
    """Read the statistics of a data set without a manifest, several files at once."""
    log.info("%s has no manifest: reading its %d files for statistics", path, len(parts))
    stats = CorpusStats(scorers={"scores": ScorerStats()})
    digest = hashlib.blake2b(digest_size=16)
    for part_stats, identity in _in_order(parts, files=files):
        stats.merge(part_stats)
        digest.update(identity)
    return CorpusManifest(
        scorers=(), segmenter="unknown", stats=stats, fingerprint=digest.hexdigest(), num_parts=len(parts)
    )


def _in_order(parts: Sequence[str], *, files: ThreadPoolExecutor) -> Iterator[tuple[CorpusStats, bytes]]:
    # A few files ahead of the one whose turn it is, so that their results do not pile up in memory.
    ahead: deque[Future[tuple[CorpusStats, bytes]]] = deque()
    for part in parts:
        ahead.append(files.submit(_scan_part, part))
        if len(ahead) > 2 * _THREADS:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _scan_part(part: str) -> tuple[CorpusStats, bytes]:
    """Return the statistics of a file, and the bytes that its documents add to the fingerprint of the data set."""
    stats = CorpusStats(scorers={"scores": ScorerStats()})
    identity = bytearray()
    for document in read_part(part):
        stats.documents += 1
        stats.segments += len(document.texts)
        stats.characters += sum(map(len, document.texts))
        stats.scorers["scores"].add([(document.scores, document.errors)])
        identity += f"{document.id} {[len(text) for text in document.texts]} {document.scores}".encode()
    return stats, bytes(identity)
