"""Feedback: examples (a prompt and an answer) and comparisons (a prompt, two answers, which is better), on disk.

In: published data sets, as they are. Out: a feedback corpus in a folder: parts, a manifest, a data card. `rows.py` says
what an example and a comparison are, `formats/` reads the published formats, `turn.py` makes examples of comparisons,
`job.py` writes a corpus, `reader.py` reads one. `on_ray.py` runs the same work on a cluster. Open `layout.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "Comparison": "rows",
    "Example": "rows",
    "FeedbackManifest": "manifest",
    "is_feedback_corpus": "layout",
    "list_feedback_parts": "reader",
    "read_feedback": "reader",
    "read_feedback_manifest": "reader",
    "read_feedback_part": "reader",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
