"""Packs few groups in this process: starting Ray, and tokenizers in its workers, would take longer than the packing."""

import logging
from collections.abc import Callable, Iterator, Sequence

from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.build import GroupBuilder, build_here
from phf_ray.blocks.plan import BlockPlan, Group

log = logging.getLogger(__name__)

GROUPS_HERE = 2
"""Of some 2 M tokens each, which take seconds: a second core could at most halve them, and Ray's start takes longer."""


def few_here(elsewhere: Callable[[], GroupBuilder]) -> GroupBuilder:
    """Return a builder of a few groups in this process, and of more of them with the builder that `elsewhere` returns.

    `elsewhere` is called only then, and may start Ray.
    """

    def build(plan: BlockPlan, groups: Sequence[Group], *, tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
        if len(groups) > GROUPS_HERE:
            return elsewhere()(plan, groups, tokenizer=tokenizer)
        if groups:
            log.info(
                "packing in this process, which takes less time than starting Ray; RAY_ADDRESS=local, or the address "
                "of a cluster, has it on Ray"
            )
        return build_here(plan, groups, tokenizer=tokenizer)

    return build
