"""Chooses the held-out documents to measure, and encodes them for the model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from phf_ray.blocks.packing import pack
from phf_ray.blocks.settings import ConditionalTraining, PackingConfig
from phf_ray.records import NEVER_SCORED, ScoredDocument, TokenBlock, TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.held_out import EncodedDocument

# DIFFERS: phf-ray holds out 0.1% of the documents and saves every 65 to 131 million tokens (configs/); the original
# trains on all documents and saves about twice per run.
HELD_OUT_BYTES = 1_000_000
"""Bytes of held-out text to measure. Documents are chosen in the order of their ids, which are hashes."""
# Number of held-out blocks on which the objective itself is measured.
HELD_OUT_BLOCKS = 64


def micro_batch_of(blocks: Sequence[TokenBlock]) -> MicroBatch:
    return MicroBatch(
        torch.from_numpy(np.stack([block.input_ids for block in blocks]).astype(np.int64)),
        torch.from_numpy(np.stack([block.token_scores for block in blocks])),
        torch.from_numpy(np.stack([block.token_kinds for block in blocks])),
        first_block=0,
    )


def stored_packing_config(stored: Mapping[str, Any]) -> PackingConfig:
    """Restore the packing configuration that a block manifest stores."""
    conditional = stored["conditional"]
    restored = None if conditional is None else ConditionalTraining(**conditional)
    return PackingConfig(**{**stored, "conditional": restored})


def choose_held_out(documents: Iterator[ScoredDocument]) -> list[ScoredDocument]:
    """Choose whole documents in the order of their ids, up to HELD_OUT_BYTES, but at least one if there is any."""
    chosen: list[ScoredDocument] = []
    num_bytes = 0
    for document in sorted(documents, key=lambda document: document.id):
        num_bytes += len(document.text.encode())
        if chosen and num_bytes > HELD_OUT_BYTES:
            break
        chosen.append(document)
    return chosen


def are_never_scored(documents: Sequence[ScoredDocument]) -> bool:
    return all(error == NEVER_SCORED for document in documents for error in document.errors)


def encode_held_out(
    documents: Sequence[ScoredDocument], tokenizer: Any, *, control: str | None, per_document: bool
) -> list[EncodedDocument]:
    """Encode each document as an end-of-text token and its text, with `control` before each segment as in training.

    Control tokens are given whatever the scores, cost no bits and count no bytes. So figures with the good token, with
    the bad token and without control tokens measure the same text. Control tokens do show where segments begin.
    """
    conditional = None
    if control is not None:
        conditional = ConditionalTraining(threshold=0.0, aligned_token=control, misaligned_token=control)
    aligned = [
        ScoredDocument(each.id, each.texts, (0.0,) * len(each.texts), (None,) * len(each.texts)) for each in documents
    ]
    packing = PackingConfig(conditional=conditional, per_document=per_document)
    return _encoded(aligned, tokenizer, packing=packing, predicted=(TokenKind.CONTENT,))


def encode_with_own_control(
    documents: Sequence[ScoredDocument], tokenizer: Any, *, packing: PackingConfig
) -> list[EncodedDocument]:
    """Encode each document with the control tokens that its scores give it, which the model predicts as well.

    So what the tokens tell the model has its price. By the chain rule, bits of text and tokens are never fewer than
    those of the text alone, whatever the tokens: they bound what compares with a model without control tokens.
    """
    packing = PackingConfig(conditional=packing.conditional, per_document=packing.per_document, seed=packing.seed)
    return _encoded(documents, tokenizer, packing=packing, predicted=(TokenKind.CONTENT, TokenKind.CONTROL))


def _encoded(
    documents: Sequence[ScoredDocument], tokenizer: Any, *, packing: PackingConfig, predicted: Sequence[TokenKind]
) -> list[EncodedDocument]:
    encoded = []
    for document in documents:
        num_bytes = len(document.text.encode())
        # A token has at least one byte, except a document's first in some tokenizers, so all tokens fit into one block.
        length = num_bytes + len(document.texts) + 3
        for block in pack([document], tokenizer, sequence_length=length, config=packing):
            is_token = block.token_kinds != TokenKind.PAD
            is_predicted = np.isin(block.token_kinds[is_token], predicted)
            encoded.append(EncodedDocument(block.input_ids[is_token], is_predicted, num_bytes))
    return encoded
