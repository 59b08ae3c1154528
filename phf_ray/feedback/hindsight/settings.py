"""What decides the records that a comparison makes."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from phf_ray.config import FeedbackForm, Phrases
from phf_ray.errors import ConfigError

COH = "coh"
"""Value of `--to`."""
ORDERS = ("p", "n", "pn", "np")
"""The good answer, the bad one, good before bad, bad before good."""
HINDSIGHT, RATING = "aux", "rating"
KINDS = (*ORDERS, HINDSIGHT, RATING)
DEFAULT_KINDS = (*ORDERS, HINDSIGHT)


@dataclass(frozen=True, slots=True)
class HindsightSettings:
    kinds: tuple[str, ...]
    """Of KINDS."""
    phrases: str
    """The phrases as JSON: other words make other records."""
    seed: int = 0
    """Draws the requests for summaries and the introductions of sources."""
    form: FeedbackForm | None = None
    """None: as the format of the input and the prompt of a row say."""
    compat: Literal["coh"] | None = None
    """coh: turns that both dialogues share are labelled and learned as those after them, as in the original."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ConfigError(f"--include-feedback {unknown[0]!r} is unknown; give some of {','.join(KINDS)}")
        if not {*self.kinds} - {HINDSIGHT}:
            given = ",".join(self.kinds)
            raise ConfigError(
                f"--include-feedback {given!r} makes no record: aux says which words stand in place of the markers of "
                f"the others; add some of {','.join(ORDERS)}, or rating"
            )

    @classmethod
    def of(cls, kinds: str, phrases: Phrases, **others: Any) -> Self:
        """`kinds`: as a user writes them, separated by commas."""
        named = tuple(dict.fromkeys(kind.strip() for kind in kinds.split(",") if kind.strip()))
        return cls(named, json.dumps(phrases.model_dump(mode="json"), sort_keys=True), **others)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "kinds": tuple(values["kinds"])})

    @property
    def words(self) -> Phrases:
        return _words(self.phrases)


@functools.lru_cache(maxsize=4)
def _words(phrases: str) -> Phrases:
    return Phrases.model_validate(json.loads(phrases))
