"""The weights in a folder, one tensor at a time: a model that is larger than memory can be read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from phf_ray.errors import DataError
from phf_ray.model_folder import check_weight_files, weight_files
from phf_ray.models.convert import read_pickled


@dataclass(frozen=True, slots=True)
class StoredTensor:
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Reads it from its file, in the type that is stored."""


def stored_weights(folder: Path) -> dict[str, StoredTensor]:
    """Return the weights by name, unread. Pickled ones are opened without unrestricted pickle.

    Raises DataError if there are none, or a file is damaged.
    """
    check_weight_files(folder)
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        found |= _of_safetensors(path) if path.suffix == ".safetensors" else _of_pickle(path)
    return found


def _of_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        opened: Any = safe_open(path, framework="pt")
        return {
            name: StoredTensor(tuple(opened.get_slice(name).get_shape()), partial(opened.get_tensor, name))
            for name in opened.keys()  # noqa: SIM118 - not a mapping
        }
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} can't be read: {error}; fetch it again") from None


def _of_pickle(path: Path) -> dict[str, StoredTensor]:
    # Mapped into memory: the system reads a tensor's pages when they are used, and may forget them again.
    weights = read_pickled(path)
    return {name: StoredTensor(tuple(tensor.shape), tensor.clone) for name, tensor in weights.items()}
