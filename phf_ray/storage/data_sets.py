"""Opens data sets by name: which files hold a split, on the hub at one commit or in a folder.

`datasets` decides which files those are. They are then read by phf-ray's own readers, so a job stops early, resumes
exactly and knows every file by its hash.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from phf_ray.errors import ConfigError, PhfError
from phf_ray.storage.data_set_folders import cached_folders, lists_choices, saved_splits
from phf_ray.storage.data_set_names import HUB_URL, DataSetName, parse_data_set, place_on_hub
from phf_ray.storage.files import open_filesystem
from phf_ray.storage.hub import HubModel, explained, first_line
from phf_ray.storage.licenses import folder_license, license_of_card

log = logging.getLogger(__name__)

_CONVERTED = "refs/convert/parquet"
"""Branch in which the hub keeps its own Parquet copy of a data set: CONFIG/SPLIT/0000.parquet."""
_UNREAD = re.compile(r"\.(csv|tsv|xml|zip|tar|tgz|7z|rar|lance|h5|xlsx)(\.\w+)?$|::", re.IGNORECASE)
"""Files that no reader of phf-ray takes; `::` is a file in an archive."""
_TIMEOUT_S = 10.0

Files = Mapping[str, Sequence[str]]
"""Split -> paths or URLs of its files."""


@dataclass(frozen=True, slots=True)
class DataSet:
    name: str
    """A source that means the same files for ever, if they are on the hub: it has the commit."""
    root: str
    """Folder or URL that `files` are relative to."""
    files: tuple[str, ...]
    license: str | None = None


def open_data_set(source: str, *, option: str) -> DataSet | None:
    """Return the data set that a text names; None if it is a path, a glob or a URL, to be read as it is.

    Asks the hub once in a process. Raises ConfigError, beginning with `option`, if there is no such data set,
    configuration or split, if several are there and none is chosen, or if the hub can't be asked.
    """
    name = parse_data_set(source)
    if name is None and Path(source).is_dir() and lists_choices(Path(source)):
        name = DataSetName(source, is_local=True)
    if name is None:
        return None
    return _in_folder(name, option) if name.is_local else _on_hub(name, option)


def open_source(source: str) -> tuple[AbstractFileSystem, str]:
    """Like `open_filesystem`, but also takes a data set by name, and returns its folder."""
    data_set = open_data_set(source, option="data set")
    return open_filesystem(source if data_set is None else data_set.root)


def _in_folder(name: DataSetName, option: str) -> DataSet:
    folder = Path(name.place).resolve()
    saved = saved_splits(folder)
    if saved is None:
        config, splits = _by_datasets(str(folder), name, option, revision=None)
    elif name.config is not None:
        raise ConfigError(
            f"{option} {name.with_choice(name.config, name.split)}: a folder that `datasets` saved has splits and no "
            f"configurations; give {name.with_choice(None, name.split or next(iter(saved)))}"
        )
    else:
        config, splits = None, saved
    split = _chosen_split(name, config, splits, option)
    return DataSet(
        DataSetName(str(folder)).with_choice(config, split),
        str(folder),
        tuple(str(Path(file).relative_to(folder)) for file in splits[split]),
        folder_license(folder),
    )


@lru_cache
def _on_hub(name: DataSetName, option: str) -> DataSet:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api: Any = HfApi()
    shown = name.with_choice(name.config, name.split)
    try:
        # Also tells the name of today of a data set that had another: wikitext is Salesforce/wikitext.
        info = api.dataset_info(name.place, revision=name.revision, timeout=_TIMEOUT_S, expand=["sha"])
        api.auth_check(info.id, repo_type="dataset")
        config, splits = _by_datasets(info.id, name, option, revision=info.sha)
        root = f"{HUB_URL}{info.id}@{info.sha}"
        if config is None:
            why = f"is a program ({info.id.rpartition('/')[2]}.py), which neither phf-ray nor `datasets` runs"
            return _converted(api, info.id, name, option, why=why)
        split = _chosen_split(name, config, splits, option)
        unread = next((file for file in splits[split] if _UNREAD.search(file)), None)
        if unread is not None:
            why = f"has files that phf-ray does not read ({unread.rpartition('/')[2]})"
            return _converted(api, info.id, replace(name, config=config, split=split), option, why=why)
        files = tuple(file.removeprefix(f"{root}/") for file in splits[split])
        return DataSet(f"{root}:{config}@{split}", root, files, _license(info.id, info.sha))
    except PhfError:
        raise
    except Exception as error:  # noqa: BLE001  (border of libraries, whose errors come from several others)
        cached = cached_folders(name)
        if not cached or isinstance(error, HfHubHTTPError):
            raise _explained(error, name, option) from None
        why = f"the hub can't be asked ({first_line(error)})"
        data_set = _in_cache(cached, name, option, why=why)
        log.warning("%s: reading %s from the cache of `datasets`, at %s", why, shown, Path(data_set.root).name)
        return data_set


def _in_cache(cached: Sequence[Path], name: DataSetName, option: str, *, why: str) -> DataSet:
    """Return the data set in one of the folders CONFIG/VERSION/COMMIT. `why`: why the hub was not asked."""
    shown = name.with_choice(name.config, name.split)
    fitting = [folder for folder in cached if name.revision is None or folder.name == name.revision]
    if not fitting:
        commits = _listed(
            [replace(name, revision=folder.name).with_choice(folder.parents[1].name, name.split) for folder in cached]
        )
        raise ConfigError(f"{option} {shown}: {why}, and the cache of `datasets` has other commits; give {commits}")
    configs = sorted({folder.parents[1].name for folder in fitting})
    if len(configs) > 1:
        choices = _listed([name.with_choice(config, name.split) for config in configs])
        raise ConfigError(f"{option} {shown}: {why}; the cache has several configurations; give one of {choices}")
    folder = fitting[0].resolve()
    # The folder holds one configuration, so that its files have none.
    config, splits = _by_datasets(str(folder), replace(name, config=None), option, revision=None)
    split = _chosen_split(name, name.config, splits, option)
    return DataSet(
        DataSetName(str(folder)).with_choice(config, split),
        str(folder),
        tuple(str(Path(file).relative_to(folder)) for file in splits[split]),
        folder_license(folder),
    )


def _explained(error: Exception, name: DataSetName, option: str) -> Exception:
    from huggingface_hub.errors import HfHubHTTPError

    download = f"hf download {name.place} --repo-type dataset --local-dir DIR"
    remedy = f"run `{download}` on a machine with internet, and give DIR in place of the name"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        model = HubModel(name.place, name.revision)
        return explained(error, model, option=option, remedy=remedy, page="datasets/")
    return ConfigError(
        f"{option} {name.with_choice(name.config, name.split)} does not exist here, and the hub can't be asked for a "
        f"data set of that name ({first_line(error)}); give a folder, a file, a quoted glob or a URL, or {remedy}"
    )


def _by_datasets(
    place: str, name: DataSetName, option: str, *, revision: str | None
) -> tuple[str | None, dict[str, list[str]]]:
    """Return the configuration and its splits. No configuration: the data set is a program, which nothing runs."""
    from datasets import get_dataset_config_names, load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError

    shown = name.with_choice(name.config, name.split)
    try:
        builder = load_dataset_builder(place, name.config, revision=revision)
        found = builder.config.data_files or {}
        return str(builder.config.name), {str(split): [str(file) for file in files] for split, files in found.items()}
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return None, {}
    except ValueError as error:
        configs = get_dataset_config_names(place, revision=revision)
        choices = _listed([name.with_choice(config, name.split) for config in configs])
        if name.config is None and len(configs) > 1:
            raise ConfigError(f"{option} {shown} has several configurations; give one of {choices}") from None
        if name.config is not None and name.config not in configs:
            raise ConfigError(f"{option} {shown}: no configuration {name.config!r}; give one of {choices}") from None
        raise ConfigError(f"{option} {shown}: `datasets` can't say what it holds: {first_line(error)}") from None
    except (FileNotFoundError, DatasetNotFoundError) as error:
        remedy = (
            f"give {HUB_URL}{place} to read its files as they are" if not name.is_local else "give its folder alone"
        )
        raise ConfigError(f"{option} {shown}: `datasets` finds no data files ({first_line(error)}); {remedy}") from None


def _converted(api: Any, identifier: str, name: DataSetName, option: str, *, why: str) -> DataSet:
    """Return the hub's own Parquet copy of a data set. `why`: why the data set itself can't be read."""
    from huggingface_hub.errors import RevisionNotFoundError

    shown = name.with_choice(name.config, name.split)
    if name.revision is not None:
        raise ConfigError(
            f"{option} {shown} {why}, and the hub's Parquet copy is of the newest revision; leave out the revision"
        )
    try:
        sha = api.dataset_info(identifier, revision=_CONVERTED, timeout=_TIMEOUT_S, expand=["sha"]).sha
        listed = api.list_repo_files(identifier, revision=sha, repo_type="dataset")
    except RevisionNotFoundError:
        raise ConfigError(
            f"{option} {shown} {why}, and the hub has no Parquet copy of it; convert it elsewhere, and give the folder "
            "of its files"
        ) from None
    tables = [path.split("/") for path in sorted(listed) if re.fullmatch(r"[^/]+/[^/]+/[^/]+\.parquet", path)]
    configs = list(dict.fromkeys(config for config, _, _ in tables))
    config = name.config or (configs[0] if len(configs) == 1 else None)
    if config not in configs:
        what = "has several configurations" if name.config is None else f": no configuration {name.config!r}"
        choices = _listed([name.with_choice(one, name.split) for one in configs])
        raise ConfigError(f"{option} {shown} {what}; give one of {choices}")
    splits: dict[str, list[str]] = {}
    for one, split, file in tables:
        if one == config:
            splits.setdefault(split, []).append(file)
    split = _chosen_split(name, config, splits, option)
    root = f"{HUB_URL}{identifier}@{sha}/{config}/{split}"
    log.info("%s %s; reading the hub's Parquet copy of it", shown, why)
    return DataSet(root, root, tuple(splits[split]), _license(identifier, None))


def _chosen_split(name: DataSetName, config: str | None, splits: Files, option: str) -> str:
    shown = name.with_choice(name.config, name.split)
    if name.split in splits:
        return str(name.split)
    if name.split is None and len(splits) == 1:
        return next(iter(splits))
    choices = _listed([name.with_choice(name.config and config, split) for split in splits])
    if not splits:
        raise ConfigError(f"{option} {shown} has no data files")
    if name.split is None:
        raise ConfigError(f"{option} {shown} has several splits; give one of {choices}")
    raise ConfigError(f"{option} {shown}: no split {name.split!r}; give one of {choices}")


def _listed(names: Sequence[str], *, most: int = 30) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@lru_cache
def license_on_hub(url: str) -> str | None:
    """Return the licence that the card states of the data set in which a folder or file of the hub lies.

    Raises ConfigError if there is no such data set, ServiceError if the hub can't be asked.
    """
    place = place_on_hub(url)
    if place is None:
        return None
    try:
        card = _card(place.place, place.revision)
        if card is None and place.revision is not None:
            card = _card(place.place, None)  # the hub's Parquet copy has none of its own
    except Exception as error:  # noqa: BLE001  (border of libraries, whose errors come from several others)
        model = HubModel(place.place, place.revision)
        remedy = "give a folder with its files"
        raise explained(error, model, option="data set", remedy=remedy, page="datasets/") from None
    return None if card is None else license_of_card(card)


def _license(identifier: str, sha: str | None) -> str | None:
    card = _card(identifier, sha)
    return None if card is None else license_of_card(card)


def _card(identifier: str, revision: str | None) -> str | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        card = hf_hub_download(identifier, "README.md", repo_type="dataset", revision=revision)
    except RemoteEntryNotFoundError:
        return None
    return Path(card).read_text(encoding="utf-8", errors="replace")
