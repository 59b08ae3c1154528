"""Data sets in folders: those that `datasets` saved, its cache, and local clones of the hub's repositories."""

import json
import re
from pathlib import Path
from typing import Any

from phf_ray.storage.data_set_names import DataSetName
from phf_ray.storage.licenses import card_metadata


def saved_splits(folder: Path) -> dict[str, list[str]] | None:
    """Return split -> files of a folder that `save_to_disk` wrote; None for other folders."""
    listed = folder / "dataset_dict.json"
    if listed.is_file():
        return {split: _saved_files(folder / split) for split in json.loads(listed.read_text())["splits"]}
    if (folder / "state.json").is_file():
        return {_state(folder).get("_split") or "train": _saved_files(folder)}
    return None


def _saved_files(folder: Path) -> list[str]:
    return [str(folder / file["filename"]) for file in _state(folder)["_data_files"]]


def _state(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "state.json").read_text()))


def lists_choices(folder: Path) -> bool:
    """Whether the folder's card lists several configurations or splits, as a clone of the hub's repository may."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    configs = card_metadata(card.read_text(encoding="utf-8", errors="replace")).get("configs")
    if not isinstance(configs, list):
        return False
    files = [one.get("data_files") for one in configs if isinstance(one, dict)]
    return len(configs) > 1 or any(
        isinstance(one, list) and sum(isinstance(file, dict) for file in one) > 1 for one in files
    )


def cached_folders(name: DataSetName) -> list[Path]:
    """Return the folders CONFIG/VERSION/COMMIT with the data set in the cache that `datasets` fills, newest first.

    All commits, whichever the name asks for; all configurations if it asks for none.
    """
    from datasets.config import HF_DATASETS_CACHE
    from datasets.naming import camelcase_to_snakecase

    *owner, last = name.place.split("/")
    folder = Path(HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(last)])
    config = "*" if name.config is None else re.sub(r"[\[\]*?]", "?", name.config)
    found = [path for path in folder.glob(f"{config}/*/*") if any(path.glob("*.arrow"))]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
