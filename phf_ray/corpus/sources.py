"""Where the documents of a corpus come from: data sets, each at one commit, and their licences."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phf_ray.storage.data_sets import DataSet
from phf_ray.storage.licenses import folder_license


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    """What a reader elsewhere understands: a data set of the hub with its commit, or a folder's own name."""
    root: str
    """Folder or URL of the files."""
    license: str | None = None


def known_source(source: str, data_set: DataSet | None) -> dict[str, Source]:
    """Return input -> source; empty if the input is no data set and its licence is not known."""
    if data_set is not None:
        name = data_set.name if "://" in data_set.name else data_set.name.removeprefix(f"{Path(data_set.root).parent}/")
        return {source: Source(name, data_set.root, data_set.license)}
    folder = Path(source)
    license = folder_license(folder) if "://" not in source and folder.is_dir() else None
    return {} if license is None else {source: Source(folder.resolve().name, str(folder.resolve()), license)}


def described(sources: Mapping[str, Source]) -> list[dict[str, str]]:
    """Return what a manifest says of the sources: nothing that only this machine understands."""
    return [{"name": one.name} | ({} if one.license is None else {"license": one.license}) for one in sources.values()]
