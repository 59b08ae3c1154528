"""Finds a rewarder in the user's own module, named `my_module:MyRewarder`."""

from collections.abc import Mapping
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.rollouts.rewards.base import Rewarder
from phf_ray.scorers.outside import derived_in_module


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
    home = "phf_ray.rollouts.rewards.Rewarder"
    found: type[Rewarder] = derived_in_module(name, Rewarder, kind="rewarder", home=home)
    return found
