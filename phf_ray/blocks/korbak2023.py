"""Packing as the original code does it, for `compat: korbak2023`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from phf_ray.blocks.documents import kept_documents, kinds_of_segments
from phf_ray.blocks.segment_tokens import control_id
from phf_ray.blocks.settings import PackingConfig
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.structure import Structure
from phf_ray.blocks.tokens import TokenRun
from phf_ray.records import ScoredDocument, TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Segment(NamedTuple):
    """A segment's text after the strings of its structural tokens, its score, and the kind of its tokens."""

    text: str
    score: float | None
    kind: int


# The original's buffer: num_of_sequences = 1024 sequences of chars_per_token = 3.6 characters per token.
_KORBAK2023_BUFFER_CHARS_PER_POSITION = 3.6 * 1024


def korbak2023_buffers(
    documents: Iterable[ScoredDocument],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    length: int,
    config: PackingConfig,
    stats: PackingStats,
) -> Iterator[list[Segment]]:
    """Yield the original's buffers: segments, each after the strings of its structural tokens."""
    buffer: list[Segment] = []
    num_chars = 0
    for document in kept_documents(documents, config=config, stats=stats):
        stats.keep(document)
        kinds = kinds_of_segments(document).tolist()
        for segment, (text, score) in enumerate(zip(document.texts, document.scores, strict=True)):
            separator = str(tokenizer.eos_token) if segment == 0 else ""
            prefixed = separator + _korbak2023_prefix(document, segment, config=config, stats=stats) + text
            buffer.append(Segment(prefixed, score, kinds[segment]))
            num_chars += len(prefixed)
        if num_chars >= length * _KORBAK2023_BUFFER_CHARS_PER_POSITION:
            yield buffer
            buffer, num_chars = [], 0
    if buffer:
        yield buffer


def _korbak2023_prefix(document: ScoredDocument, segment: int, *, config: PackingConfig, stats: PackingStats) -> str:
    # These ids only tell the tokens apart: their strings are tokenized together with the text.
    numbered = Structure(end_of_text_id=-1, pad_id=-1, aligned_id=1, misaligned_id=0)
    control = control_id(document, segment, structure=numbered, config=config, stats=stats)
    if control is None or config.conditional is None:
        return ""
    return config.conditional.aligned_token if control == 1 else config.conditional.misaligned_token


def korbak2023_tokens(
    buffer: Sequence[Segment], tokenizer: "PreTrainedTokenizerFast", *, structure: Structure
) -> list[TokenRun]:
    """Tokenize each segment on its own, and give its score to all of its tokens, structural ones too (A-3)."""
    encoded = tokenizer([segment.text for segment in buffer], truncation=False, verbose=False)["input_ids"]
    parts = []
    for row, (_, score, kind) in zip(encoded, buffer, strict=True):
        ids = np.array(row, np.int32)
        kinds = np.full(len(ids), kind, np.uint8)
        kinds[ids == structure.end_of_text_id] = TokenKind.END_OF_TEXT
        kinds[np.isin(ids, structure.ids()[1:])] = TokenKind.CONTROL
        parts.append(TokenRun(ids, np.full(len(ids), 0.0 if score is None else score, np.float32), kinds))
    return parts
