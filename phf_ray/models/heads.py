"""The value head, and the search for its weight in a checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from phf_ray.errors import DataError
from phf_ray.model_folder import unwrapped_name

VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_HEAD_KEY = "value_head.head.weight"
"""Name in the state dict, the same as the original's."""
_UNBOUNDED = {"value_head": "unbounded"}
"""Mark in the file's metadata."""


class ValueHead(nn.Module):
    """V = -sigmoid(h . w), in (-1, 0) like the rewards of pretraining, or V = h . w for rewards of any size (PPO).

    w starts at zero, so V starts at -0.5, or at 0. Runs in fp32 even under autocast: for a reward of -0.001, h . w is
    near -7, where bf16 has steps of 0.03.
    """

    def __init__(self, hidden_size: int, *, is_bounded: bool = True) -> None:
        super().__init__()
        self.is_bounded = is_bounded
        self.head = nn.Linear(hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        exact = torch.promote_types(self.head.weight.dtype, torch.float32)
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            scores_BS = F.linear(hidden_BSD.to(exact), self.head.weight.to(exact)).squeeze(-1)
        return -scores_BS.sigmoid() if self.is_bounded else scores_BS


def head_width(backbone: PreTrainedModel) -> int:
    """Return the width of the head's input, which is not always hidden_size (OPT: word_embed_proj_dim)."""
    head: Any = backbone.get_output_embeddings()
    width: int = head.weight.shape[1]
    return width


def save_value_head(path: Path, weight: Tensor, *, is_bounded: bool) -> None:
    """A bounded head has no mark, as in files of earlier versions."""
    weights = {VALUE_HEAD_KEY: weight.detach().cpu().contiguous()}
    save_file(weights, path, metadata=None if is_bounded else _UNBOUNDED)


def load_value_head(value_head: ValueHead, source: str, *, revision: str | None) -> bool:
    """Load the weight; return False if the source has none. Raises DataError if its head is of the other kind.

    phf-ray stores the weight in its own file, the original as a key among the model's weights.
    """
    found = _find_head(source, revision=revision)
    if found is None:
        return False
    weight, is_bounded = found
    if is_bounded != value_head.is_bounded:
        kinds = {True: "bounded (minus a sigmoid, as AWR learns it)", False: "without bound (as PPO learns it)"}
        raise DataError(
            f"{source}: its value head is {kinds[is_bounded]}, and the configuration asks for one that is "
            f"{kinds[value_head.is_bounded]}; set model.model_kwargs.value_head_config.is_bounded: "
            f"{str(is_bounded).lower()}, or start from a copy without {VALUE_HEAD_FILE}"
        )
    _check_weight(weight, source, shape=value_head.head.weight.shape)
    with torch.no_grad():
        value_head.head.weight.copy_(weight)
    return True


def stored_value_head(source: str, *, hidden_size: int) -> ValueHead | None:
    """Return the source's value head, of its own kind; None if it has none."""
    found = _find_head(source, revision=None)
    if found is None:
        return None
    value_head = ValueHead(hidden_size, is_bounded=found[1])
    load_value_head(value_head, source, revision=None)
    return value_head


def _check_weight(weight: Tensor, source: str, *, shape: torch.Size) -> None:
    if weight.shape != shape:
        raise DataError(
            f"{source}: {VALUE_HEAD_KEY} has shape {tuple(weight.shape)}, but the model needs {tuple(shape)}"
        )
    if not weight.isfinite().all():
        raise DataError(f"{source}: {VALUE_HEAD_KEY} has values that are NaN or infinite; take an earlier checkpoint")


def _find_head(source: str, *, revision: str | None) -> tuple[Tensor, bool] | None:
    """Return weight and whether the head is bounded."""
    names = [VALUE_HEAD_FILE, "model.safetensors", "pytorch_model.bin"]
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = _find_file(index_name, source, revision=revision)
        if index is not None:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names += [shard for name, shard in shards.items() if unwrapped_name(name) == VALUE_HEAD_KEY]
    for name in names:
        path = _find_file(name, source, revision=revision)
        weight = None if path is None else _read_weight(VALUE_HEAD_KEY, path)
        if path is not None and weight is not None:
            return weight, _is_bounded(path)
    return None


def _is_bounded(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return True
    with safe_open(path, framework="pt") as tensors:
        metadata = tensors.metadata() or {}
    return not metadata.items() >= _UNBOUNDED.items()


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
