"""Log-probabilities of a reference model for the learned tokens of the blocks: computed once, stored beside them.

    <blocks>/reference-<hash of the model's weights>/<name of the shard>    reference_logprob float32[L]

A token that is not learned has 0. No second model is in memory during training, and runs that differ in anything but
the model they start from share the files.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from phf_ray.adapter_folder import AdapterBase, is_adapter
from phf_ray.blocks.manifest import read_block_file, read_block_manifest
from phf_ray.blocks.shards import decode_shard, encode_channel
from phf_ray.blocks.tokenizer import load_tokenizer, tokenizer_hash
from phf_ray.checkpoint import fingerprint
from phf_ray.config import Config, ModelConfig, parse_config
from phf_ray.model_folder import weights_fingerprint
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.merging import checked_base
from phf_ray.objectives.answers import REFERENCE
from phf_ray.scorers.classifier import weights_hash
from phf_ray.storage.files import open_filesystem, write_file
from phf_ray.storage.hashing import json_fingerprint
from phf_ray.training.batches import batch_of
from phf_ray.training.start import initial_model, set_up_layers, starting_model

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReferenceJob:
    """Everything that a worker is told, as plain values."""

    config: dict[str, Any]
    checkpoint_path: str | None
    """Checkpoint whose weights the reference has; None: the model that the configuration names."""
    blocks: str
    folder: str
    working_directory: str
    """Directory that the config's relative paths start from."""

    def needs(self, shard: str) -> bool:
        filesystem, inner = open_filesystem(f"{self.blocks}/{self.folder}/{shard}")
        return not filesystem.exists(inner)


class ReferenceRunner(Protocol):
    def __call__(self, job: ReferenceJob, shards: Sequence[str]) -> Iterator[str]:
        """Write the log-probabilities of these shards, and yield the name of each when it is finished."""
        ...


def ensure_reference(
    config: Config,
    *,
    blocks: str,
    checkpoint_path: str | None,
    build: Callable[[], LanguageModel],
    run: ReferenceRunner,
    accept: Callable[[str], None] = lambda _: None,
) -> str:
    """Compute what is missing of the log-probabilities, and return the folder's name.

    `build` makes the reference: the model that the run starts from. It is called only for random weights, which no file
    holds: this process may be on a machine without room for the model. `accept` is told the folder's name before any
    number is computed, and raises an error if it can't be that of the run.
    """
    manifest = read_block_manifest(blocks)
    job = ReferenceJob(
        config=config.model_dump(mode="json"),
        checkpoint_path=checkpoint_path,
        blocks=blocks,
        folder=f"reference-{identity_of_start(config, checkpoint_path, build)[:16]}",
        working_directory=str(Path.cwd()),
    )
    accept(job.folder)
    shards = [shard.file for shard in manifest.shards] + [shard.file for shard in manifest.held_out_shards]
    missing = [shard for shard in shards if job.needs(shard)]
    for done, _ in enumerate(run(job, missing), start=1):
        log.info("log-probabilities of the reference: %d of %d shards", done, len(missing))
    return job.folder


def identity_of_start(config: Config, checkpoint_path: str | None, build: Callable[[], LanguageModel]) -> str:
    """Hash all that decides the numbers of the model that a run starts from: weights, architecture and precision.

    `build` makes that model; it is called only for random weights.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    starting = starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    training = config.training
    numbers = [training.precision, training.tf32, config.model.load_in_4bit]
    weights = _random_weights(build()) if starting.from_scratch else _stored_weights(starting)
    new_rows = [starting.num_additional_tokens, training.seed] if starting.num_additional_tokens else []
    return json_fingerprint([weights, numbers, tokenizer_hash(tokenizer), new_rows, starting.pad_vocab_to_multiple_of])


def _random_weights(model: LanguageModel) -> list[str]:
    architecture = model.backbone.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype", "architectures"):
        architecture.pop(name, None)
    return [weights_hash(model), json.dumps(architecture, sort_keys=True, default=str)]


def _stored_weights(starting: ModelConfig) -> list[str]:
    """Hash the files of a model, or of an adapter and its base model, without loading them. A second per GB."""
    assert starting.path_or_name is not None  # ModelConfig checks it
    if is_adapter(starting.path_or_name):
        adapter = Path(starting.path_or_name)
        return [fingerprint(adapter), weights_fingerprint(checked_base(adapter))]
    folder = AdapterBase(starting.path_or_name, starting.revision).folder(option="model.path_or_name")
    return [weights_fingerprint(folder)]


def compute_here(job: ReferenceJob, shards: Sequence[str]) -> Iterator[str]:
    """Compute one shard after the other in this process. This function is a `ReferenceRunner`."""
    if not shards:
        return
    computer = ReferenceComputer(job)
    for shard in shards:
        # Ray repeats a task whose process died, with all its shards.
        yield computer(shard) if job.needs(shard) else shard


class ReferenceComputer:
    """Holds the reference model."""

    def __init__(self, job: ReferenceJob):
        # A worker of Ray starts in a folder of its own. A submitted job's directory has the same path on every node.
        if Path(job.working_directory).is_dir():
            os.chdir(job.working_directory)
        self._job, self._config = job, parse_config(job.config)
        torch.set_float32_matmul_precision("high" if self._config.training.tf32 else "highest")
        tokenizer = load_tokenizer(self._config.tokenizer)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = initial_model(self._config, checkpoint_path=job.checkpoint_path, tokenizer=tokenizer)
        set_up_layers(model, self._config, device=self._device, compiles=False)
        self._model = model.to(self._device).eval()

    def __call__(self, shard: str) -> str:
        path = f"{self._job.blocks}/{shard}"
        blocks = decode_shard(read_block_file(path), source=path)
        size = self._config.training.per_device_train_batch_size
        parts = []
        for first in range(0, len(blocks.input_ids), size):
            batch = batch_of(blocks, slice(first, first + size)).to(self._device)
            with (
                torch.no_grad(),
                torch.autocast(
                    self._device.type, dtype=torch.bfloat16, enabled=self._config.training.precision == "bf16"
                ),
            ):
                logprobs_BS = self._model.predict_logprobs(batch.input_ids_BS, batch.token_kinds_BS)
            parts.append(logprobs_BS.float().cpu().numpy())
        content = encode_channel(REFERENCE, np.concatenate(parts))
        write_file(f"{self._job.blocks}/{self._job.folder}/{shard}", content)
        return shard
