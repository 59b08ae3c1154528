r"""The scored corpus on disk: Parquet parts, a manifest, a data card, and `_SUCCESS` written last.

    part-00000.parquet ...  id, texts, scores, avg_score, num_sents, errors, meta; scores__<name>, ... of other scorers
    rejected/part-*.parquet source, record, reason, detail of records that could not be read or stored
    plan.json               input, configuration and shards; shard i becomes part i
    manifest.json           who scored, how much, how the scores are distributed
    README.md               data card that `datasets.load_dataset` reads

What a part contributes to the manifest stands in its own footer, so the manifest is a merge of footers: nothing else
has to survive a crash, and memory does not grow with the corpus. The data sets published with the original code are
read as they are.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import posixpath
import re
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate
from numpy.typing import NDArray

from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.records import Rejected, ScoredDocument, ScorerIdentity

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PLAN = "plan.json"
SUCCESS = "_SUCCESS"
CARD = "README.md"
REJECTED = "rejected"
TEMPORARY = "_tmp"
FILES = (SUCCESS, MANIFEST, CARD, "summary.json", PLAN)
"""What stands beside the parts, in the order in which it is removed."""

Scores = tuple[Sequence[float | None], Sequence[str | None]]
"""Scores and errors of one document, one of each per segment; exactly one of the two is None."""

_FOOTER = b"phf_ray"
_FLUSH_CHARACTERS = 4 << 20
_FLUSH_DOCUMENTS = 4096
_READ_ROWS = 256


# ------------------------------------------------------------------------------------------------------ file systems


def open_filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a local path or URL, and the path in it."""
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; give a path or a URL such as s3://bucket/folder") from None


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return isinstance(filesystem, LocalFileSystem)


def full_name(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """What `open_filesystem` turns back into the same place."""
    return path if is_local(filesystem) else str(filesystem.unstrip_protocol(path))


@contextlib.contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Raises DataError with the words of a store or disk that says neither what is there nor that nothing is."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} can't be looked at: {type(error).__name__}: {error}; check that you may read it, and for an "
            "object store its credentials, its endpoint and the network"
        ) from error


def list_files(
    filesystem: fsspec.AbstractFileSystem, root: str, *, enters: Callable[[str], bool] | None = None
) -> dict[str, dict[str, Any]]:
    """Entries of all files below a folder, by their paths. `enters`: whether to look into a folder below it;
    None: into all.

    Raises DataError for a folder that can't be listed.
    """
    if not _is_walked(filesystem):
        return dict(filesystem.find(root, detail=True))
    files: dict[str, dict[str, Any]] = {}
    folders = [root.rstrip("/") or "/"]
    while folders:
        folder = folders.pop()
        for entry in _entries(filesystem, folder):
            name = str(entry["name"]).rstrip("/")
            if entry["type"] != "directory":
                files[name] = entry
            elif name != folder and (enters is None or enters(name)):
                folders.append(name)
    return files


def match_files(filesystem: fsspec.AbstractFileSystem, pattern: str) -> dict[str, dict[str, Any]]:
    """As `list_files`, of the files that match a glob. Folders that can hold none of them are not looked into."""
    if not _is_walked(filesystem):
        found = filesystem.glob(pattern, detail=True)
        return {name: entry for name, entry in found.items() if entry["type"] != "directory"}
    parts = pattern.split("/")

    def enters(folder: str) -> bool:
        depth = folder.count("/") + 1
        if "**" in parts[:depth]:
            return True
        return depth < len(parts) and re.match(glob_translate("/".join(parts[:depth])), folder) is not None

    matches = re.compile(glob_translate(pattern)).match
    return {
        name: entry
        for name, entry in list_files(filesystem, glob_root(pattern), enters=enters).items()
        if matches(name)
    }


def glob_root(pattern: str) -> str:
    """The folder before the first sign of a glob; of a path that is none, the folder it lies in."""
    return posixpath.dirname(re.split(r"[*?[]", pattern, maxsplit=1)[0])


def is_glob(path: str) -> bool:
    return re.search(r"[*?[]", path) is not None


def follow(filesystem: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> dict[str, Any] | None:
    """The entry itself, or of a link that of what it leads to, under the link's name; None: it leads nowhere.

    A listing of a local folder tells the time of the link, which stays the same when its target changes.
    """
    if not entry.get("islink") and entry["type"] in ("file", "directory"):
        return entry
    try:
        return dict(filesystem.info(entry["name"]))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _is_walked(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether `find` is fsspec's own, which leaves a folder that it can't list out without a word.

    Its `on_error` is of no use: `walk` does not hand it on to the folders below the first.
    """
    return getattr(filesystem.find, "__func__", None) is fsspec.AbstractFileSystem.find


def _entries(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    try:
        return list(filesystem.ls(folder, detail=True))
    except FileNotFoundError:
        return []  # removed since it was seen
    except OSError as error:
        raise DataError(
            f"{full_name(filesystem, folder)} can't be listed: {type(error).__name__}: {error}; make it readable, or "
            "give the folders beside it, or a glob that leaves it out"
        ) from error


def write_file(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """All of the file or nothing of it: written beside and renamed, or one PUT on an object store."""
    if not is_local(filesystem):
        filesystem.pipe_file(path, content)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    scratch = _scratch_for(path)
    scratch.write_bytes(content)
    _rename(scratch, Path(path))


def remove_file(path: str) -> None:
    filesystem, inner = open_filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(inner)


def _scratch_for(path: str) -> Path:
    """A new name in `_tmp` of the corpus, which is on the same disk, as renaming requires."""
    folder = Path(path).parent
    root = folder.parent if folder.name in (REJECTED, TEMPORARY) else folder
    (root / TEMPORARY).mkdir(parents=True, exist_ok=True)
    return root / TEMPORARY / f"{Path(path).name}.{uuid.uuid4().hex}"


def _rename(scratch: Path, final: Path) -> None:
    # Without fsync a machine that loses power can be left with the new name and no content.
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(final)


# --------------------------------------------------------------------------------------------------------- statistics


@dataclass(slots=True)
class Histogram:
    """Distribution of a score in bins whose edges grow by 1%, for negative and positive scores; zero has its own bin.

    Histograms merge exactly, so those of parts add up to that of the corpus.
    """

    RATIO = 1.01
    """Upper edge of a bin over its lower edge: a quantile is at most 1% above the true one, never below it."""

    zero: int = 0
    positive: dict[int, tuple[int, float]] = field(default_factory=dict)
    """i -> count and sum of the scores in (RATIO**(i - 1), RATIO**i]."""
    negative: dict[int, tuple[int, float]] = field(default_factory=dict)
    """i -> count and sum of the scores whose magnitude is in [RATIO**i, RATIO**(i + 1))."""
    squares: float = 0.0
    min: float | None = None
    max: float | None = None

    def add(self, scores: NDArray[np.float64]) -> None:
        """Every score must be finite."""
        if not scores.size:
            return
        self.zero += int((scores == 0).sum())
        _add_bins(self.positive, scores[scores > 0], np.ceil)
        _add_bins(self.negative, scores[scores < 0], np.floor)
        self.squares += float(np.square(scores).sum())
        low, high = float(scores.min()), float(scores.max())
        self.min = low if self.min is None else min(self.min, low)
        self.max = high if self.max is None else max(self.max, high)

    def merge(self, other: "Histogram") -> None:
        self.zero += other.zero
        for mine, theirs in ((self.positive, other.positive), (self.negative, other.negative)):
            for index, (count, total) in theirs.items():
                old_count, old_total = mine.get(index, (0, 0.0))
                mine[index] = (old_count + count, old_total + total)
        self.squares += other.squares
        if other.min is not None and other.max is not None:
            self.min = other.min if self.min is None else min(self.min, other.min)
            self.max = other.max if self.max is None else max(self.max, other.max)

    @property
    def count(self) -> int:
        return sum(count for _, count, _ in self._ascending())

    @property
    def mean(self) -> float | None:
        """Exact, up to the order of summation."""
        count = self.count
        return math.fsum(total for _, _, total in self._ascending()) / count if count else None

    @property
    def std(self) -> float | None:
        mean = self.mean
        return None if mean is None else math.sqrt(max(0.0, self.squares / self.count - mean * mean))

    def quantile(self, fraction: float) -> float:
        """The least bin edge that at least this fraction of the scores does not exceed.

        Raises DataError where there is no score at all.
        """
        if not 0 <= fraction <= 1:
            raise ConfigError(f"quantile {fraction} is not between 0 and 1")
        count = self.count
        if self.min is None or self.max is None:
            raise DataError("the corpus has no score, so it has no quantiles; see the failures in its manifest.json")
        if fraction == 0:
            return self.min
        seen = 0
        for edge, bin_count, _ in self._ascending():
            seen += bin_count
            if seen >= fraction * count:
                return min(max(edge, self.min), self.max)
        return self.max

    def split(self, threshold: float) -> tuple["Side", "Side"]:
        """Scores at most the threshold, and above it; exact where the threshold is a quantile of this histogram."""
        below, above = Side(), Side()
        for edge, count, total in self._ascending():
            # The last bin's edge may lie beyond a threshold that was cut to the largest score.
            inside = edge <= threshold or (self.max is not None and self.max <= threshold)
            side = below if inside else above
            side.count += count
            side.total += total
        return below, above

    def _ascending(self) -> Iterator[tuple[float, int, float]]:
        """Upper edge, count and sum of each bin."""
        for index in sorted(self.negative, reverse=True):
            yield (-(self.RATIO**index), *self.negative[index])
        if self.zero:
            yield 0.0, self.zero, 0.0
        for index in sorted(self.positive):
            yield (self.RATIO**index, *self.positive[index])

    def to_json(self) -> dict[str, Any]:
        return {
            "zero": self.zero,
            "positive": [[index, *self.positive[index]] for index in sorted(self.positive)],
            "negative": [[index, *self.negative[index]] for index in sorted(self.negative)],
            "squares": self.squares,
            "min": self.min,
            "max": self.max,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            zero=values["zero"],
            positive={index: (count, total) for index, count, total in values["positive"]},
            negative={index: (count, total) for index, count, total in values["negative"]},
            squares=values["squares"],
            min=values["min"],
            max=values["max"],
        )


@dataclass(slots=True)
class Side:
    """Scores on one side of a threshold."""

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


def _add_bins(bins: dict[int, tuple[int, float]], scores: NDArray[np.float64], rounded: np.ufunc) -> None:
    if not scores.size:
        return
    indices = rounded(np.log(np.abs(scores)) / math.log(Histogram.RATIO)).astype(np.int64)
    values, inverse, counts = np.unique(indices, return_inverse=True, return_counts=True)
    totals = np.bincount(inverse, weights=scores)
    for index, count, total in zip(values.tolist(), counts.tolist(), totals.tolist(), strict=True):
        old_count, old_total = bins.get(index, (0, 0.0))
        bins[index] = (old_count + count, old_total + total)


@dataclass(slots=True)
class ScorerStats:
    """What one scorer found."""

    segment_histogram: Histogram = field(default_factory=Histogram)
    document_histogram: Histogram = field(default_factory=Histogram)
    """Of each document's unweighted mean over its scored segments."""
    failed: Counter[str] = field(default_factory=Counter)
    """Segments without a score, by reason: what stands before the colon of their error."""
    truncated: int = 0
    """Segments of which the scorer read only the beginning."""

    def add(self, documents: Sequence[Scores]) -> list[float | None]:
        """Count some documents; the average score of each, None where no segment has one."""
        averages: list[float | None] = []
        segments: list[float] = []
        for scores, errors in documents:
            known = [score for score in scores if score is not None]
            segments += known
            averages.append(math.fsum(known) / len(known) if known else None)
            self.failed.update(reason_of(error) for error in errors if error is not None)
        self.segment_histogram.add(np.array(segments))
        self.document_histogram.add(np.array([average for average in averages if average is not None]))
        return averages

    def merge(self, other: "ScorerStats") -> None:
        self.segment_histogram.merge(other.segment_histogram)
        self.document_histogram.merge(other.document_histogram)
        self.failed += other.failed
        self.truncated += other.truncated

    def to_json(self) -> dict[str, Any]:
        return {
            "failed": dict(sorted(self.failed.items())),
            "truncated": self.truncated,
            "segment_histogram": self.segment_histogram.to_json(),
            "document_histogram": self.document_histogram.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            segment_histogram=Histogram.from_json(values["segment_histogram"]),
            document_histogram=Histogram.from_json(values["document_histogram"]),
            failed=Counter(values["failed"]),
            truncated=values["truncated"],
        )


def reason_of(error: str) -> str:
    return error.partition(":")[0].strip()


@dataclass(slots=True)
class Stats:
    """Counts of a part, or of all of them."""

    scorers: dict[str, ScorerStats] = field(default_factory=dict)
    documents: int = 0
    segments: int = 0
    characters: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Records that became no document, by reason."""

    def merge(self, other: "Stats") -> None:
        self.documents += other.documents
        self.segments += other.segments
        self.characters += other.characters
        self.rejected += other.rejected
        for name, stats in other.scorers.items():
            self.scorers.setdefault(name, ScorerStats()).merge(stats)

    @property
    def num_failed(self) -> int:
        """Missing scores of segments, over all scorers."""
        return sum(stats.failed.total() for stats in self.scorers.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "segments": self.segments,
            "characters": self.characters,
            "rejected": dict(sorted(self.rejected.items())),
            "scorers": {name: stats.to_json() for name, stats in self.scorers.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            scorers={name: ScorerStats.from_json(stats) for name, stats in values["scorers"].items()},
            documents=values["documents"],
            segments=values["segments"],
            characters=values["characters"],
            rejected=Counter(values["rejected"]),
        )


# ----------------------------------------------------------------------------------------------------------- manifest


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a whole corpus without reading it."""

    scorers: tuple[dict[str, Any], ...]
    """`ScorerIdentity.to_json()` of each, the one that is trained on first."""
    segmenter: str
    stats: Stats
    fingerprint: str
    """Hash of ids, segments and scores of all documents, in order: two equal ones are the same corpus."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What decided the scores, and what was read."""
    config_fingerprint: str = ""
    input_fingerprint: str = ""
    num_parts: int = 0

    @property
    def scorer(self) -> dict[str, Any]:
        """Identity of the scorer in column `scores`; empty for a data set that does not say."""
        return self.scorers[0] if self.scorers else {}

    @property
    def documents(self) -> int:
        return self.stats.documents

    @property
    def segments(self) -> int:
        return self.stats.segments

    @property
    def characters(self) -> int:
        return self.stats.characters

    @property
    def rejected(self) -> Mapping[str, int]:
        return self.stats.rejected

    def scorer_stats(self, scorer: str | None = None) -> ScorerStats:
        """Of the scorer by this name, by default of the one that is trained on."""
        name = scorer or next(iter(self.stats.scorers), "")
        if name not in self.stats.scorers:
            raise ConfigError(f"no scorer {name!r} in this corpus; it has {', '.join(self.stats.scorers) or 'none'}")
        return self.stats.scorers[name]

    def segment_quantile(self, fraction: float, *, scorer: str | None = None) -> float:
        """The score that this fraction of the segments does not exceed; at most 1% above the exact one."""
        return self.scorer_stats(scorer).segment_histogram.quantile(fraction)

    def document_quantile(self, fraction: float, *, scorer: str | None = None) -> float:
        """As `segment_quantile`, of the documents' average scores."""
        return self.scorer_stats(scorer).document_histogram.quantile(fraction)

    def to_json(self) -> dict[str, Any]:
        stats = self.stats.to_json()
        identities = {identity["name"]: identity for identity in self.scorers}
        for name, entry in stats["scorers"].items():
            entry["identity"] = identities.get(name)
            entry["quantiles"] = _quantile_table(self.stats.scorers[name])
        return {
            "format": 1,
            "scorer": self.scorer,
            "segmenter": self.segmenter,
            "fingerprint": self.fingerprint,
            "config_fingerprint": self.config_fingerprint,
            "input_fingerprint": self.input_fingerprint,
            "num_parts": self.num_parts,
            "config": dict(self.config),
            "quantile_relative_error": round(Histogram.RATIO - 1, 6),
            **stats,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            scorers=tuple(entry["identity"] for entry in values["scorers"].values() if entry["identity"]),
            segmenter=values["segmenter"],
            stats=Stats.from_json(values),
            fingerprint=values["fingerprint"],
            config=values["config"],
            config_fingerprint=values["config_fingerprint"],
            input_fingerprint=values["input_fingerprint"],
            num_parts=values["num_parts"],
        )


def _quantile_table(stats: ScorerStats) -> dict[str, dict[str, float]]:
    """For people; thresholds are taken from the histograms."""
    tables = {"segments": stats.segment_histogram, "documents": stats.document_histogram}
    fractions = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    return {
        name: {str(fraction): histogram.quantile(fraction) for fraction in fractions}
        for name, histogram in tables.items()
        if histogram.count
    }


def fingerprint(value: object) -> str:
    """Hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def document_id(source: str, record: int, text: str) -> str:
    """blake2b-128 of the source path relative to its input root, the record's index in it, and the content."""
    digest = hashlib.blake2b(f"{source}\0{record}\0".encode(), digest_size=16)
    digest.update(text.encode())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ writing


def part_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def columns_of(name: str, *, is_first: bool) -> tuple[str, str, str]:
    """Names of the columns that hold a scorer's scores, errors and averages."""
    suffix = "" if is_first else f"__{name}"
    return f"scores{suffix}", f"errors{suffix}", f"avg_score{suffix}"


def part_schema(scorers: Sequence[str]) -> pa.Schema:
    """Columns of a part; the first scorer is the one that is trained on."""
    fields = [pa.field("id", pa.string()), pa.field("texts", pa.list_(pa.string()))]
    for index, name in enumerate(scorers):
        scores, errors, average = columns_of(name, is_first=index == 0)
        fields += [pa.field(scores, pa.list_(pa.float64())), pa.field(average, pa.float64())]
        if index == 0:
            fields.append(pa.field("num_sents", pa.int64()))
        fields.append(pa.field(errors, pa.list_(pa.string())))
    return pa.schema([*fields, pa.field("meta", pa.string())])


class PartWriter:
    """Writes one part under a temporary name; only `commit` makes it part of the corpus.

    Memory: 4 M characters of text, whatever the part's size.
    """

    def __init__(self, path: str, *, rejects: str | None, scorers: Sequence[str], footer: Mapping[str, Any]):
        """Where the part and its rejected records will be; `rejects` None: they are written already.

        `footer`: JSON that `read_footer` gives back, beside the statistics.
        """
        self._filesystem, self._path = open_filesystem(path)
        self._rejects = None if rejects is None else open_filesystem(rejects)[1]
        self._scorers = tuple(scorers)
        self._schema = part_schema(self._scorers)
        self._footer = dict(footer)
        self.stats = Stats(scorers={name: ScorerStats() for name in self._scorers})
        self._digest = hashlib.blake2b(digest_size=16)
        self._rejected: list[Rejected] = []
        self._rows: list[tuple[str, Sequence[str], Mapping[str, Scores], str]] = []
        self._buffered = 0
        if is_local(self._filesystem):
            self._scratch = _scratch_for(self._path)
        else:
            # An object store has no rename: the part is finished on local disk and uploaded with one PUT.
            handle, name = tempfile.mkstemp(prefix="phf-", suffix=".parquet")
            os.close(handle)
            self._scratch = Path(name)
        self._writer = pq.ParquetWriter(self._scratch, self._schema, compression="zstd")

    def add(self, document_id: str, texts: Sequence[str], *, scores: Mapping[str, Scores], meta: str) -> None:
        """One document; `scores` has an entry for each scorer."""
        characters = sum(map(len, texts))
        self.stats.documents += 1
        self.stats.segments += len(texts)
        self.stats.characters += characters
        self._rows.append((document_id, texts, scores, meta))
        self._buffered += characters
        # Short documents: statistics of few documents at a time would cost more than scoring them.
        if self._buffered >= _FLUSH_CHARACTERS or len(self._rows) >= _FLUSH_DOCUMENTS:
            self._flush()

    def reject(self, rejected: Rejected) -> None:
        self.stats.rejected[rejected.reason] += 1
        self._rejected.append(rejected)

    def commit(self) -> Stats:
        """Publish the part. Done twice, or by a worker whose driver is gone, it leaves the same part."""
        self._flush()
        footer = {**self._footer, "digest": self._digest.hexdigest(), "stats": self.stats.to_json()}
        self._writer.add_key_value_metadata({_FOOTER: json.dumps(footer, separators=(",", ":")).encode()})
        self._writer.close()
        self._commit_rejected()
        if is_local(self._filesystem):
            _rename(self._scratch, Path(self._path))
        else:
            self._filesystem.put_file(str(self._scratch), self._path)
            self._scratch.unlink()
        return self.stats

    def abandon(self) -> None:
        """Forget the part; harmless after `commit`."""
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
        """Before the part itself: where there is a part, its rejects are complete."""
        if self._rejects is None:
            assert not self._rejected, self._path
            return
        if not self._rejected:
            # What a try before this one could not read, and this one could.
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
        write_file(self._filesystem, self._rejects, buffer.getvalue().to_pybytes())


def read_footer(path: str) -> dict[str, Any] | None:
    """What the writer of a part noted in it; None for a file that is not one of our parts, or is torn."""
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as file:
        try:
            metadata = pq.read_metadata(file).metadata or {}
        except pa.ArrowInvalid:
            return None
    return json.loads(metadata[_FOOTER]) if _FOOTER in metadata else None


def read_footers(paths: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Footers in the order of the paths, 16 at a time: on an object store each takes a round trip."""
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(read_footer, paths)


def finish(
    directory: str,
    *,
    shards: Sequence[str],
    scorers: Sequence[ScorerIdentity],
    segmenter: str,
    config: Mapping[str, Any],
    input_fingerprint: str,
) -> Manifest:
    """Merge the parts' footers into the manifest, write the data card, and `_SUCCESS` last.

    `shards`: what the footer of each part says in `shard`. Raises IncompleteError where a part is another's or torn.
    """
    filesystem, root = open_filesystem(directory)
    parts = [posixpath.join(root, part_name(shard)) for shard in range(len(shards))]
    stats = Stats(scorers={scorer.name: ScorerStats() for scorer in scorers})
    digest = hashlib.blake2b(digest_size=16)
    footers = read_footers([full_name(filesystem, part) for part in parts])
    for path, shard, footer in zip(parts, shards, footers, strict=True):
        if footer is None or footer["shard"] != shard:
            raise IncompleteError(f"{path} is of another job or damaged; run the same command again to write it anew")
        stats.merge(Stats.from_json(footer["stats"]))
        digest.update(footer["digest"].encode())
    manifest = Manifest(
        scorers=tuple(scorer.to_json() for scorer in scorers),
        segmenter=segmenter,
        stats=stats,
        fingerprint=digest.hexdigest(),
        config=config,
        config_fingerprint=fingerprint(config),
        input_fingerprint=input_fingerprint,
        num_parts=len(parts),
    )
    content = json.dumps(manifest.to_json(), indent=2, ensure_ascii=True) + "\n"
    write_file(filesystem, posixpath.join(root, MANIFEST), content.encode())
    write_file(filesystem, posixpath.join(root, CARD), data_card(manifest).encode())
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm(posixpath.join(root, TEMPORARY), recursive=True)
    filesystem.touch(posixpath.join(root, SUCCESS))
    return manifest


def data_card(manifest: Manifest) -> str:
    """README.md of a corpus; its front matter keeps `datasets.load_dataset` from reading rejected/ as data."""
    stats = manifest.stats
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: part-*.parquet",
        "---",
        "",
        "# Scored corpus",
        "",
        f"{stats.documents:,} documents, {stats.segments:,} segments ({manifest.segmenter}), "
        f"{stats.characters:,} characters; {stats.rejected.total():,} records rejected.",
        "",
        "Higher scores are worse. A segment that could not be scored has a null score and a reason.",
        "",
        "| scorer | unit | mean over segments | median | failed segments | truncated segments |",
        "|---|---|---|---|---|---|",
    ]
    for identity in manifest.scorers:
        scorer = stats.scorers[identity["name"]]
        histogram = scorer.segment_histogram
        median = f"{histogram.quantile(0.5):.6g}" if histogram.count else "-"
        mean = "-" if histogram.mean is None else f"{histogram.mean:.6g}"
        lines.append(
            f"| {identity['name']} | {identity['unit']} | {mean} | {median} | {scorer.failed.total():,} "
            f"| {scorer.truncated:,} |"
        )
    lines += [
        "",
        "| column | content |",
        "|---|---|",
        "| id | hash of source path, record and content |",
        "| texts | segments; joined they are the document |",
        "| scores, errors | one of each per segment, of the first scorer |",
        "| avg_score | mean of the scores that are not null |",
        "| num_sents | number of segments |",
        "| meta | JSON: where the document came from |",
        "| scores__NAME, errors__NAME, avg_score__NAME | the same of further scorers |",
        "",
        f"Fingerprint `{manifest.fingerprint}`. Versions, settings and distributions: manifest.json.",
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------ reading


_KEYS = {MANIFEST: {"scorers", "segmenter"}, PLAN: {"identities", "shards"}}
"""Some that only ours have."""


def is_scored_corpus(path: str) -> bool:
    """Whether this folder was written by jobs.score_corpus, finished or not."""
    filesystem, root = open_filesystem(path)
    with store_errors(path):
        return any(has_ours(filesystem, root, name) for name in _KEYS)


def has_ours(filesystem: fsspec.AbstractFileSystem, root: str, name: str) -> bool:
    """Whether the manifest or plan in this folder is there and ours: others use such names too.

    One that is empty, no JSON or not to be read may be ours and damaged: parts beside it tell.
    """
    file = posixpath.join(root, name)
    if not filesystem.exists(file):
        return False
    try:
        values = json.loads(filesystem.cat_file(file))
    except (ValueError, RecursionError, PermissionError, IsADirectoryError):
        values = None
    if not values:
        return bool(_parts_in(filesystem, root))
    return isinstance(values, dict) and values.keys() >= _KEYS[name]


def hub_url(path: str) -> str | None:
    """`hf://datasets/<id>` where `path` is the id of a data set on the Hugging Face hub, not a local path."""
    parts = path.split("/")
    if "://" in path or is_glob(path) or len(parts) != 2 or not all(parts) or "." in parts[0] or Path(path).exists():
        return None
    return f"hf://datasets/{path}"


def open_source(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """As `open_filesystem`, also for the id of a data set on the hub."""
    hub = hub_url(path)
    if hub is None:
        return open_filesystem(path)
    try:
        filesystem, inner = open_filesystem(hub)
        filesystem.isdir(inner)
    except Exception as error:  # noqa: BLE001  whatever the network library raises
        raise ConfigError(
            f"{path} does not exist here, and the hub could not be asked for a data set of that name "
            f"({type(error).__name__}: {error}); give a folder, a file, a quoted glob, a URL or a hub id"
        ) from None
    return filesystem, inner


def list_parts(path: str) -> list[str]:
    """Files of a scored corpus in their order, each to be read with `read_part`.

    `path` is a folder that jobs.score_corpus wrote, or any folder, file, glob, URL or hub id of a data set with the
    columns `texts` and `scores` (Parquet, or Arrow as `datasets` saves it).
    """
    with store_errors(path):
        filesystem, root = open_source(path)
        return [full_name(filesystem, part) for part in _list_parts(path, filesystem, root)]


def _list_parts(path: str, filesystem: fsspec.AbstractFileSystem, root: str) -> Sequence[str]:
    if filesystem.isfile(root):
        return [root]
    if filesystem.isdir(root):
        if not filesystem.exists(posixpath.join(root, SUCCESS)) and has_ours(filesystem, root, PLAN):
            raise DataError(f"{path} is not finished (it has no {SUCCESS}); run its jobs.score_corpus command again")
        parts = _parts_in(filesystem, root)
        _check_number(filesystem, root, parts)
        parts = parts or data_files(list_files(filesystem, root, enters=_may_hold_data), root)
    else:
        parts = sorted(match_files(filesystem, root))
    if not parts:
        raise DataError(
            f"{path} holds no scored corpus (no .parquet or .arrow files); give the --output of a "
            "jobs.score_corpus, or a data set with columns texts and scores"
        )
    return parts


def _check_number(filesystem: fsspec.AbstractFileSystem, root: str, parts: Sequence[str]) -> None:
    """Parts that were added or taken away by hand: statistics and thresholds of the manifest would be of other data."""
    file = posixpath.join(root, MANIFEST)
    if not filesystem.exists(posixpath.join(root, SUCCESS)) or not filesystem.exists(file):
        return
    try:
        expected = json.loads(filesystem.cat_file(file))["num_parts"]
    except (ValueError, KeyError, TypeError):
        return  # `read_manifest` says what is wrong with it.
    if expected != len(parts):
        raise DataError(
            f"{root} has {len(parts)} parts, its {MANIFEST} says {expected}; remove {SUCCESS} and run its "
            "jobs.score_corpus command again: it removes parts that are not its own and writes those that are missing"
        )


def _parts_in(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """Committed parts. By number, not by name: part-100000 comes after part-99999."""
    if not filesystem.exists(root):
        return []
    names = [posixpath.basename(str(name)) for name in filesystem.ls(root, detail=False)]
    found = filter(is_part, names)
    return [posixpath.join(root, name) for name in sorted(found, key=lambda name: (len(name), name))]


def data_files(files: Iterable[str], root: str) -> list[str]:
    visible = [
        file
        for file in sorted(files)
        if file.endswith((".parquet", ".arrow"))
        and all(_may_hold_data(part) for part in posixpath.relpath(file, root).split("/"))
    ]
    # Of a data set in splits, the one to train on.
    return [file for file in visible if "train" in posixpath.relpath(file, root)] or visible


def _may_hold_data(path: str) -> bool:
    name = posixpath.basename(path)
    return not name.startswith((".", "cache-")) and name not in (REJECTED, TEMPORARY)


def read_corpus(path: str) -> Iterator[ScoredDocument]:
    """All documents of a corpus, by part and then by row. Memory: a few hundred documents."""
    for part in list_parts(path):
        yield from read_part(part)


def read_part(path: str) -> Iterator[ScoredDocument]:
    """Documents of one file of `list_parts`, in order."""
    for row, record in enumerate(read_rows(path)):
        yield scored_document(record, source=posixpath.basename(path), row=row)


def scored_document(record: Mapping[str, Any], *, source: str, row: int) -> ScoredDocument:
    """A row of ours or of the original's data sets (`meta` a struct or absent, no id, no errors)."""
    texts = record.get("texts")
    scores = record.get("scores")
    if texts is None or scores is None:
        raise DataError(
            f"{source}, row {row}: no texts or no scores (columns: {', '.join(record)}); "
            "a scored corpus has both, see jobs.score_corpus"
        )
    if None in texts:
        raise DataError(f"{source}, row {row}: segment {texts.index(None)} of texts is null; segments must be strings")
    values = [score if score is not None and math.isfinite(score) else None for score in scores]
    errors = record.get("errors")
    if errors is None:
        errors = [None if value is not None else "unknown: the data set has no score here" for value in values]
    return ScoredDocument(
        id=id_of(record) or document_id(source, row, "".join(texts)),
        texts=tuple(texts),
        scores=tuple(values),
        errors=tuple(errors),
        meta=meta_text(record),
    )


def id_of(record: Mapping[str, Any]) -> str:
    """Empty where it has none."""
    identifier = record.get("id")
    return "" if identifier is None else str(identifier)


def meta_text(record: Mapping[str, Any]) -> str:
    meta = record.get("meta")
    return meta if isinstance(meta, str) else json.dumps(meta or {}, ensure_ascii=True, default=str)


def read_rows(
    path: str, *, columns: Sequence[str] | None = None, begin: int = 0, end: int | None = None
) -> Iterator[dict[str, Any]]:
    """Rows [begin, end) of a Parquet or Arrow file. Row groups outside are not read."""
    for batch in read_batches(path, columns=columns, begin=begin, end=end):
        yield from batch.to_pylist()


def read_batches(path: str, *, columns: Sequence[str] | None, begin: int, end: int | None) -> Iterator[pa.RecordBatch]:
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as file:
        skip = begin
        if path.endswith(".arrow"):
            source = pa.memory_map(inner) if is_local(filesystem) else file
            reader: Iterable[pa.RecordBatch] = pa.ipc.open_stream(source)
        else:
            parquet = pq.ParquetFile(file)
            groups, skip = _groups_from(parquet.metadata, begin)
            wanted = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
            reader = parquet.iter_batches(
                batch_size=rows_per_batch(parquet.metadata), row_groups=groups, columns=wanted
            )
        left = None if end is None else end - begin
        for batch in reader:
            if skip >= len(batch):
                skip -= len(batch)
                continue
            rows = batch.slice(skip, left)
            skip = 0
            yield rows
            if left is not None:
                left -= len(rows)
                if left <= 0:
                    return


def _groups_from(metadata: pq.FileMetaData, begin: int) -> tuple[list[int], int]:
    """Row groups from the one that holds row `begin`, and how many of its rows come before that row."""
    first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if begin < first + rows:
            return list(range(group, metadata.num_row_groups)), begin - first
        first += rows
    return [], 0


def rows_per_batch(metadata: pq.FileMetaData) -> int:
    """About 4 MB of rows, so that long documents do not pile up."""
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    per_row = size / max(1, metadata.num_rows)
    return int(min(_READ_ROWS, max(1, _FLUSH_CHARACTERS // max(1.0, per_row))))


def read_manifest(path: str) -> Manifest:
    """What is known of a corpus. A data set without a manifest is read through once for its statistics."""
    filesystem, root = open_source(path)
    file = posixpath.join(root, MANIFEST)
    with store_errors(path):
        has_manifest = filesystem.isdir(root) and has_ours(filesystem, root, MANIFEST)
    if not has_manifest:
        return _scan(path)
    list_parts(path)
    try:
        with store_errors(path):
            content = filesystem.cat_file(file)
        return Manifest.from_json(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}/{MANIFEST} is not a manifest of a scored corpus: {error!r}; score it again") from None


def _scan(path: str) -> Manifest:
    parts = list_parts(path)
    log.info("%s has no %s: reading its %d files for statistics", path, MANIFEST, len(parts))
    stats = Stats(scorers={"scores": ScorerStats()})
    digest = hashlib.blake2b(digest_size=16)
    for document in (document for part in parts for document in read_part(part)):
        stats.documents += 1
        stats.segments += len(document.texts)
        stats.characters += sum(map(len, document.texts))
        stats.scorers["scores"].add([(document.scores, document.errors)])
        digest.update(f"{document.id} {[len(text) for text in document.texts]} {document.scores}".encode())
    return Manifest(scorers=(), segmenter="unknown", stats=stats, fingerprint=digest.hexdigest(), num_parts=len(parts))
