"""Evaluation sets of feedback: measured as the training's own examples are, on whole rows."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phf_ray.blocks.example_rows import ExamplePacker, ExampleSettings
from phf_ray.blocks.feedback_corpora import feedback_parts
from phf_ray.blocks.manifest import BlockManifest
from phf_ray.blocks.stats import PackingStats
from phf_ray.config import Config
from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.base import Objective
from phf_ray.training.held_out import objective_on
from phf_ray.training.held_out_documents import HELD_OUT_BLOCKS, micro_batch_of
from phf_ray.training.state import TrainState


class MeasuredExamples:
    """The first rows of a feedback corpus, packed like those that are trained on."""

    def __init__(self, config: Config, tokenizer: Any, *, name: str, path: str, manifest: BlockManifest):
        if manifest.examples is None:
            raise ConfigError(
                f"dataset.eval_datasets.{name}: {Path(path).name} is feedback, and dataset.datasets names none; give a "
                "data set of text"
            )
        stats = PackingStats()
        packer = ExamplePacker(
            ExampleSettings(**manifest.examples),
            tokenizer,
            length=manifest.sequence_length,
            held_out_fraction=0.0,
            stats=stats,
        )
        blocks = list(itertools.islice(packer.blocks(feedback_parts(path)), HELD_OUT_BLOCKS))
        if not blocks:
            raise DataError(
                f"dataset.eval_datasets.{name}: no row can be measured ({dict(stats.num_documents_dropped)}); give "
                "other data, or longer blocks"
            )
        self._precision = config.training.precision
        size = config.training.per_device_train_batch_size
        self._batches = [micro_batch_of(blocks[first : first + size]) for first in range(0, len(blocks), size)]

    def measure(self, state: TrainState, *, objective: Objective) -> Mapping[str, float]:
        """Return `loss`, and `perplexity` where the loss is one. All ranks call this."""
        figures = objective_on(state.model, self._batches, objective=objective, precision=self._precision)
        loss, likelihood = figures.get("loss", math.nan), figures.get("original_loss", math.nan)
        assert isinstance(loss, float)
        assert isinstance(likelihood, float)
        return {"loss": loss} | ({} if objective.reads_logprobs else {"perplexity": math.exp(likelihood)})
