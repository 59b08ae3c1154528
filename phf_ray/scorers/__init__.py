"""Scorers: a text in, a number for which higher is worse out, or None with the reason.

One scorer per file, under the class names of the original code; `base.py` says what a scorer is, `build.py` builds one
from its configuration, `process.py` runs scorers in a process that can be killed when a text makes one hang.
Importing this loads nothing heavy. Open `base.py` first, then `pep8.py` as an example.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "SCORERS": "build",
    "SHORT_NAMES": "build",
    "FindsSpans": "base",
    "HasClasses": "base",
    "Scorer": "base",
    "ScorerSettings": "base",
    "build_scorer": "build",
    "scorer_class": "build",
    "scorer_name": "build",
    "scorer_settings": "build",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
