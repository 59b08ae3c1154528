"""Evaluation sets of feedback: measured as the training's own examples are, on whole rows."""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phf_ray.blocks.example_rows import ExamplePacker, ExampleSettings, FeedbackPart
from phf_ray.blocks.manifest import BlockManifest
from phf_ray.blocks.stats import PackingStats
from phf_ray.config import Config
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.layout import is_feedback_corpus
from phf_ray.feedback.reader import list_feedback_parts, read_feedback_manifest
from phf_ray.objectives.base import Objective
from phf_ray.records import ScoredDocument
from phf_ray.storage.files import full_name, open_filesystem
from phf_ray.training.held_out import objective_on
from phf_ray.training.held_out_documents import HELD_OUT_BLOCKS, micro_batch_of
from phf_ray.training.state import TrainState


def feedback_set(config: Config, name: str) -> str | None:
    """Return the path of an evaluation set that is a feedback corpus; None for text.

    Raises ConfigError if its rows are not like those that are trained on.
    """
    source = config.dataset.eval_datasets[name]
    if not is_feedback_corpus(source):
        return None
    path = full_name(*open_filesystem(source))
    trained = [one for one in config.dataset.datasets if is_feedback_corpus(one)]
    if not trained:
        return path
    form, own = read_feedback_manifest(path).form, read_feedback_manifest(trained[0]).form
    if form != own:
        raise ConfigError(
            f"dataset.eval_datasets.{name}: {source} holds {form}, and {trained[0]} {own}; make both the same way"
        )
    return path


def words_of_feedback(path: str) -> Iterator[ScoredDocument]:
    """Yield the words of each row, to be compared with the training data."""
    for part in list_feedback_parts(path):
        yield from FeedbackPart(part, 0).documents(lambda _: None)


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
        parts = [FeedbackPart(part, 0) for part in list_feedback_parts(path)]
        blocks = list(itertools.islice(packer.blocks(parts), HELD_OUT_BLOCKS))
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
