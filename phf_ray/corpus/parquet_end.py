"""Reads what stands at the end of a Parquet file: schema, row groups, and what its writer added."""

import contextlib

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from fsspec.implementations.arrow import ArrowFSWrapper

from phf_ray.storage.files import open_filesystem

_FORMAT = pyarrow.dataset.ParquetFileFormat()


def parquet_metadata(name: str, *, size: int | None = None) -> pq.FileMetaData:
    """Return the metadata of a file. `size`: its bytes, if a listing has told them.

    With them, Arrow's own stores are asked once and not twice. Raises pa.ArrowInvalid if the file is torn.
    """
    filesystem, path = open_filesystem(name)
    if size and isinstance(filesystem, ArrowFSWrapper):
        # If it has another size by now, or is gone, the other way says so.
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            return _FORMAT.make_fragment(path, filesystem=filesystem.fs, file_size=size).metadata
    with filesystem.open(path, "rb") as stream:
        return pq.read_metadata(stream)
