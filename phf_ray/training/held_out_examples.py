"""Measures the objective on held-out examples or pairs at every checkpoint."""

import math
import time
from collections.abc import Mapping
from typing import Any

from phf_ray.blocks.manifest import BlockManifest, read_block_file
from phf_ray.blocks.shards import BlockArrays, decode_channel, decode_shard
from phf_ray.config import TrainingConfig
from phf_ray.objectives.base import Objective
from phf_ray.training.batches import MicroBatch, batch_of
from phf_ray.training.held_out import objective_on
from phf_ray.training.held_out_documents import HELD_OUT_BLOCKS
from phf_ray.training.state import TrainState


class HeldOutExamples:
    """The first held-out blocks of a run, with the numbers that are stored beside them."""

    def __init__(
        self, training: TrainingConfig, *, manifest: BlockManifest, blocks_path: str, channels: Mapping[str, str]
    ):
        """`channels`: name -> folder below the blocks."""
        self._precision = training.precision
        self._batches: list[MicroBatch] = []
        size, left = training.per_device_train_batch_size, HELD_OUT_BLOCKS
        for shard in manifest.held_out_shards:
            if left <= 0:
                break
            blocks = _read(blocks_path, shard.file, channels)
            for first in range(0, min(left, shard.num_blocks), size):
                self._batches.append(batch_of(blocks, slice(first, min(first + size, left))))
            left -= shard.num_blocks

    def measure(self, state: TrainState, *, objective: Objective) -> dict[str, Any]:
        """Return metrics `objective/eval/...`, and perplexity where the loss is one; none if nothing is held out."""
        if not self._batches:
            return {}
        since = time.perf_counter()
        figures = objective_on(state.model, self._batches, objective=objective, precision=self._precision)
        measured: dict[str, Any] = {f"objective/eval/{name}": value for name, value in figures.items()}
        loss = figures.get("original_loss", math.nan)
        # Of pairs it would be the mean over good and bad answers.
        if isinstance(loss, float) and math.isfinite(loss) and not objective.reads_logprobs:
            measured["eval/perplexity"] = math.exp(loss)
        measured["objective/eval/tokens_seen_during_eval"] = state.tokens_seen
        return measured | {"eval/wall_s": time.perf_counter() - since}


def _read(root: str, file: str, channels: Mapping[str, str]) -> BlockArrays:
    path = f"{root}/{file}"
    beside = {name: f"{root}/{folder}/{file}" for name, folder in channels.items()}
    blocks = decode_shard(read_block_file(path), source=path)
    read = {name: decode_channel(read_block_file(place), name, source=place) for name, place in beside.items()}
    return blocks._replace(channels={**blocks.channels, **read})
