"""Reads one shard: first for the keys of its records, then to write its part. Both run in any process."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.layout import KEYS, write_corpus_file
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.part_file import PartFile
from phf_ray.corpus.read import read_rows_of
from phf_ray.feedback.formats.table import FORMATS
from phf_ray.feedback.join import joined
from phf_ray.feedback.layout import FEEDBACK_KEYS, RowForm
from phf_ray.feedback.manifest import FeedbackStats
from phf_ray.feedback.prepare import Prepared, RowSettings, prepare_record
from phf_ray.feedback.rows import FeedbackRow
from phf_ray.records import Rejected
from phf_ray.storage.files import open_filesystem

_FLUSH_ROWS = 1024
_FLUSH_CHARACTERS = 4 << 20


def keys_file(output: CorpusFolder, row: Mapping[str, Any]) -> str:
    """Return the file of a shard's keys. Its name has the digest, so keys of another plan are never taken for these."""
    return output.name(KEYS, f"{row['shard']:05d}-{row['digest'][:16]}")


def store_keys(row: Mapping[str, Any]) -> int:
    """Store the keys of a shard's records, and return the shard. `row`: see `job.shard_rows`."""
    output = CorpusFolder(row["output"], keys=FEEDBACK_KEYS)
    file = keys_file(output, row)
    filesystem, inner = open_filesystem(file)
    if not filesystem.exists(inner):
        keys = b"".join(one.key for one in _prepared(row) if isinstance(one, Prepared))
        write_corpus_file(filesystem, inner, keys)
    return int(row["shard"])


def write_part(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write a shard's part, and return its shard and statistics. A part that exists is left as it is.

    `row["repeats"]`: positions, among what has keys, of the duplicates.
    """
    output = CorpusFolder(row["output"], keys=FEEDBACK_KEYS)
    shard = int(row["shard"])
    if (done := output.footer_of(shard, digest=row["digest"])) is not None:
        return {"shard": shard, "stats": json.dumps(done["stats"])}
    form = RowForm(**row["form"])
    part = _FeedbackPart(PartFile(output.part(shard), rejects=output.rejects(shard), schema=form.schema), form)
    repeated = set(row["repeats"])
    position = 0
    try:
        for one in _prepared(row):
            if isinstance(one, Rejected):
                part.reject(one)
                continue
            if position in repeated:
                part.reject(_rejected(one.rows[0], "duplicate", "an earlier record has the same content"))
            elif (found := RowForm.of(one.rows[0])) != form:
                part.reject(_rejected(one.rows[0], "other_form", f"it makes {found}; the others make {form}"))
            else:
                for made in one.rows:
                    part.add(made)
            position += 1
        stats = part.commit(row["digest"])
    finally:
        part.file.abandon()
    return {"shard": shard, "stats": json.dumps(stats.to_json())}


class _FeedbackPart:
    """Buffers rows for a part, counts them, and hashes their ids."""

    def __init__(self, file: PartFile, form: RowForm):
        self.file = file
        self._form = form
        self._stats = FeedbackStats()
        self._digest = hashlib.blake2b(digest_size=16)
        self._rows: list[FeedbackRow] = []
        self._flushed_characters = 0

    def add(self, row: FeedbackRow) -> None:
        self._stats.add(row)
        self._digest.update(row.id.encode())
        self._rows.append(row)
        total = self._stats.prompt_characters + self._stats.answer_characters
        if len(self._rows) >= _FLUSH_ROWS or total - self._flushed_characters >= _FLUSH_CHARACTERS:
            self._flush()
            self._flushed_characters = total

    def reject(self, rejected: Rejected) -> None:
        self._stats.reject(rejected)
        self.file.reject(rejected)

    def commit(self, digest: str) -> FeedbackStats:
        self._flush()
        self.file.commit({"shard": digest, "digest": self._digest.hexdigest(), "stats": self._stats.to_json()})
        return self._stats

    def _flush(self) -> None:
        if self._rows:
            self.file.write(self._form.columns(self._rows))
            self._rows = []


def _prepared(row: Mapping[str, Any]) -> Iterator[Prepared | Rejected]:
    settings = RowSettings.from_json(row["settings"])
    for entry in json.loads(row["pieces"]):
        file = InputFile(*entry["file"])
        for index, record in joined(read_rows_of(file, Piece.from_json(entry["piece"])), FORMATS[settings.format]):
            if isinstance(record, Rejected):
                yield record
            else:
                yield from prepare_record(record, source=file.source, index=index, settings=settings)


def _rejected(row: FeedbackRow, reason: str, detail: str) -> Rejected:
    origin = json.loads(row.meta)
    return Rejected(origin["source"], origin["record"], reason, detail)
