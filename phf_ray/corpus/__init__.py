"""Corpora: finding, cutting and reading input; segments; and the folder that a scored corpus is stored in.

In: folders, files, URLs, hub ids. Out: documents, one by one; shards of work; committed parts with a manifest.
`find.py`, `cut.py` and `read.py` are the way in; `plan.py`, `output.py` and `writer.py` the way out; `reader.py` reads
what was written. No scorer is known here. Open `layout.py` first: it names every file of a scored corpus.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "CorpusManifest": "manifest",
    "build_segmenter": "segments",
    "read_corpus": "reader",
    "read_corpus_manifest": "reader",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
