"""A pipeline's file: stages, each a command of `phf` with its arguments, and what they share."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from phf_ray.config.base import Section
from phf_ray.errors import ConfigError

_REFERENCE = re.compile(r"\$?\$\{([^}]*)\}")

Lookup = Callable[[str], Any]
"""`output`, `values.NAME` or `stages.NAME.output` -> what it stands for. Raises ConfigError if there is none."""


class PipelineStage(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    command: str
    """A command of `phf`, such as train-lm."""
    arguments: dict[str, Any] = {}
    """Its options without the dashes: a value, a list of values, true for a flag. null: left out."""
    overrides: dict[str, Any] = {}
    """What its --override says: key of the configuration -> value."""


class PipelineConfig(Section):
    output: str | None = None
    """Folder of the record and of what the stages write; null: out/ and the pipeline's name."""
    values: dict[str, Any] = {}
    """What stages share, as ${values.NAME}. `--set NAME=VALUE` changes one; null: not set."""
    stages: Annotated[tuple[PipelineStage, ...], Field(min_length=1)]
    """In the order in which they run."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, count in Counter(stage.name for stage in self.stages).items():
            if count > 1:
                raise ValueError(f"{count} stages are called {name!r}; give each a name of its own")
        return self


def filled_in(value: Any, lookup: Lookup) -> Any:
    """Replace every ${...} in a value by what it stands for. `$${` is written for `${`.

    A text that is one reference becomes what that stands for, of whatever type.
    """
    if isinstance(value, Mapping):
        return {key: _set(filled_in(one, lookup), one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_set(filled_in(one, lookup), one) for one in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None and not value.startswith("$$"):
        return lookup(whole[1])
    return _REFERENCE.sub(lambda found: _as_text(found, lookup), value)


def _as_text(found: re.Match[str], lookup: Lookup) -> str:
    if found[0].startswith("$$"):
        return found[0][1:]
    return str(_set(lookup(found[1]), found[0]))


def _set(value: Any, asked: Any) -> Any:
    """Return the value. Raises ConfigError if it is null because what it stands for is."""
    if value is None and asked is not None:
        name = str(asked).removeprefix("${values.").removesuffix("}")
        raise ConfigError(f"{asked} is not set; add --set {name}=VALUE")
    return value
