"""Loads a checkpoint: an ordinary model directory, with `phf.json` and a value head if it has them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phf_ray.checkpoint import CheckpointInfo, read_info, require_model
from phf_ray.models.backbone import load_tokenizer_beside
from phf_ray.models.embeddings import learn_padding_rows
from phf_ray.models.heads import head_width, stored_value_head
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.merging import load_merged


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    model: LanguageModel
    tokenizer: Any
    info: CheckpointInfo | None
    """None if there is no phf.json, as in any model directory that phf-ray did not write."""


def load_checkpoint(
    directory: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    base: Path | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint of phf-ray or of the original, or any causal LM directory, in eval mode.

    If `dtype` is None, weights keep their stored dtype. An adapter is merged into its base model, in fp32;
    `base` is its folder if it is not the one that the adapter names.
    """
    directory = require_model(directory)
    info = read_info(directory)
    backbone = load_merged(directory, dtype=dtype, base=base)
    learn_padding_rows(backbone, is_new=False)
    tokenizer = load_tokenizer_beside(directory)
    value_head = stored_value_head(str(directory), hidden_size=head_width(backbone))
    model = LanguageModel(backbone, value_head=value_head).to(device)
    return LoadedCheckpoint(model=model.eval(), tokenizer=tokenizer, info=info)
