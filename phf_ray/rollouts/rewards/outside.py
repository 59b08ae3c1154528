"""Finds a rewarder in the user's own module, named `my_module:MyRewarder`."""

import inspect
from collections.abc import Mapping
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.rollouts.rewards.base import Rewarder
from phf_ray.scorers.outside import named_in_module


def outside_rewarder(name: str, settings: Mapping[str, Any]) -> Rewarder:
    """Build `my_module:MyRewarder` with `settings`. Raises ConfigError if it does not take them."""
    found = rewarder_class(name)
    try:
        return found(**settings)
    except TypeError as error:
        raise ConfigError(f"rewarder class_name {name!r}: {error}; check `settings` and the class's methods") from error


def rewarder_class(name: str) -> type[Rewarder]:
    """Import and return the class `my_module:MyRewarder`. The import runs the module's code.

    Raises ConfigError that says what is missing: the module, or the class in it.
    """
    module, class_name = named_in_module(name, kind="rewarder")
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Rewarder)):
        known = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Rewarder)]
        rewarders = ", ".join(sorted(set(known) - {"Rewarder"})) or "none"
        raise ConfigError(
            f"rewarder class_name {name!r}: {module.__name__} has no class {class_name} derived from "
            f"phf_ray.rollouts.rewards.Rewarder; its rewarders are {rewarders}"
        )
    return found
