"""The footer of a part: everything that the part contributes to the manifest.

The manifest is a merge of footers, so nothing else has to survive a crash, and memory does not grow with the corpus.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from phf_ray.corpus.parquet_end import parquet_metadata
from phf_ray.storage.at_once import at_once

FOOTER_KEY = b"phf_ray"


def read_footer(path: str, *, size: int | None = None) -> dict[str, Any] | None:
    """Return the footer of a part. None if the file is torn or is not a part of a phf-ray corpus.

    `size`: bytes of the file, if a listing has told them, which saves a round trip.
    """
    try:
        metadata = parquet_metadata(path, size=size).metadata or {}
    except pa.ArrowInvalid:
        return None
    return json.loads(metadata[FOOTER_KEY]) if FOOTER_KEY in metadata else None


def read_footers(parts: Iterable[tuple[str, int]]) -> Iterator[dict[str, Any] | None]:
    """Yield the footers in the order of the parts, each of which is a path and the bytes of its file."""
    return at_once(lambda part: read_footer(part[0], size=part[1]), parts)
