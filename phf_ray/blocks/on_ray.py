"""Builds groups of token blocks, and compares corpora with evaluation sets, in Ray tasks."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from transformers import PreTrainedTokenizerFast

from phf_ray.blocks.group import build_group
from phf_ray.blocks.plan import BlockPlan, Group
from phf_ray.corpus.on_ray import as_they_finish
from phf_ray.corpus.overlap import Overlap, Sets, overlap_of_part
from phf_ray.corpus.stored import Part


def build_groups(plan: BlockPlan, groups: Sequence[Group], *, tokenizer: PreTrainedTokenizerFast) -> Iterator[int]:
    """Build each group in a Ray task. This function is a `GroupBuilder`. Ray must be running."""
    # Ray ships the tokenizer object, so the tokenizer's folder need not be on storage that all nodes see.
    # A task is told its own group. The others, each with its parts, would have to be unpacked once for every group.
    shared_tokenizer, shared_plan = ray.put(tokenizer), ray.put(replace(plan, groups=(), manifests=()))
    task_body: Any = _build_group_on_one_cpu
    task = ray.remote(num_cpus=1)(task_body)
    return as_they_finish([task.remote(shared_plan, group, tokenizer=shared_tokenizer) for group in groups])


def overlaps_on_ray(parts: Sequence[Part], sets: Sets) -> Iterator[dict[str, Overlap]]:
    """Compare each part in a Ray task. This function is an `OverlapCounter`. Ray must be running."""
    shared = ray.put(dict(sets))
    task_body: Any = overlap_of_part
    task = ray.remote(num_cpus=1)(task_body)
    return as_they_finish([task.remote(part, shared) for part in parts])


def _build_group_on_one_cpu(plan: BlockPlan, group: Group, *, tokenizer: PreTrainedTokenizerFast) -> int:
    # Otherwise the tokenizer's threads would take all of the machine's CPUs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return build_group(plan, group, tokenizer=tokenizer)
