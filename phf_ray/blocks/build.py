"""Builds missing token blocks, group by group."""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.group import build_group
from phf_ray.blocks.input_budget import InputBudget
from phf_ray.blocks.manifest import MANIFEST, SUCCESS, read_block_manifest
from phf_ray.blocks.plan import BlockPlan, Group, exists_in, names_in, plan_blocks, write_in
from phf_ray.blocks.scorer_check import warn_of_other_scorers
from phf_ray.blocks.shards import group_name
from phf_ray.blocks.summary import remedies, report_blocks, row_settings, summarize_blocks
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config
from phf_ray.errors import DataError

log = logging.getLogger(__name__)


class GroupBuilder(Protocol):
    def __call__(
        self, plan: BlockPlan, groups: Sequence[Group], *, tokenizer: PreTrainedTokenizerFast
    ) -> Iterator[int]:
        """Build these groups, and yield the number of each when it is finished."""
        ...


def build_here(plan: BlockPlan, groups: Sequence[Group], *, tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    """Build one group after the other in this process. This function is a `GroupBuilder`."""
    for group in groups:
        yield build_group(plan, group, tokenizer=tokenizer)


def ensure_blocks(config: Config, *, corpora: Sequence[str], output_root: str, builder: GroupBuilder) -> BlockPlan:
    """Build missing blocks of these corpora below `output_root`. Return their plan, whose `root` is their folder.

    `builder` decides where they are built: `build_here`, or `build_groups` of `on_ray`.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    plan = plan_blocks(config, corpora=corpora, tokenizer=tokenizer, output_root=output_root, remembers=True)
    warn_of_other_scorers(config, plan.corpora)
    build_blocks(plan, tokenizer=tokenizer, builder=builder)
    return plan


def build_blocks(plan: BlockPlan, *, tokenizer: PreTrainedTokenizerFast, builder: GroupBuilder) -> str:
    """Build the missing groups of the plan, and return its folder.

    If no document is left to pack, raises DataError and leaves nothing that looks finished. Raises IncompleteError if
    too many records of a data set without scores can't be read.
    """
    if exists_in(plan, SUCCESS):
        log.info("token blocks already exist: %s", plan.root)
        _renew_sources(plan)
        return plan.root
    there = names_in(plan)
    missing = [group for group in plan.groups if group_name(group.number) not in there]
    budget = InputBudget(plan)
    budget.add(group.number for group in plan.groups if group_name(group.number) in there)
    log.info("packing %d of %d groups into %s", len(missing), len(plan.groups), plan.root)
    for done, number in enumerate(builder(plan, missing, tokenizer=tokenizer), start=1):
        log.info("packed %d of %d groups", done, len(missing))
        budget.add([number])
        budget.judge(final=False)
    budget.judge(final=True)
    manifest = summarize_blocks(plan, read=budget.read)
    if manifest.num_blocks == 0:
        unread = {one.name: one.unscored.rejected for one in manifest.corpora if one.unscored is not None}
        raise DataError(
            f"no document of {', '.join(one.name for one in plan.corpora)} is left to pack (documents: "
            f"{json.dumps(manifest.documents)}{f', rejected records: {json.dumps(unread)}' if unread else ''}); change "
            "dataset.filter_threshold or dataset.held_out_fraction, or "
            + ("give other text" if unread else "score the corpus again")
            if plan.examples is None
            else f"no row of {', '.join(one.name for one in plan.corpora)} is left to learn from (rows: "
            f"{json.dumps(manifest.documents)}); {row_settings(plan.examples, manifest)}"
            + "".join(f"; {reason}: {remedy}" for reason, remedy in remedies(manifest))
        )
    report_blocks(manifest)
    write_in(plan, MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    write_in(plan, SUCCESS, b"")
    return plan.root


def _renew_sources(plan: BlockPlan) -> None:
    """Correct what finished blocks say of their sources: a licence can be stated after they were built."""
    manifest = read_block_manifest(plan.root)
    corpora = tuple(
        old.model_copy(update={"sources": new.sources}) for old, new in zip(manifest.corpora, plan.corpora, strict=True)
    )
    if corpora != manifest.corpora:
        renewed = manifest.model_copy(update={"corpora": corpora})
        write_in(plan, MANIFEST, (renewed.model_dump_json(indent=1) + "\n").encode())
