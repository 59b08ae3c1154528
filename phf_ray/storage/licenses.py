"""Licences of data: read from the card of a data set, and carried to everything that is made from it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_FRONT = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_NON_COMMERCIAL = re.compile(r"(^|[^a-z])nc([^a-z]|$)|non-?commercial")


def card_metadata(card: str) -> dict[str, Any]:
    """Return the front matter of a card; empty if it has none, or one that can't be read."""
    matched = _FRONT.match(card)
    try:
        found = yaml.safe_load(matched[1]) if matched else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def license_of_card(card: str) -> str | None:
    """Return the licence that a card names: `cc-by-nc-4.0`, `mit, apache-2.0`, `other (name)`. None: it names none."""
    metadata = card_metadata(card)
    license = metadata.get("license")
    names = [str(one) for one in (license if isinstance(license, list) else [license]) if one]
    if metadata.get("license_name") and names == ["other"]:
        return f"other ({metadata['license_name']})"
    return ", ".join(names) or None


def folder_license(folder: Path) -> str | None:
    """Return the licence that the folder's card names, as in a clone of the hub's repository."""
    card = folder / "README.md"
    return license_of_card(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None


def is_non_commercial(license: str) -> bool:
    """Whether a licence says by its name that it forbids commercial use. Owners' own, `other`, are not judged."""
    name = license.lower()
    return not name.startswith("other") and _NON_COMMERCIAL.search(name) is not None


def union(licenses: Iterable[str]) -> tuple[str, ...]:
    """Return each licence once, in order."""
    return tuple(dict.fromkeys(one for text in licenses for one in text.split(", ") if one))


def licenses_of(sources: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Return the licences of the sources that a manifest names, each once."""
    return union(one["license"] for one in sources if "license" in one)


def license_facts(licenses: Sequence[str]) -> dict[str, Any]:
    """Return what a summary says of some licences: `licenses`, and `warnings` if one forbids commercial use."""
    warning = license_warning(licenses)
    return ({"licenses": list(licenses)} if licenses else {}) | ({"warnings": [warning]} if warning else {})


def license_warning(licenses: Iterable[str]) -> str | None:
    """Return a warning if a licence forbids commercial use; None if none says so by its name."""
    forbidding = [one for one in licenses if is_non_commercial(one)]
    if not forbidding:
        return None
    return (
        f"the licence of the data ({', '.join(forbidding)}) forbids commercial use: of the data, and perhaps of "
        "what is made from it"
    )


def front_matter(licenses: Iterable[str]) -> dict[str, Any]:
    """Return the entries of a card's front matter for some licences, as a hub reads them; empty if there are none."""
    names = list(dict.fromkeys("other" if one.startswith("other") else one for one in licenses))
    return {} if not names else {"license": names[0] if len(names) == 1 else names}
