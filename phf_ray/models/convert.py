"""Converts pickled weights to safetensors, without unrestricted pickle."""

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from phf_ray.errors import DataError
from phf_ray.storage.files import publish, write_text

_INDEX = "pytorch_model.bin.index.json"


def convert_to_safetensors(folder: Path) -> list[Path]:
    """Write `model*.safetensors` next to `pytorch_model*.bin`, and return the new files; none if nothing is pickled.

    An index of several files comes last, so a conversion that was interrupted is not mistaken for a whole one. Raises
    DataError if a file holds anything but tensors.
    """
    if any(folder.glob("*.safetensors")) and not (folder / _INDEX).exists():
        return []
    written = [_convert(path) for path in sorted(folder.glob("pytorch_model*.bin"))]
    if written and (folder / _INDEX).exists():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {name: _renamed(file) for name, file in index["weight_map"].items()}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return written


def _renamed(name: str) -> str:
    return name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


def _convert(path: Path) -> Path:
    final = path.with_name(_renamed(path.name))
    scratch = final.with_name(f".{final.name}.writing")
    save_file(dict(_tensors(path)), scratch, metadata={"format": "pt"})
    publish(scratch, final)
    return final


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in read_pickled(path).items():
        # Tied weights share memory, which the format does not allow.
        yield name, tensor.clone().contiguous()


def read_pickled(path: Path) -> Mapping[str, torch.Tensor]:
    """Map the tensors of a file into memory. Raises DataError if it holds anything else."""
    try:
        weights: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(f"{path} can't be read as tensors alone: {error}; fetch it again") from None
    found: Mapping[str, torch.Tensor] = weights
    return found
