"""Token blocks: scored documents become training sequences of fixed length, on disk, in an order fixed by the seed.

In: scored corpora, a tokenizer, the configuration. Out: a folder of shards with a manifest, read by position.
`packing.py` turns documents into blocks. `build.py` does that for whole corpora, and `on_ray.py` on a cluster.
`order.py` and `reader.py` give training its blocks. Open `packing.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "BlockManifest": "manifest",
    "BlockOrder": "order",
    "BlockReader": "reader",
    "ConditionalTraining": "settings",
    "PackingConfig": "settings",
    "PackingStats": "stats",
    "load_tokenizer": "tokenizer",
    "pack": "packing",
    "read_block_manifest": "manifest",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
