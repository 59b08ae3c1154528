"""Finds a scorer in the user's own module, named `my_module:MyScorer` in configurations."""

import importlib
import inspect
from types import ModuleType
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.scorers.base import Scorer


def outside_scorer(name: str) -> type[Scorer]:
    """Import and return the class `my_module:MyScorer`. The import runs the module's code.

    Raises ConfigError that names what is missing: the module, the class in it, or an attribute that scorers must have.
    """
    module, class_name = named_in_module(name, kind="scorer")
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(
            f"scorer class_name {name!r}: the module {module.__name__!r} has no {class_name}; {_scorers_in(module)}"
        )
    if not (inspect.isclass(found) and issubclass(found, Scorer)):
        raise ConfigError(
            f"scorer class_name {name!r}: {class_name} is not a subclass of phf_ray.scorers.Scorer but {found!r}; "
            f"{_scorers_in(module)}"
        )
    _check(found, name)
    return found


def named_in_module(name: str, *, kind: str) -> tuple[ModuleType, str]:
    """Import the module of `my_module:MyClass`, and return it with the name of the class. The import runs its code.

    `kind`: what the class is, for errors, such as scorer. Raises ConfigError if the name is none, or the module fails.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name.isidentifier():
        raise ConfigError(
            f"{kind} class_name {name!r} does not name a class in a module; write my_module:My{kind.capitalize()}"
        )
    try:
        return importlib.import_module(module_name), class_name
    except Exception as error:
        raise ConfigError(
            f"{kind} class_name {name!r}: the module {module_name!r} can't be imported "
            f"({type(error).__name__}: {error}); it must be importable on every node: add its folder to PYTHONPATH, "
            "or to working_dir or py_modules of Ray's runtime_env"
        ) from error


def derived_in_module(name: str, base: type[Any], *, kind: str, home: str) -> type[Any]:
    """Import and return the class `my_module:MyClass`, which must derive from `base`. The import runs its code.

    `home`: where users import the base class from. Raises ConfigError that says what is missing: module or class.
    """
    module, class_name = named_in_module(name, kind=kind)
    found = getattr(module, class_name, None)
    if inspect.isclass(found) and issubclass(found, base):
        return found
    known = [key for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, base)]
    raise ConfigError(
        f"{kind} class_name {name!r}: {module.__name__} has no class {class_name} derived from {home}; "
        f"its {kind}s are {', '.join(sorted(set(known) - {base.__name__})) or 'none'}"
    )


def _scorers_in(module: object) -> str:
    classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    names = [name for name, value in classes.items() if issubclass(value, Scorer) and value is not Scorer]
    return f"its scorers are {', '.join(sorted(names))}" if names else "it has no scorers"


def _check(scorer: type[Scorer], name: str) -> None:
    missing = [known for known in ("Settings", "unit", "packages") if not hasattr(scorer, known)]
    missing += sorted(scorer.__abstractmethods__)
    if missing:
        raise ConfigError(f"scorer class_name {name!r}: the class lacks {', '.join(missing)}; see docs/extend.md")
    for flag, field in (("runs_on_device", "device"), ("uses_reference_date", "reference_date")):
        if getattr(scorer, flag) and field not in scorer.Settings.model_fields:
            raise ConfigError(
                f"scorer class_name {name!r}: {flag} is True, but {scorer.Settings.__name__} has no field {field!r}; "
                "add the field, or remove the attribute"
            )
