"""Names of data sets: `ID[:CONFIG][@SPLIT]` of the Hugging Face hub, or `FOLDER[:CONFIG][@SPLIT]` of a folder here.

    wikitext:wikitext-2-raw-v1@train              an old name without an owner
    allenai/c4:en@validation
    hf://datasets/owner/name@3f1c0de:en@train     the same at a branch, tag or commit
    clones/c4:en@train                            a local clone of the hub's repository
    saved@test                                    a folder that `datasets` saved

A path that exists wins: a folder really named `a@b` is that folder, and a split of it is `a@b@train`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from phf_ray.storage.listing import is_glob

HUB_URL = "hf://datasets/"

_CONFIG = r"[^@:/\s]+"
_SPLIT = r"\w+(?:\.\w+)*"
_CHOICE = re.compile(rf"(?P<place>.+?)(?::(?P<config>{_CONFIG}))?(?:@(?P<split>{_SPLIT}))?")
# A name without an owner has no dot: `data.jsonl` is a file that does not exist, not a data set.
_ID = r"(?:[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*|[A-Za-z0-9][\w-]*)"
_ON_HUB = re.compile(rf"(?P<id>{_ID})(?::(?P<config>{_CONFIG}))?(?:@(?P<split>{_SPLIT}))?")
_FILE = re.compile(r"\.(jsonl?|ndjson|jsonlines|parquet|arrow|feather|csv|tsv|txt|md|py|ya?ml|gz|zst|bz2|xz|zip)$")
_URL = re.compile(rf"{HUB_URL}(?P<id>{_ID})(?:@(?P<revision>[\w./-]+))?:(?P<config>{_CONFIG})(?:@(?P<split>{_SPLIT}))?")

_PLACE = re.compile(
    rf"{HUB_URL}(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?P<inside>/.*)?"
)


@dataclass(frozen=True, slots=True)
class DataSetName:
    place: str
    """Id on the hub, or a folder."""
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    is_local: bool = False

    def with_choice(self, config: str | None, split: str | None) -> str:
        """Return the text that names another configuration or split of the data set."""
        place = self.place if self.revision is None else f"{HUB_URL}{self.place}@{self.revision}"
        return f"{place}{f':{config}' if config else ''}{f'@{split}' if split else ''}"


def parse_data_set(text: str) -> DataSetName | None:
    """Return the data set that a text names, or None if it is a path, a glob or any other URL."""
    if matched := _URL.fullmatch(text):
        return DataSetName(matched["id"], matched["config"], matched["split"], matched["revision"])
    if "://" in text or Path(text).exists():
        return None
    return _in_folder(text) or hub_data_set(text)


def _in_folder(text: str) -> DataSetName | None:
    """Return the choice within a folder that exists. The longest such folder wins: it may contain `:` and `@`."""
    before_split, at, split = text.rpartition("@")
    for place, rest in ((before_split, f"{at}{split}"), (text.rpartition(":")[0], text[text.rfind(":") :])):
        matched = _CHOICE.fullmatch(f"x{rest}")
        if place and matched is not None and matched["place"] == "x" and Path(place).is_dir():
            return DataSetName(place, matched["config"], matched["split"], is_local=True)
    return None


def hub_data_set(text: str) -> DataSetName | None:
    """Return the hub's data set of this name, or None. What lies below a folder that exists is a path."""
    matched = None if _FILE.search(text) else _ON_HUB.fullmatch(text)
    if matched is None or is_glob(text) or Path(text).exists() or Path(matched["id"].partition("/")[0]).exists():
        return None
    return DataSetName(matched["id"], matched["config"], matched["split"])


def place_on_hub(url: str) -> DataSetName | None:
    """Return the data set in which a folder or file of the hub lies, by the URL; None if this is no such URL."""
    matched = _PLACE.fullmatch(url)
    return None if matched is None else DataSetName(matched["id"], revision=unquote(matched["revision"] or "") or None)


def short_name(source: str) -> str:
    """Return the last part of a path or URL; of a data set of the hub `owner/name:config@split`, without the commit.

    A folder or file of one is `owner/name/folder`.
    """
    name = parse_data_set(source)
    if name is None and (matched := _PLACE.fullmatch(source.rstrip("/"))):
        return f"{matched['id']}{matched['inside'] or ''}"
    if name is None or name.is_local:
        return source.rstrip("/").rpartition("/")[2]
    return DataSetName(name.place).with_choice(name.config, name.split)


def is_hub_url(text: str) -> bool:
    """Whether the text is the URL of a folder or file of a data set on the hub, to be read as it is."""
    return text.startswith(HUB_URL)


def absolute_source(text: str) -> str:
    """Return a source with an absolute path, for workers in other folders. Names of the hub and URLs stay."""
    name = parse_data_set(text)
    if name is not None and name.is_local:
        return DataSetName(str(Path(name.place).resolve())).with_choice(name.config, name.split)
    return text if name is not None or "://" in text else str(Path(text).resolve())
