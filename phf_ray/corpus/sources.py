"""Where the documents of a corpus come from: data sets, each at one commit, and their licences."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.storage.data_set_names import absolute_source, is_hub_url, parse_data_set, short_name
from phf_ray.storage.data_sets import DataSet, license_on_hub, open_data_set
from phf_ray.storage.files import open_filesystem, write_text
from phf_ray.storage.licenses import folder_license

log = logging.getLogger(__name__)


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
    if is_hub_url(source):
        license = license_on_hub(source)
        # Files that are read as they are have no pin, so the source has no root that would be one.
        return {} if license is None else {source: Source(source, "", license)}
    folder = Path(source)
    license = folder_license(folder) if "://" not in source and folder.is_dir() else None
    return {} if license is None else {source: Source(folder.resolve().name, str(folder.resolve()), license)}


def pinned_sources(sources: Sequence[str], *, option: str, memory: str, remembers: bool) -> dict[str, str]:
    """Return source -> the same at one commit, or with an absolute path.

    `memory`: file that remembers the commits for the next start. `remembers`: whether to write it.
    """
    filesystem, inner = open_filesystem(memory)
    known = dict(json.loads(filesystem.cat_file(inner))) if filesystem.exists(inner) else {}
    pins = {source: known[source] for source in sources if source in known}
    for source in sources:
        name = parse_data_set(source)
        if name is not None and not name.is_local and source not in pins:
            data_set = open_data_set(source, option=option)
            assert data_set is not None, source
            pins[source] = data_set.name
            log.info("%s: reading %s", source, data_set.name)
    if remembers and pins.items() - known.items():
        write_text(memory, json.dumps({**known, **pins}) + "\n")
    return {source: pins.get(source) or absolute_source(source) for source in sources}


def with_license(sources: Mapping[str, Source], inputs: Iterable[str], license: str) -> dict[str, Source]:
    """Return the sources with a licence that the user states for all inputs."""
    return {
        source: replace(sources.get(source) or Source(short_name(source), ""), license=license) for source in inputs
    }


def described(sources: Mapping[str, Source]) -> list[dict[str, str]]:
    """Return what a manifest says of the sources: nothing that only this machine understands."""
    return [{"name": one.name} | ({} if one.license is None else {"license": one.license}) for one in sources.values()]


def sources_of(path: str, manifest: CorpusManifest) -> tuple[dict[str, str], ...]:
    """Return the sources that a corpus names; of a data set without a manifest, the data set itself."""
    if manifest.sources:
        return tuple(map(dict, manifest.sources))
    return tuple(described(known_source(path, open_data_set(path, option="data set"))))
