"""One part of a stored corpus, of whatever rows: written under a temporary name, and whole once it is committed."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.corpus.footers import FOOTER_KEY
from phf_ray.corpus.layout import scratch_for, write_corpus_file
from phf_ray.records import Rejected
from phf_ray.storage.files import is_local, open_filesystem, publish


class PartFile:
    """A Parquet file and the file of the records rejected beside it. Only `commit` adds them to the corpus."""

    def __init__(self, path: str, *, rejects: str | None, schema: pa.Schema):
        """`path`, `rejects`: files for the part and its rejected records. `rejects` is None if those exist already."""
        self._filesystem, self._path = open_filesystem(path)
        self._rejects = None if rejects is None else open_filesystem(rejects)[1]
        self._schema = schema
        self._rejected: list[Rejected] = []
        if is_local(self._filesystem):
            self._scratch = scratch_for(self._path)
        else:
            # An object store has no rename: the part is finished on local disk and uploaded with one PUT.
            handle, name = tempfile.mkstemp(prefix="phf-", suffix=".parquet")
            os.close(handle)
            self._scratch = Path(name)
        self._writer = pq.ParquetWriter(self._scratch, schema, compression="zstd")

    def write(self, columns: Mapping[str, Any]) -> None:
        """Write rows, given as a list for each column. Each call makes a row group."""
        self._writer.write_table(pa.table(dict(columns), schema=self._schema))

    def reject(self, rejected: Rejected) -> None:
        self._rejected.append(rejected)

    def commit(self, footer: Mapping[str, Any]) -> None:
        """Publish the part. A second commit, or one by a worker whose driver is gone, leaves the same part.

        `footer`: JSON that `read_footer` returns.
        """
        self._writer.add_key_value_metadata({FOOTER_KEY: json.dumps(footer, separators=(",", ":")).encode()})
        self._writer.close()
        self._commit_rejected()
        if is_local(self._filesystem):
            publish(self._scratch, Path(self._path))
        else:
            self._filesystem.put_file(str(self._scratch), self._path)
            self._scratch.unlink()

    def abandon(self) -> None:
        """Discard the part. Harmless after `commit`."""
        # On a full disk, closing fails again, because it writes the footer. The first error is the one to show.
        with contextlib.suppress(OSError):
            self._writer.close()
        self._scratch.unlink(missing_ok=True)

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
        write_corpus_file(self._filesystem, self._rejects, encode_rejected(self._rejected))


def encode_rejected(rejected: Sequence[Rejected]) -> bytes:
    """Return a Parquet file that lists the records: source, record, reason, detail."""
    table = pa.table(
        {
            "source": pa.array([entry.source for entry in rejected], pa.string()),
            "record": pa.array([entry.record for entry in rejected], pa.int64()),
            "reason": pa.array([entry.reason for entry in rejected], pa.string()),
            "detail": pa.array([entry.detail for entry in rejected], pa.string()),
        }
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    return buffer.getvalue().to_pybytes()
