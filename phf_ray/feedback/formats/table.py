"""All formats by name, and the one that a record is in."""

from collections.abc import Mapping, Sequence

from phf_ray.errors import ConfigError
from phf_ray.feedback.formats.alpaca import ALPACA
from phf_ray.feedback.formats.base import FeedbackFormat, Record
from phf_ray.feedback.formats.hh import HH
from phf_ray.feedback.formats.plain import PLAIN
from phf_ray.feedback.formats.trl import TRL

AUTO = "auto"
FORMATS: Mapping[str, FeedbackFormat] = {"plain": PLAIN, "alpaca": ALPACA, "hh": HH, "trl": TRL}
"""In the order in which they are tried: the first that fits is taken."""


def format_of(record: Record) -> str | None:
    """Return the name of the format that a record is in, by its columns; None if it is in none."""
    for name, one in FORMATS.items():
        if one.has_columns(record) and one.fits(record):
            return name
    return None


def unknown_columns(columns: Sequence[str], *, where: str, wanted: str) -> ConfigError:
    known = "; ".join(f"{name}: {one}" for name, one in FORMATS.items())
    asked = "no format has" if wanted == AUTO else f"--format {wanted} does not have"
    return ConfigError(
        f"{where}: {asked} the columns {', '.join(map(repr, columns)) or 'of records without columns'}; the formats "
        f"and their columns are {known}; rename the columns"
        + ("" if wanted == AUTO else f", or give another --format or --format {AUTO}")
    )
