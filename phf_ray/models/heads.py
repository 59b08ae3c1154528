"""The value head, and the search for its weight in a checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from phf_ray.errors import DataError
from phf_ray.model_folder import unwrapped_name

VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_HEAD_KEY = "value_head.head.weight"
"""Name in the state dict, the same as the original's."""


class ValueHead(nn.Module):
    """V = -sigmoid(h . w), in (-1, 0) like the rewards. w starts at zero, so V starts at -0.5.

    Runs in fp32 even under autocast: for a reward of -0.001, h . w is near -7, where bf16 has steps of 0.03.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        exact = torch.promote_types(self.head.weight.dtype, torch.float32)
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            scores_BS1 = F.linear(hidden_BSD.to(exact), self.head.weight.to(exact))
        return -scores_BS1.squeeze(-1).sigmoid()


def head_width(backbone: PreTrainedModel) -> int:
    """Return the width of the head's input, which is not always hidden_size (OPT: word_embed_proj_dim)."""
    head: Any = backbone.get_output_embeddings()
    width: int = head.weight.shape[1]
    return width


def load_value_head(value_head: ValueHead, source: str, *, revision: str | None) -> bool:
    """Load the weight; return False if the source has none.

    phf-ray stores the weight in its own file, the original as a key among the model's weights.
    """
    weight = _find_weight(VALUE_HEAD_KEY, source, revision=revision)
    if weight is None:
        return False
    if weight.shape != value_head.head.weight.shape:
        raise DataError(
            f"{source}: {VALUE_HEAD_KEY} has shape {tuple(weight.shape)}, "
            f"but the model needs {tuple(value_head.head.weight.shape)}"
        )
    if not weight.isfinite().all():
        raise DataError(f"{source}: {VALUE_HEAD_KEY} has values that are NaN or infinite; take an earlier checkpoint")
    with torch.no_grad():
        value_head.head.weight.copy_(weight)
    return True


def _find_weight(key: str, source: str, *, revision: str | None) -> Tensor | None:
    names = [VALUE_HEAD_FILE, "model.safetensors", "pytorch_model.bin"]
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = _find_file(index_name, source, revision=revision)
        if index is not None:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names += [shard for name, shard in shards.items() if unwrapped_name(name) == key]
    for name in names:
        path = _find_file(name, source, revision=revision)
        weight = None if path is None else _read_weight(key, path)
        if weight is not None:
            return weight
    return None


def _find_file(name: str, source: str, *, revision: str | None) -> Path | None:
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except EntryNotFoundError:
        return None


def _read_weight(key: str, path: Path) -> Tensor | None:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if unwrapped_name(name) == key]  # noqa: SIM118 - not a mapping
            return tensors.get_tensor(names[0]) if names else None
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return next((weight for name, weight in weights.items() if unwrapped_name(name) == key), None)
