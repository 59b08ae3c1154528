"""Scorers take a text and return a score (higher is worse), or None with the reason.

One scorer per file, under the class names of the original code. `base.py` defines a scorer, `build.py` builds one from
its configuration, and `process.py` runs scorers in a child process, which it kills if a text makes a scorer hang.
Importing this package loads nothing heavy. Open `base.py` first, then `pep8.py` as an example.
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
