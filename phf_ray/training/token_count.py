"""Counts the tokens of a training run before its blocks are built."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.example_rows import ExamplePacker
from phf_ray.blocks.held_out import is_held_out
from phf_ray.blocks.manifest import SUCCESS, CorpusTokens, read_block_manifest
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.packing import pack
from phf_ray.blocks.plan import BlockPlan, Group
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.summary import corpus_tokens
from phf_ray.corpus.stored import forget
from phf_ray.storage.files import open_filesystem

# To count tokens, corpora are packed: whole up to this many bytes of Parquet (some 16 M tokens), else only the head.
COUNTED_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Tokens that the training reads: exact, or estimated from a part."""

    mixture: Mixture
    is_exact: bool

    @property
    def num_blocks(self) -> int:
        """Number of blocks in one pass over the data."""
        return sum(one.num_blocks for one in self.mixture.corpora)


def count_tokens(
    plan: BlockPlan, *, tokenizer: PreTrainedTokenizerFast, weights: Sequence[float] | None = None
) -> TokenCount:
    """Read the counts of the blocks if they are built; otherwise pack the corpora in the same way and write nothing."""
    filesystem, success = open_filesystem(f"{plan.root}/{SUCCESS}")
    if filesystem.exists(success):
        return TokenCount(Mixture.of(read_block_manifest(plan.root), weights), is_exact=True)
    # With weights, the count of each corpus matters, so each is counted on its own head.
    parts = [list(plan.groups)]
    if weights is not None:
        parts = [[group for group in plan.groups if group.corpus == place] for place in range(len(plan.corpora))]
    counted = [
        _count_groups(plan, groups, num_bytes=COUNTED_BYTES // len(parts), tokenizer=tokenizer) for groups in parts
    ]
    mixture = Mixture.from_counts([one for one, _ in counted], weights)
    return TokenCount(mixture, is_exact=all(is_exact for _, is_exact in counted))


def _count_groups(
    plan: BlockPlan, groups: Sequence[Group], *, num_bytes: int, tokenizer: PreTrainedTokenizerFast
) -> tuple[CorpusTokens, bool]:
    """Count the first groups up to `num_bytes` of Parquet, estimate the rest by size; return if the count is exact."""
    stats = PackingStats()
    num_counted, counted_bytes, total_bytes = 0, 0, 0
    for group in groups:
        size = sum(part.size for part in group.parts)
        total_bytes += size
        if counted_bytes < num_bytes:
            num_counted, counted_bytes = num_counted + 1, counted_bytes + size
            _count_group(plan, group, tokenizer=tokenizer, stats=stats)
    factor = total_bytes / counted_bytes if counted_bytes else 1.0
    found = corpus_tokens(stats)
    counts = {name: round(count * factor) for name, count in found.model_dump().items() if name.startswith("num_")}
    return found.model_copy(update=counts), num_counted == len(groups)


def _count_group(plan: BlockPlan, group: Group, *, tokenizer: PreTrainedTokenizerFast, stats: PackingStats) -> None:
    examples, parts = plan.examples_of(group), group.parts
    fraction = plan.held_out_fraction
    if examples is not None:
        packer = ExamplePacker(
            examples,
            tokenizer,
            length=plan.sequence_length,
            held_out_fraction=fraction,
            stats=stats,
        )
        for _ in packer.blocks(parts):
            pass
        return
    fraction = fraction if plan.examples is None else 0.0
    documents = (
        document for part in parts for document in part.documents(forget) if not is_held_out(document.id, fraction)
    )
    for _ in pack(documents, tokenizer, sequence_length=plan.sequence_length, config=plan.packing, stats=stats):
        pass
