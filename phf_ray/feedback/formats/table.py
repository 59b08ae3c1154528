"""All formats by name, and the one that a record is in."""

from collections.abc import Mapping, Sequence

from phf_ray.errors import ConfigError
from phf_ray.feedback.formats.alpaca import ALPACA
from phf_ray.feedback.formats.arena import ARENA
from phf_ray.feedback.formats.base import FeedbackFormat, Record
from phf_ray.feedback.formats.battles import BATTLES
from phf_ray.feedback.formats.fields import FIELDS
from phf_ray.feedback.formats.helpsteer2 import HELPSTEER2, HELPSTEER2_PREFERENCE
from phf_ray.feedback.formats.helpsteer3 import HELPSTEER3
from phf_ray.feedback.formats.hh import HH
from phf_ray.feedback.formats.nectar import NECTAR
from phf_ray.feedback.formats.pku import PKU, PKU_SAFER
from phf_ray.feedback.formats.plain import PLAIN
from phf_ray.feedback.formats.rated import DISTILABEL, TULU, ULTRAFEEDBACK
from phf_ray.feedback.formats.shp import SHP
from phf_ray.feedback.formats.tldr import TLDR
from phf_ray.feedback.formats.trl import TRL
from phf_ray.feedback.formats.ultrafeedback_raw import ULTRAFEEDBACK_RAW
from phf_ray.feedback.formats.webgpt import WEBGPT

AUTO = "auto"
FORMATS: Mapping[str, FeedbackFormat] = {
    "fields": FIELDS,
    "plain": PLAIN,
    "alpaca": ALPACA,
    "helpsteer2": HELPSTEER2,
    "helpsteer2-preference": HELPSTEER2_PREFERENCE,
    "helpsteer3": HELPSTEER3,
    "nectar": NECTAR,
    "pku": PKU,
    "pku-safer": PKU_SAFER,
    "tldr": TLDR,
    "webgpt": WEBGPT,
    "shp": SHP,
    "battles": BATTLES,
    "arena": ARENA,
    "hh": HH,
    "ultrafeedback": ULTRAFEEDBACK,
    "ultrafeedback-raw": ULTRAFEEDBACK_RAW,
    "tulu": TULU,
    "distilabel": DISTILABEL,
    "trl": TRL,
}
"""In the order in which they are tried: the first that fits is taken. What asks for more columns comes first."""


def formats_of(record: Record) -> list[str]:
    """Return the names of the formats that a record is in, by its columns; the first is to be taken."""
    return [name for name, one in FORMATS.items() if one.columns_in(record) is not None and one.fits(record)]


def format_of(record: Record) -> str | None:
    """Return the name of the format to be taken; None if there is none."""
    return next(iter(formats_of(record)), None)


def unknown_columns(columns: Sequence[str], *, where: str, wanted: str) -> ConfigError:
    known = "; ".join(f"{name}: {one}" for name, one in FORMATS.items())
    asked = "no format has" if wanted == AUTO else f"--format {wanted} does not have"
    return ConfigError(
        f"{where}: {asked} the columns {', '.join(map(repr, columns)) or 'of records without columns'}; the formats "
        f"and their columns are {known}; rename the columns"
        + ("" if wanted == AUTO else f", or give another --format or --format {AUTO}")
    )
