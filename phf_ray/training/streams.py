"""Weighs the targets of a step by the stream that they come from: feedback, or text that is learned beside it.

    L = sum over streams s of (1 / n_s) sum over targets t of s: w_t l_t

n_s is the number of the stream's targets in the whole step, w_t the loss weight of the target's data set. Under
`compat: coh` each block of a stream counts the same, however many of its tokens are learned:

    L = sum over s of (1 / rows_s) sum over blocks b of s: (1 / n_b) sum over targets t of b: w_t l_t

The counts need no pass of the model, and no wait for the device.

Shapes: B sequences, S tokens, C data sets, K streams.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from phf_ray.objectives.base import Objective
from phf_ray.objectives.statistics import Statistics, all_reduce
from phf_ray.objectives.streams import CORPUS, LOSS_WEIGHT, LossStreams
from phf_ray.training.batches import MicroBatch


def weighed(micro_batches: Sequence[MicroBatch], *, objective: Objective, device: torch.device) -> list[MicroBatch]:
    """Return the micro-batches with the weight of each token in the step's loss; as they are if there is one stream.

    Collective if the objective learns streams: every rank passes its share.
    """
    streams = objective.streams
    if streams is None:
        return list(micro_batches)
    counted = [_counted(batch, objective, streams) for batch in micro_batches]
    totals = all_reduce(
        {
            "sum/targets": torch.cat([targets_BK for targets_BK, _ in counted]).sum(0).to(device),
            "sum/rows": torch.cat([(targets_BK > 0).double() for targets_BK, _ in counted]).sum(0).to(device),
        }
    )
    return [
        _with_weights(batch, targets_BK, corpus_B, streams, totals=totals)
        for batch, (targets_BK, corpus_B) in zip(micro_batches, counted, strict=True)
    ]


def _counted(batch: MicroBatch, objective: Objective, streams: LossStreams) -> tuple[Tensor, Tensor]:
    """Return the targets of each block, in the column of its stream, and the data set of each block."""
    targets = objective.targets(
        batch.input_ids_BS,
        token_scores_BS=batch.token_scores_BS,
        token_kinds_BS=batch.token_kinds_BS,
        channels_BS=batch.channels,
    )
    corpus_B = batch.channels[CORPUS][:, 0].long()
    count_B = targets.valid_N.view(len(corpus_B), -1).sum(1).double()
    stream_BK = torch.nn.functional.one_hot(torch.tensor(streams.of_corpus)[corpus_B], streams.number)
    return count_B[:, None] * stream_BK, corpus_B


def _with_weights(
    batch: MicroBatch, targets_BK: Tensor, corpus_B: Tensor, streams: LossStreams, *, totals: Statistics
) -> MicroBatch:
    device = totals["sum/targets"].device
    targets_K = totals["sum/targets"]
    own_B = torch.tensor(streams.loss_weights)[corpus_B].double().to(device)
    stream_B = torch.tensor(streams.of_corpus)[corpus_B].to(device)
    # DIFFERS: phf-ray counts all learned tokens of a stream alike; CoH takes the mean of each row, and then of the
    # rows.
    if streams.rows_alike:
        own_B = own_B / targets_BK.sum(1).clamp(min=1).to(device)
        parts_K = totals["sum/rows"]
    else:
        parts_K = targets_K
    # The step's gradients are divided by the number of all targets, so that is a factor here.
    weight_B = own_B * targets_K.sum() / parts_K.clamp(min=1)[stream_B]
    weight_BS = weight_B.float()[:, None].expand(batch.input_ids_BS.shape)
    return dataclasses.replace(batch, channels={**batch.channels, LOSS_WEIGHT: weight_BS})
