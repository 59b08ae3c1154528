"""Packs scored documents into token blocks of fixed length: tokenize, place control tokens, concatenate and cut.

Each document is tokenized once, whole, exactly as its plain text would be; character offsets map scores to tokens. An
end-of-text token goes before each document. A document is cut at the end of a block and continues in the next one; only
the last block of a stream is padded. The price: at most L - 1 padded positions per stream.

Special tokens spelled out in a text stay text: `<|endoftext|>` in a document becomes ordinary tokens, not a separator.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from phf_ray.blocks.documents import average_of_tokens, kept_documents, reason_to_filter
from phf_ray.blocks.korbak2023 import korbak2023_buffers, korbak2023_tokens
from phf_ray.blocks.segment_tokens import owners_of_tokens, with_structure
from phf_ray.blocks.settings import PackingConfig
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.structure import Structure
from phf_ray.blocks.tokenizer import text_only_backend
from phf_ray.blocks.tokens import TokenRun, cut_blocks
from phf_ray.errors import ConfigError
from phf_ray.records import ScoredDocument, TokenBlock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# Documents are tokenized together up to this many characters, so memory does not depend on the corpus.
_BATCH_CHARS = 1_000_000


def pack(
    documents: Iterable[ScoredDocument],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    sequence_length: int,
    config: PackingConfig | None = None,
    stats: PackingStats | None = None,
) -> Iterator[TokenBlock]:
    """Return blocks of `sequence_length` tokens, in document order. Memory does not grow with the number of documents.

    If `stats` is given, it is updated as blocks are yielded. The tokenizer is not changed.

    Raises ConfigError at once if the tokenizer lacks the tokens that the config names.
    """
    config = config or PackingConfig()
    if sequence_length < 2:
        raise ConfigError(f"sequence_length={sequence_length} leaves nothing to predict; use 2 or more")
    structure = Structure.of(tokenizer, config=config)
    stats = PackingStats() if stats is None else stats
    if config.compat == "korbak2023":
        buffers = korbak2023_buffers(documents, tokenizer, length=sequence_length, config=config, stats=stats)
        streams = (korbak2023_tokens(buffer, tokenizer, structure=structure) for buffer in buffers)
        # DIFFERS: phf-ray pads the last block of a stream; the original drops the tail of each buffer of 3.6 x 1024 x L
        # characters, about 0.05% of all tokens, and so cuts a document in two.
        blocks: Iterable[TokenBlock] = chain.from_iterable(
            cut_blocks(stream, length=sequence_length, pad_id=None) for stream in streams
        )
    else:
        tokens = _document_tokens(documents, tokenizer, structure=structure, config=config, stats=stats)
        blocks = cut_blocks(tokens, length=sequence_length, pad_id=structure.pad_id)
    return _counted(blocks, stats)


def _counted(blocks: Iterable[TokenBlock], stats: PackingStats) -> Iterator[TokenBlock]:
    for block in blocks:
        stats.add_block(block)
        yield block


def _document_tokens(
    documents: Iterable[ScoredDocument],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    structure: Structure,
    config: PackingConfig,
    stats: PackingStats,
) -> Iterator[TokenRun]:
    # DIFFERS: phf-ray tokenizes the document whole; the original tokenizes each segment on its own, which turns `.
    # Then` into `.`, ` `, `Then`.
    backend = text_only_backend(tokenizer)
    for batch in _batches(kept_documents(documents, config=config, stats=stats)):
        encodings = backend.encode_batch([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            if not len(ids):
                stats.drop(document, reason="empty")
            elif np.isin(ids, structure.ids()).any():
                # The tokenizer's ordinary vocabulary spells out a special token, and nothing tells it from a real one.
                stats.drop(document, reason="special_token_in_text")
            else:
                owners = owners_of_tokens(encoding, document.texts)
                if config.filter_average == "tokens":
                    reason = reason_to_filter(average_of_tokens(document, owners), config)
                    if reason is not None:
                        stats.drop(document, reason=reason)
                        continue
                stats.keep(document)
                yield with_structure(ids, owners, document=document, structure=structure, config=config, stats=stats)


def _batches(documents: Iterable[ScoredDocument]) -> Iterator[list[ScoredDocument]]:
    batch: list[ScoredDocument] = []
    num_chars = 0
    for document in documents:
        batch.append(document)
        num_chars += sum(map(len, document.texts))
        if num_chars >= _BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch
