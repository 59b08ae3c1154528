"""Cuts a text into segments, each of which gets its own score. `"".join(segments)` is always the text."""

import io
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version

from phf_ray.corpus.sentences import SentenceSplitter
from phf_ray.errors import ConfigError

SEGMENTER_VERSIONS = "segmenter versions"
"""Key of a plan: package or rule -> version."""
ORIGINAL_SENTENCES = "original_sentences"
"""What `sentences` are under compat, and in plans from before it knew where Chinese and Japanese sentences end."""
_EAST_ASIAN_ENDS = {"East Asian sentence ends": "1"}


def build_segmenter(name: str) -> Callable[[str], list[str]]:
    """Return the segmenter `sentences`, `original_sentences`, `lines` or `document`. An empty text has no segments."""
    if name not in SEGMENTERS:
        raise ConfigError(f"unknown segmenter {name!r}; choose one of {', '.join(sorted(SEGMENTERS))}")
    return SEGMENTERS[name]()


def segmenter_versions(name: str) -> dict[str, str]:
    """Return package or rule -> version, for all that decide where this segmenter cuts."""
    if name not in ("sentences", ORIGINAL_SENTENCES):
        return {}
    return {"spacy": version("spacy"), **(_EAST_ASIAN_ENDS if name == "sentences" else {})}


def segmenter_of(name: str, versions: Mapping[str, str] | None) -> str:
    """Return the segmenter that cuts as a plan began, which names the segmenter `name` and these versions."""
    is_original = name == "sentences" and not _EAST_ASIAN_ENDS.keys() <= (versions or {}).keys()
    return ORIGINAL_SENTENCES if is_original else name


def split_lines(text: str) -> list[str]:
    """Split into lines with ends. Only `\\n` ends a line: `str.splitlines` also cuts at form feeds and U+2028."""
    return io.StringIO(text).readlines()


def whole_document(text: str) -> list[str]:
    return [text] if text else []


SEGMENTERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {
    "sentences": SentenceSplitter,
    ORIGINAL_SENTENCES: partial(SentenceSplitter, east_asian=False),
    "lines": lambda: split_lines,
    "document": lambda: whole_document,
}
