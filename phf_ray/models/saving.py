"""Writes a checkpoint: an ordinary model directory plus `phf.json` and `value_head.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from phf_ray.checkpoint import CheckpointInfo, write_info
from phf_ray.models.heads import VALUE_HEAD_FILE, VALUE_HEAD_KEY
from phf_ray.models.language_model import LanguageModel


def save_checkpoint(
    directory: str | Path,
    model: LanguageModel,
    tokenizer: Any,
    info: CheckpointInfo,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; equal weights give equal bytes.

    `state_dict` replaces the model's own tensors if they are sharded or in use.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state_dict is None else state_dict
    # List each tied weight once: a copied state dict no longer shows that two entries are one tensor.
    names = [name for name, _ in model.backbone.named_parameters()]
    names += [name for name, _ in model.backbone.named_buffers() if f"backbone.{name}" in state]
    model.backbone.save_pretrained(directory, state_dict={name: state[f"backbone.{name}"] for name in names})
    tokenizer.save_pretrained(directory)
    if VALUE_HEAD_KEY in state:
        save_file({VALUE_HEAD_KEY: state[VALUE_HEAD_KEY].detach().cpu().contiguous()}, directory / VALUE_HEAD_FILE)
    write_info(directory, info)
