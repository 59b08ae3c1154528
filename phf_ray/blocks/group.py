"""Builds the blocks of one group of corpus parts."""

import json
from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.held_out import encode_documents, held_out_name, is_held_out
from phf_ray.blocks.packing import pack
from phf_ray.blocks.plan import BlockPlan, Group, write_in
from phf_ray.blocks.shards import blocks_per_shard, encode_shard, group_name, shard_name
from phf_ray.blocks.stats import PackingStats
from phf_ray.corpus.reader import read_part
from phf_ray.records import ScoredDocument, TokenBlock, TokenKind


def build_group(plan: BlockPlan, group: Group, *, tokenizer: PreTrainedTokenizerFast) -> int:
    """Write the shards of a group, its held-out documents and, last, its description. Return its number.

    Memory: one shard, the held-out documents of the group, and a million characters of text.
    """
    stats = PackingStats()
    held_out: list[ScoredDocument] = []
    documents = _to_pack(group, fraction=plan.held_out_fraction, held_out=held_out, stats=stats)
    packed = pack(documents, tokenizer, sequence_length=plan.sequence_length, config=plan.packing, stats=stats)
    shards = []
    for index, shard_blocks in enumerate(_chunks(packed, size=blocks_per_shard(plan.sequence_length))):
        file = shard_name(group.number, index)
        write_in(plan, file, encode_shard(shard_blocks))
        shards.append({"file": file, "num_blocks": len(shard_blocks), "num_content_tokens": _num_content(shard_blocks)})
    if plan.held_out_fraction > 0:
        write_in(plan, held_out_name(group.number), encode_documents(held_out))
    contribution = {"shards": shards, "stats": stats.to_json()}
    write_in(plan, group_name(group.number), json.dumps(contribution).encode())
    return group.number


def _to_pack(
    group: Group, *, fraction: float, held_out: list[ScoredDocument], stats: PackingStats
) -> Iterator[ScoredDocument]:
    for part in group.parts:
        for document in read_part(part):
            if is_held_out(document.id, fraction):
                held_out.append(document)
                stats.drop(document, reason="held_out")
            else:
                yield document


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
    return sum(
        int(((block.token_kinds == TokenKind.CONTENT) | (block.token_kinds == TokenKind.UNSCORED)).sum())
        for block in shard_blocks
    )
