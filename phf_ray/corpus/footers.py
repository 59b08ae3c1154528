"""The footer of a part: everything that the part contributes to the manifest.

The manifest is a merge of footers, so nothing else has to survive a crash, and memory does not grow with the corpus.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.storage.files import open_filesystem

FOOTER_KEY = b"phf_ray"


def read_footer(path: str) -> dict[str, Any] | None:
    """Return the footer of a part. None if the file is torn or is not a part of a phf-ray corpus."""
    filesystem, inner = open_filesystem(path)
    with filesystem.open(inner, "rb") as file:
        try:
            metadata = pq.read_metadata(file).metadata or {}
        except pa.ArrowInvalid:
            return None
    return json.loads(metadata[FOOTER_KEY]) if FOOTER_KEY in metadata else None


def read_footers(paths: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the footers in the order of the paths. Reads 16 at a time: on an object store each takes a round trip."""
    with ThreadPoolExecutor(16) as pool:
        yield from pool.map(read_footer, paths)
