"""Measures a run's held-out text at every checkpoint."""

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

from phf_ray.blocks.held_out import read_held_out
from phf_ray.blocks.manifest import BlockManifest
from phf_ray.blocks.packing import pack
from phf_ray.config import Config
from phf_ray.objectives.base import Objective
from phf_ray.records import ScoredDocument
from phf_ray.training.batches import MicroBatch
from phf_ray.training.held_out import EncodedDocument, held_out_bits_per_byte, objective_on
from phf_ray.training.held_out_documents import (
    HELD_OUT_BLOCKS,
    are_never_scored,
    choose_held_out,
    encode_held_out,
    encode_with_own_control,
    micro_batch_of,
    stored_packing_config,
)
from phf_ray.training.state import TrainState

# Control tokens that the text is read with -> name of the metric.
BITS_PER_BYTE = {
    "none": "eval/bits_per_byte",
    "joint": "eval/bits_per_byte_joint",
    "good": "eval/bits_per_byte_good",
    "bad": "eval/bits_per_byte_bad",
}


class MeasuredText:
    """Documents encoded for bits per byte and packed for the objective."""

    def __init__(
        self,
        config: Config,
        tokenizer: Any,
        *,
        manifest: BlockManifest,
        documents: Sequence[ScoredDocument],
        max_blocks: int | None = None,
    ):
        """`max_blocks`: number of blocks on which the objective is measured; None: all."""
        self._config = config
        self._tokenizer = tokenizer
        self._manifest = manifest
        # A block of examples may be longer than the model has positions.
        self._window = manifest.sequence_length if manifest.examples is None else int(manifest.examples["row_length"])
        self._encoded = self._encode(documents)
        self._batches = self._pack(documents, max_blocks)

    @property
    def bytes_per_token(self) -> float:
        """Mean number of UTF-8 bytes per token of text."""
        documents = self._encoded["none"]
        num_tokens = sum(int(document.is_predicted.sum()) for document in documents)
        return sum(document.num_bytes for document in documents) / max(1, num_tokens)

    def bits_per_byte(self, state: TrainState) -> dict[str, float]:
        """Return bits per byte by the control tokens: none; good or bad before each segment, for free; joint: those of
        the scores, with their own bits. All ranks call this."""
        training = self._config.training
        return {
            name: held_out_bits_per_byte(
                state.model,
                documents,
                window=self._window,
                batch_size=training.per_device_train_batch_size,
                precision=training.precision,
            )
            for name, documents in self._encoded.items()
        }

    def objective(self, state: TrainState, *, objective: Objective) -> dict[str, Any]:
        """Return the objective's figures; none if no block could be packed. All ranks call this."""
        if not self._batches:
            return {}
        precision = self._config.training.precision
        return dict(objective_on(state.model, self._batches, objective=objective, precision=precision))

    def _encode(self, documents: Sequence[ScoredDocument]) -> dict[str, list[EncodedDocument]]:
        """Encode the documents without control tokens, and, if the run has them, with the good token, with the bad one,
        and with those of their own scores."""
        tokens: dict[str, str | None] = {"none": None}
        conditional = self._config.dataset.conditional_training_config
        if conditional is not None:
            tokens |= {"good": conditional.aligned_prefix, "bad": conditional.misaligned_prefix}
        per_document = not self._config.dataset.is_split_by_sentences
        encoded = {
            name: encode_held_out(documents, self._tokenizer, control=token, per_document=per_document)
            for name, token in tokens.items()
        }
        if conditional is not None and not are_never_scored(documents):
            packing = stored_packing_config(self._manifest.packing)
            encoded["joint"] = encode_with_own_control(documents, self._tokenizer, packing=packing)
        return encoded

    def _pack(self, documents: Sequence[ScoredDocument], max_blocks: int | None) -> list[MicroBatch]:
        """Pack blocks with scores and control tokens as in training, but filter out no document."""
        packed = pack(
            documents,
            self._tokenizer,
            sequence_length=self._window,
            config=dataclasses.replace(stored_packing_config(self._manifest.packing), filter_threshold=None),
        )
        blocks = list(itertools.islice(packed, max_blocks))
        size = self._config.training.per_device_train_batch_size
        return [micro_batch_of(blocks[begin : begin + size]) for begin in range(0, len(blocks), size)]


class HeldOutText:
    """The held-out documents of a run."""

    def __init__(self, config: Config, tokenizer: Any, *, manifest: BlockManifest, blocks_path: str):
        documents = choose_held_out(read_held_out(blocks_path)) if config.dataset.held_out_fraction else []
        self._text: MeasuredText | None = None
        if documents:
            self._text = MeasuredText(
                config, tokenizer, manifest=manifest, documents=documents, max_blocks=HELD_OUT_BLOCKS
            )

    def measure(self, state: TrainState, *, objective: Objective) -> dict[str, Any]:
        """Return metrics `eval/...` and `objective/eval/...`, none if no text is held out. All ranks call this."""
        if self._text is None:
            return {}
        since = time.perf_counter()
        measured: dict[str, Any] = {
            BITS_PER_BYTE[name]: value for name, value in self._text.bits_per_byte(state).items()
        }
        figures = self._text.objective(state, objective=objective)
        if figures:
            measured |= {f"objective/eval/{name}": value for name, value in figures.items()}
            measured["objective/eval/tokens_seen_during_eval"] = state.tokens_seen
        return measured | {"eval/wall_s": time.perf_counter() - since}
