"""Documents that are held out of training and stored next to the blocks."""

import hashlib
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.blocks.manifest import read_block_file, read_block_manifest
from phf_ray.blocks.shards import parquet_bytes
from phf_ray.records import ScoredDocument
from phf_ray.storage.at_once import at_once


def is_held_out(document_id: str, fraction: float) -> bool:
    """Whether the document is held out of training. A larger fraction holds out a superset."""
    digest = hashlib.blake2b(document_id.encode(), digest_size=8, person=b"phf-held-out").digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def read_held_out(root: str) -> Iterator[ScoredDocument]:
    """Yield the held-out documents, in the order of the corpora."""
    manifest = read_block_manifest(root)
    if manifest.held_out_fraction == 0 or manifest.examples is not None:
        return
    files = (f"{root}/{held_out_name(group)}" for group in range(manifest.num_groups))
    for content in at_once(read_block_file, files):
        yield from decode_documents(content)


def has_held_out(root: str) -> bool:
    """Whether anything is held out: documents, or examples."""
    manifest = read_block_manifest(root)
    if manifest.examples is not None:
        return bool(manifest.held_out_shards)
    return next(read_held_out(root), None) is not None


def held_out_name(group: int) -> str:
    return f"held-out-{group:05d}.parquet"


def encode_documents(documents: Sequence[ScoredDocument]) -> bytes:
    strings = pa.list_(pa.string())
    schema = pa.schema(
        [("id", pa.string()), ("texts", strings), ("scores", pa.list_(pa.float64())), ("errors", strings)]
    )
    rows = [{"id": one.id, "texts": one.texts, "scores": one.scores, "errors": one.errors} for one in documents]
    return parquet_bytes(pa.Table.from_pylist(rows, schema=schema), use_dictionary=True)


def decode_documents(content: bytes) -> Iterator[ScoredDocument]:
    for row in pq.read_table(pa.BufferReader(content)).to_pylist():
        yield ScoredDocument(row["id"], tuple(row["texts"]), tuple(row["scores"]), tuple(row["errors"]))
