"""The models that the paper's authors published, by task: `configs/released.yml`."""

from dataclasses import dataclass

import yaml

from phf_ray.checkpoint import Control
from phf_ray.config.shipped import shipped_folder
from phf_ray.errors import ConfigError

FILE = "released.yml"
CONDITIONAL = "conditional"


@dataclass(frozen=True, slots=True)
class ReleasedModels:
    """The six models of a task."""

    ids: dict[str, str]
    """Objective -> name on the hub."""
    controls: dict[str, Control]
    """Objective -> control tokens, of the conditional model alone."""


def released_models(task: str) -> ReleasedModels:
    """Return the models of a task. Raises ConfigError for a task without published models."""
    values = yaml.safe_load((shipped_folder() / FILE).read_text(encoding="utf-8"))
    if task not in values:
        raise ConfigError(f"--released {task}: the paper's authors published models of {', '.join(values)}")
    entry = values[task]
    return ReleasedModels(dict(entry["models"]), {CONDITIONAL: Control.model_validate(entry["control"])})
