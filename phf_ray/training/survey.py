"""The pass before a step, for objectives that have to know a number of the whole step; see `Objective.survey`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from phf_ray.objectives.base import Objective
from phf_ray.objectives.statistics import Statistics, all_reduce, combine
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import unwrapped


def surveyed(
    model: nn.Module, micro_batches: Sequence[MicroBatch], *, objective: Objective, precision: Literal["bf16", "fp32"]
) -> Sequence[MicroBatch]:
    """Return what the objective reads of the micro-batches, with the numbers of the step among their channels.

    Collective if the objective surveys its steps: every rank passes its share, as many micro-batches as the others.
    Each of the two passes reads only the rows that it needs. For objectives without a survey, the micro-batches are
    returned as they are.
    """
    survey = objective.survey()
    if survey is None:
        return micro_batches
    module = unwrapped(model)
    device = next(module.parameters()).device
    counts: list[Statistics] = []
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for batch in micro_batches:
            part = batch.only(survey.reads(batch.channels)).to(device)
            counts.append(part.through(module, survey).metrics)
    if survey.is_of_step:
        counts = [all_reduce(functools.reduce(combine, counts))] * len(counts)
    parts = [batch.only(objective.reads(batch.channels)).to(device) for batch in micro_batches]
    return [_with_numbers(part, survey.numbers(totals)) for part, totals in zip(parts, counts, strict=True)]


def _with_numbers(batch: MicroBatch, numbers: Mapping[str, Tensor]) -> MicroBatch:
    spread = {name: number.expand(batch.input_ids_BS.shape) for name, number in numbers.items()}
    return dataclasses.replace(batch, channels={**batch.channels, **spread})
