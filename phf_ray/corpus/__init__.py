"""Corpora: find, cut and read input, split it into segments, and store a scored corpus in a folder.

In: folders, files, URLs, hub ids. Out: documents, one by one; shards of work; committed parts with a manifest.
`find.py`, `cut.py` and `read.py` read input; `plan.py`, `output.py` and `writer.py` write a corpus; `reader.py` reads a
written one. This room knows no scorer. Open `layout.py` first: it names every file of a scored corpus.
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
