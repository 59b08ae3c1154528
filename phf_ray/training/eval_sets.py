"""Evaluation sets: chosen and compared with the training data before a run, and measured while it trains."""

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from phf_ray.blocks.feedback_corpora import feedback_set, words_of_feedback
from phf_ray.blocks.held_out import decode_documents, encode_documents
from phf_ray.blocks.manifest import BlockManifest, read_block_file
from phf_ray.config import Config
from phf_ray.corpus.budget import rejected_records, shown_reasons
from phf_ray.corpus.data_sets import read_data_set
from phf_ray.corpus.overlap import Overlap, OverlapCounter, total_overlap
from phf_ray.corpus.stats import CorpusStats
from phf_ray.corpus.stored import Part
from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.base import Objective
from phf_ray.records import ScoredDocument
from phf_ray.runs.rows import EVALUATION_SETS
from phf_ray.storage.files import open_filesystem, write_file, write_text
from phf_ray.storage.hashing import json_fingerprint
from phf_ray.training.eval_examples import MeasuredExamples
from phf_ray.training.held_out_documents import are_never_scored
from phf_ray.training.held_out_text import MeasuredText
from phf_ray.training.state import TrainState

log = logging.getLogger(__name__)

EVAL_BYTES = 10_000_000
"""Bytes of text to read from each set, from its beginning."""


def read_eval_sets(config: Config, sources: Mapping[str, str] | None = None) -> dict[str, list[ScoredDocument]]:
    """Read the first EVAL_BYTES of each set. `sources`: source -> the same at one commit.

    Raises ConfigError or DataError that names a set that can't be read.
    """
    sets = {}
    for name, source in config.dataset.eval_datasets.items():
        read = CorpusStats()
        feedback = feedback_set(config, name)
        found = (
            read_data_set(config, (sources or {}).get(source, source), reject=read.reject)
            if feedback is None
            else words_of_feedback(feedback)
        )
        documents = list(_first_bytes(found))
        read.documents = len(documents)
        _judge(f"dataset.eval_datasets.{name}: {source}", read, limit=config.scoring.max_failed_fraction)
        sets[name] = documents
    return sets


def _judge(what: str, read: CorpusStats, *, limit: float) -> None:
    """Refuse a set without text, or with too many records that can't be read; warn of a few."""
    reasons = f" ({shown_reasons(read.rejected)})" if read.rejected else ""
    if not read.documents:
        raise DataError(f"{what} has no text{reasons}; give another data set")
    failed = rejected_records(read, limit=limit, final=True)
    if failed is not None:
        raise DataError(f"{what}: {failed}, more than scoring.max_failed_fraction={limit}; fix the data set")
    if read.rejected:
        log.warning("%s: %d records could not be read%s", what, read.rejected.total(), reasons)


def _first_bytes(documents: Iterable[ScoredDocument]) -> Iterator[ScoredDocument]:
    num_bytes = 0
    for document in documents:
        size = len(document.text.encode())
        if not size:
            continue
        yield document
        num_bytes += size
        if num_bytes >= EVAL_BYTES:
            return


def store_eval_sets(
    config: Config,
    sets: Mapping[str, Sequence[ScoredDocument]],
    *,
    parts: Sequence[Part],
    folder: str,
    counter: OverlapCounter,
) -> dict[str, dict[str, Any]]:
    """Store the sets in `folder`, which all workers see. Return what a plan says of each: file and overlap.

    `parts`: those of the training data. The comparison is remembered in `folder`. Raises ConfigError if a set
    overlaps with the training data and `dataset.eval_overlap` is `refuse`.
    """
    if not sets:
        return {}
    files = {}
    for name, documents in sets.items():
        content = encode_documents(documents)
        files[name] = f"{folder}/{json_fingerprint([[one.id, one.texts, one.scores] for one in documents])}.parquet"
        write_file(files[name], content)
    counts = _overlap(
        sets,
        parts=parts,
        remembered=f"{folder}/{json_fingerprint([files, [part.label for part in parts]])}.json",
        counter=counter,
    )
    for name, count in counts.items():
        _report_overlap(config, name, count)
    places = {name: feedback_set(config, name) for name in sets}
    feedback = {name: {"feedback": place} for name, place in places.items() if place is not None}
    return {name: {"file": files[name], **feedback.get(name, {}), **counts[name]} for name in sets}


def _overlap(
    sets: Mapping[str, Sequence[ScoredDocument]], *, parts: Sequence[Part], remembered: str, counter: OverlapCounter
) -> dict[str, dict[str, int]]:
    filesystem, inner = open_filesystem(remembered)
    if filesystem.exists(inner):
        return dict(json.loads(filesystem.cat_file(inner)))
    texts = {name: [document.text for document in documents] for name, documents in sets.items()}
    log.info("comparing %d evaluation set(s) with %d part(s) of training data", len(sets), len(parts))
    found = total_overlap(counter(parts, texts), texts)
    counts = {name: _counts(overlap, len(texts[name])) for name, overlap in found.items()}
    write_text(remembered, json.dumps(counts) + "\n")
    return counts


def _counts(overlap: Overlap, num_documents: int) -> dict[str, int]:
    return {
        "num_documents": num_documents,
        "num_in_training": len(overlap.exact),
        "num_in_training_13gram": len(overlap.exact | overlap.shared),
    }


def _report_overlap(config: Config, name: str, counts: Mapping[str, int]) -> None:
    if not counts["num_in_training_13gram"]:
        return
    found = (
        f"evaluation set {name}: of {counts['num_documents']} documents, {counts['num_in_training']} are also in the "
        f"training data, and {counts['num_in_training_13gram']} share 13 words in a row with it"
    )
    if config.dataset.eval_overlap == "refuse":
        raise ConfigError(f"{found}; remove them, or set dataset.eval_overlap: count")
    log.warning("%s", found)


class EvalSets:
    """The evaluation sets of a run, ready to be measured."""

    def __init__(
        self, config: Config, tokenizer: Any, *, manifest: BlockManifest, sets: Mapping[str, Mapping[str, Any]]
    ):
        self._counts = {
            f"eval/{name}/{key}": value
            for name, one in sets.items()
            for key, value in one.items()
            if key.startswith("num_")
        }
        self._examples = {
            name: MeasuredExamples(config, tokenizer, name=name, path=one["feedback"], manifest=manifest)
            for name, one in sets.items()
            if "feedback" in one
        }
        documents = {
            name: list(decode_documents(read_block_file(one["file"])))
            for name, one in sets.items()
            if name not in self._examples
        }
        self._sets = {
            name: MeasuredText(config, tokenizer, manifest=manifest, documents=own) for name, own in documents.items()
        }
        reads_scores = bool({*config.score_readers} - {"dataset.filter_threshold"})  # a set is not filtered
        self._without_loss = {
            name
            for name, own in documents.items()
            if config.objective.compares_answers
            or config.objective.reads_labels
            or (reads_scores and are_never_scored(own))
        }

    def measure(self, state: TrainState, *, objective: Objective) -> dict[str, Any]:
        """Return metrics `eval/<name>/...`. All ranks call this."""
        since = time.perf_counter()
        row: dict[str, Any] = dict(self._counts)
        for name, text in self._sets.items():
            bits = text.bits_per_byte(state)
            row |= {f"eval/{name}/bits_per_byte{suffix}": value for suffix, value in _suffixed(bits)}
            row[f"eval/{name}/perplexity"] = math.exp(bits["none"] * math.log(2) * text.bytes_per_token)
            # What the objective makes of a text without scores, or without pairs, is not its loss.
            figures = {} if name in self._without_loss else text.objective(state, objective=objective)
            row[f"eval/{name}/loss"] = figures.get("loss", math.nan)
        for name, examples in self._examples.items():
            row |= {f"eval/{name}/{key}": value for key, value in examples.measure(state, objective=objective).items()}
        return row | {EVALUATION_SETS: time.perf_counter() - since}


def _suffixed(bits: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return (("" if control == "none" else f"_{control}", value) for control, value in bits.items())


def steps_per_epoch(manifest: BlockManifest, *, batch_size: int) -> int:
    return max(1, math.ceil(manifest.num_blocks / batch_size))
