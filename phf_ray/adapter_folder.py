"""The folder of an adapter: what its adapter_config.json says, and where its base model lies.

This module imports no torch.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.hub import fetch_hub_model, parse_hub_model

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CLASSIFIER_TASK = "SEQ_CLS"
"""peft's task_type of classifiers of texts."""


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """The model that an adapter changes."""

    name: str
    """Folder or hub name, as adapter_config.json has it."""
    revision: str | None = None

    def folder(self, *, option: str) -> Path:
        """Return the model's folder, fetched from the hub if need be. Errors begin with `option`.

        Raises ConfigError if there is no such model, ServiceError if the hub can't be asked.
        """
        folder = Path(self.name)
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ConfigError(f"{option} {self.name}: the folder has no config.json; give that of a whole model")
            return folder.resolve()
        named = None if folder.is_absolute() else parse_hub_model(self.name)
        if named is None:
            raise ConfigError(f"{option} {self.name}: there is no such folder; {_REMEDY}")
        if named.revision is None and self.revision is not None:
            named = type(named)(named.id, self.revision)
        return fetch_hub_model(named, option=option)


_REMEDY = (
    "put the base model back there, or name its folder: phf merge-adapter --checkpoint DIR --base DIR --output DIR"
)


def is_adapter(source: str | Path) -> bool:
    """Return whether this is the folder of an adapter alone."""
    folder = Path(source)
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def judges_texts(folder: str | Path) -> bool:
    """Return whether the adapter is that of a classifier, such as a reward model, and not of a language model.

    Raises DataError if its configuration can't be read.
    """
    return _described(Path(folder) / ADAPTER_CONFIG).get("task_type") == CLASSIFIER_TASK


def base_of(folder: str | Path) -> AdapterBase:
    """Return the base model that the adapter's folder names. Raises DataError if it names none."""
    path = Path(folder) / ADAPTER_CONFIG
    stored = _described(path)
    kind, name = stored.get("peft_type"), stored.get("base_model_name_or_path")
    if kind != "LORA":
        raise DataError(f"{path}: peft_type is {kind!r}, and only LORA can be loaded; merge it where it was trained")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{path} names no base model (base_model_name_or_path); write the base's folder or hub name there"
        )
    revision = stored.get("revision")
    return AdapterBase(name, revision if isinstance(revision, str) else None)


def _described(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not an adapter's configuration: {error}; fetch it again") from None
    if not isinstance(stored, dict):
        raise DataError(f"{path} is not an adapter's configuration: it holds no names; fetch it again")
    return stored


def base_folder(folder: str | Path, *, option: str | None = None) -> Path:
    """Return the folder of an adapter's base model. Raises like `base_of` and `AdapterBase.folder`.

    `option`: the option that named the adapter; errors begin with it.
    """
    shown = f"{folder}" if option is None else f"{option} {folder}"
    return base_of(folder).folder(option=f"{shown}: base_model_name_or_path")


def model_or_base(folder: str | Path) -> Path:
    """Return the folder itself, or that of its base model if it is an adapter's."""
    return base_folder(folder) if is_adapter(folder) else Path(folder)
