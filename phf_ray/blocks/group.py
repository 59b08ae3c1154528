"""Builds the blocks of one group of corpus parts."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.example_rows import ExamplePacker, ExampleSettings
from phf_ray.blocks.held_out import encode_documents, held_out_name, is_held_out
from phf_ray.blocks.packing import pack
from phf_ray.blocks.plan import BlockPlan, Group, write_in
from phf_ray.blocks.shards import blocks_per_shard, encode_shard, group_name, rejected_name, shard_name
from phf_ray.blocks.stats import PackingStats
from phf_ray.corpus.part_file import encode_rejected
from phf_ray.corpus.stats import CorpusStats
from phf_ray.records import TEXT_KINDS, Rejected, ScoredDocument, TokenBlock


def build_group(plan: BlockPlan, group: Group, *, tokenizer: PreTrainedTokenizerFast) -> int:
    """Write the shards of a group, its held-out documents and, last, its description. Return its number.

    Memory: one shard, the held-out documents and rejected records of the group, and a million characters of text.
    """
    examples = plan.examples_of(group)
    if examples is not None:
        return _build_examples(plan, examples, group, tokenizer=tokenizer)
    # Beside feedback, examples are held out, and `dataset.eval_datasets` measures text.
    fraction = plan.held_out_fraction if plan.examples is None else 0.0
    stats = PackingStats()
    held_out: list[ScoredDocument] = []
    read = _Read()
    documents = _to_pack(read.documents(group), fraction=fraction, held_out=held_out, stats=stats)
    packed = pack(documents, tokenizer, sequence_length=plan.sequence_length, config=plan.packing, stats=stats)
    shards = _write_shards(plan, group, packed)
    if fraction > 0:
        write_in(plan, held_out_name(group.number), encode_documents(held_out))
    if read.rejected:
        write_in(plan, rejected_name(group.number), encode_rejected(read.rejected))
    contribution = {"shards": shards, "stats": stats.to_json(), "read": read.stats.to_json()}
    write_in(plan, group_name(group.number), json.dumps(contribution).encode())
    return group.number


def _write_shards(plan: BlockPlan, group: Group, packed: Iterable[TokenBlock]) -> list[dict[str, Any]]:
    shards = []
    for index, shard_blocks in enumerate(_chunks(packed, size=blocks_per_shard(plan.sequence_length))):
        file = shard_name(group.number, index)
        write_in(plan, file, encode_shard(shard_blocks))
        shards.append({"file": file, "num_blocks": len(shard_blocks), "num_content_tokens": _num_content(shard_blocks)})
    return shards


def _build_examples(
    plan: BlockPlan, settings: ExampleSettings, group: Group, *, tokenizer: PreTrainedTokenizerFast
) -> int:
    stats = PackingStats()
    packer = ExamplePacker(
        settings, tokenizer, length=plan.sequence_length, held_out_fraction=plan.held_out_fraction, stats=stats
    )
    shards = _write_shards(plan, group, packer.blocks(group.parts))
    kept = list(packer.held_out_blocks())
    if kept:
        write_in(plan, held_out_name(group.number), encode_shard(kept))
    contribution = {
        "shards": shards,
        "held_out": [{"file": held_out_name(group.number), "num_blocks": len(kept)}] if kept else [],
        "stats": stats.to_json(),
    }
    write_in(plan, group_name(group.number), json.dumps(contribution).encode())
    return group.number


def _to_pack(
    documents: Iterable[ScoredDocument], *, fraction: float, held_out: list[ScoredDocument], stats: PackingStats
) -> Iterator[ScoredDocument]:
    for document in documents:
        if is_held_out(document.id, fraction):
            held_out.append(document)
            stats.drop(document, reason="held_out")
        else:
            yield document


class _Read:
    """Reads the documents of a group, and keeps the records that can't be read."""

    def __init__(self) -> None:
        self.stats = CorpusStats()
        """Documents, characters, rejected records and losses."""
        self.rejected: list[Rejected] = []

    def documents(self, group: Group) -> Iterator[ScoredDocument]:
        for part in group.parts:
            for document in part.documents(self._reject):
                self.stats.documents += 1
                self.stats.characters += sum(map(len, document.texts))
                yield document

    def _reject(self, record: Rejected) -> None:
        self.stats.reject(record)
        self.rejected.append(record)


def _chunks(items: Iterable[TokenBlock], *, size: int) -> Iterator[list[TokenBlock]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _num_content(shard_blocks: Sequence[TokenBlock]) -> int:
    return sum(int(np.isin(block.token_kinds, TEXT_KINDS).sum()) for block in shard_blocks)
