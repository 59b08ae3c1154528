"""Lines that the data cards of all corpora have: the front matter, and where the rows come from."""

import json
from collections.abc import Iterator, Mapping, Sequence

from phf_ray.storage.licenses import front_matter, license_warning, licenses_of


def front_lines(sources: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the front matter, which keeps `datasets.load_dataset` from reading rejected/ as data."""
    return [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front_matter(licenses_of(sources)).items()),
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: part-*.parquet",
        "---",
    ]


def source_lines(sources: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield where the rows come from, under which licence, and what that forbids."""
    for one in sources:
        yield f"- from `{one['name']}`, licence {one.get('license', 'unknown')}"
    if sources:
        yield ""
    warning = license_warning(licenses_of(sources))
    if warning:
        yield from (f"**Warning**: {warning}.", "")
