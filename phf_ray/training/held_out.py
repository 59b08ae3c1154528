"""Measures bits per byte and the objective on held-out text."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from phf_ray.errors import DataError
from phf_ray.objectives.base import Objective
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.statistics import BinCounts, Statistics, all_reduce, combine
from phf_ray.records import TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import unwrapped, world_size
from phf_ray.training.survey import surveyed


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A whole document as the model reads it, end-of-text token first."""

    input_ids: NDArray[np.int32]
    is_predicted: NDArray[np.bool_]
    """True for tokens that the model predicts: those of the text itself, and maybe control tokens. It only reads the
    others."""
    num_bytes: int
    """Size of the text in UTF-8."""


def held_out_bits_per_byte(
    model: nn.Module,
    documents: Sequence[EncodedDocument],
    *,
    window: int,
    batch_size: int,
    precision: Literal["bf16", "fp32"] = "fp32",
) -> float:
    """Return the model's bits per byte of text: nats of all predicted tokens / ln 2 / bytes, over all documents.

    A document longer than `window` tokens is read in windows that overlap by half. So the model predicts each of
    them once, from at least window / 2 tokens if that many precede it. It runs in eval mode. Collective: every rank
    calls this with the same documents, computes a share of the windows, and gets the same answer.
    """
    num_bytes = sum(document.num_bytes for document in documents)
    if num_bytes == 0:
        raise DataError("no held-out text; raise dataset.held_out_fraction or set it to 0")
    parts = [part for document in documents for part in _windows(document, window=window)]
    rank = dist.get_rank() if dist.is_initialized() else 0
    module = unwrapped(model)
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    likelihood = build_objective({"name": "MLE"})
    nats = torch.zeros((), dtype=torch.float64, device=device)
    # Every rank runs the same number of forward passes, so in the last round some may compute only padding.
    num_rounds = math.ceil(len(parts) / (batch_size * world_size()))
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        for index in range(num_rounds):
            first = (index * world_size() + rank) * batch_size
            batch = _window_batch(parts[first : first + batch_size], window=window).to(device)
            out = batch.through(module, likelihood)
            nats += out.loss.double()
    module.train(was_training)
    if dist.is_initialized():
        dist.all_reduce(nats)
    return float(nats) / math.log(2) / num_bytes


def _windows(document: EncodedDocument, *, window: int) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
    """Yield ids and kinds of each window; kind GIVEN marks tokens that the window does not predict."""
    ids = document.input_ids
    kinds = np.where(document.is_predicted, TokenKind.CONTENT, TokenKind.GIVEN).astype(np.uint8)
    begin, predicted = 0, 0
    while predicted < len(ids):
        part = kinds[begin : begin + window].copy()
        part[: predicted - begin] = TokenKind.GIVEN
        yield ids[begin : begin + window], part
        predicted = begin + len(part)
        begin = predicted - window // 2


def _window_batch(parts: Sequence[tuple[NDArray[np.int32], NDArray[np.uint8]]], *, window: int) -> MicroBatch:
    ids_BS = np.zeros((max(1, len(parts)), window), np.int64)
    kinds_BS = np.full(ids_BS.shape, TokenKind.PAD, np.uint8)
    for row, (ids, kinds) in enumerate(parts):
        ids_BS[row, : len(ids)] = ids
        kinds_BS[row, : len(kinds)] = kinds
    scores_BS = np.zeros(ids_BS.shape, np.float32)
    return MicroBatch(torch.from_numpy(ids_BS), torch.from_numpy(scores_BS), torch.from_numpy(kinds_BS), -1)


def objective_on(
    model: nn.Module,
    batches: Sequence[MicroBatch],
    *,
    objective: Objective,
    precision: Literal["bf16", "fp32"] = "fp32",
) -> dict[str, float | BinCounts]:
    """Return the objective's figures over all batches, in eval mode, with the names of `Objective.summarize`.

    Collective: every rank calls this with the same batches, computes a share, and gets the same answer.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    module = unwrapped(model)
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    totals: Statistics = {}
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        # Every rank runs the same number of forward passes: in the last round some compute only padding.
        places = range(rank, rank + len(batches), world_size())
        share = [batches[place] if place < len(batches) else _padding_like(batches[0]) for place in places]
        for batch in surveyed(module, share, objective=objective, precision=precision):
            out = batch.to(device).through(module, objective)
            totals = combine(totals, out.metrics)
    module.train(was_training)
    totals = all_reduce(totals)
    return {**objective.summarize(totals), **objective.histograms(totals)}


def _padding_like(batch: MicroBatch) -> MicroBatch:
    return dataclasses.replace(
        batch, token_kinds_BS=torch.full_like(batch.token_kinds_BS, int(TokenKind.PAD)), first_block=-1
    )
