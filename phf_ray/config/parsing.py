"""Parses files and overrides into a `Config`.

Precedence: defaults < task file (which may start with `extends: other.yml`, or `extends: pep8`) < method file <
`a.b=c` overrides. One error reports all problems of a configuration.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from phf_ray.config.algorithms import algorithm_names
from phf_ray.config.replaced import REPLACED
from phf_ray.config.rewards import KINDS
from phf_ray.config.shipped import SUFFIXES, method_path, model_path, task_path
from phf_ray.config.whole import Config
from phf_ray.errors import ConfigError

AnySection = TypeVar("AnySection", bound=BaseModel)


def load_config(
    task: str | Path,
    method: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | Path | None = None,
) -> Config:
    """Load the task file, merge the method file over it, and the overrides (`a.b=c`) over both.

    `model` replaces the architecture that the task names. All three are paths, or names of shipped configurations if
    they are text: see `phf_ray.config.shipped`. Raises ConfigError with every problem found, not only the first.
    """
    task_file = task_path(task)
    merged = read_yaml(task_file)
    if model is not None:
        merged["model"] = _with_shape(merged.get("model", {}), read_yaml(model_path(model)), file=str(model))
    if method is not None:
        merged = merge(merged, read_yaml(method_path(method, task=task_file)))
    asked: dict[str, Any] = {}
    for override in overrides:
        # First with each other, so that their order does not matter.
        asked = _merge_keys(asked, _parse_override(override))
    merged = merge(merged, asked)
    return parse_config(merged, source=" + ".join(str(part) for part in (task, model, method) if part is not None))


def _with_shape(section: Mapping[str, Any], values: Mapping[str, Any], *, file: str) -> dict[str, Any]:
    """Return the section `model` of `values`, with what a section keeps whatever its architecture."""
    if set(values) != {"model"} or not isinstance(values["model"], Mapping):
        raise ConfigError(
            f"--model {file}: a model's file has one section, `model:`; it has {', '.join(values) or 'none'}"
        )
    kept = {key: section[key] for key in ("num_additional_tokens", "model_kwargs") if key in section}
    return kept | dict(values["model"])


def parse_config(values: Mapping[str, Any], source: str = "configuration") -> Config:
    return parse_section(Config, values, source)


def parse_section(section: type[AnySection], values: Mapping[str, Any], source: str) -> AnySection:
    """Parse `values` as a `section`. Raises ConfigError with every problem found, not only the first."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = sorted({_described(detail, section) for detail in error.errors()})
        raise ConfigError(
            f"{source}: {len(problems)} problem(s)\n" + "\n".join(f"  - {line}" for line in problems)
        ) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` over `base`: mappings key by key, anything else is replaced whole.

    If the name of the objective or algorithm changes, its section starts empty: each has keys of its own. So does a
    reward that is of another kind.
    """
    merged = _merge_keys(base, over)
    for section in ("objective", "algorithm"):
        old, new = base.get(section), over.get(section)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and "name" in old and "name" in new:
            merged[section] = merged[section] if old["name"] == new["name"] else dict(new)
    old, new = base.get("rollouts"), over.get("rollouts")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in ("reward", "gold"):
            if _kind_of_reward(new.get(key)) not in (None, _kind_of_reward(old.get(key))):
                merged["rollouts"][key] = new[key]
    return merged


def _kind_of_reward(value: Any) -> str | None:
    return next((kind for kind in KINDS if kind in value), None) if isinstance(value, Mapping) else None


def _merge_keys(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge_keys(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; give the path of a configuration file, or a name such as pep8"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected sections such as `dataset:`")
    return extended(values, path, seen)


def extended(values: Mapping[str, Any], path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge the values of a file `path` over those of the file that its `extends` names, if it names one."""
    values = dict(values)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself through {parent}; remove one `extends:`")
    return merge(read_yaml(_parent_of(path, str(parent)), (*seen, path.resolve())), values)


def _parent_of(path: Path, extends: str) -> Path:
    """Return the file `extends` beside `path`, or the shipped configuration with that name."""
    beside = path.parent / extends
    return beside if beside.suffix in SUFFIXES or beside.is_file() else task_path(extends)


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r} has no value; write section.key=value")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _described(detail: Any, section: type[BaseModel]) -> str:
    # The user's key has no list indices and no names of union members, so drop them.
    path = [part for part in detail["loc"] if isinstance(part, str) and part not in _UNION_MEMBERS]
    key = ".".join(path)
    shown = ".".join(str(part) for part in detail["loc"] if part not in _UNION_MEMBERS)
    if key in REPLACED:
        return f"{shown}: {REPLACED[key]}"
    if detail["type"] == "extra_forbidden":
        return f"{shown}: unknown key; {_suggestion(path, section)}"
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
        return f"{shown}: {message}" if shown else message
    return f"{shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}"


def _suggestion(path: Sequence[str], section: type[BaseModel]) -> str:
    known = sorted(_known_keys(path[:-1], section))
    if path[-1] in known:
        return f"another {path[-2] if len(path) > 1 else 'section'} has it, the one that is named here does not"
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"


def _known_keys(path: Sequence[str], section: type[BaseModel]) -> set[str]:
    models: list[type[BaseModel]] = [section]
    for part in path:
        found = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        models = [inner for annotation in found for inner in _models_in(annotation)]
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


# Names of union members that pydantic puts into an error's path.
_UNION_MEMBERS = {
    "MLE", "Unlikelihood", "AWR", "RWR", "DPO", "KTO", "BradleyTerry", "Quantile", "PromptFiles", "float",
    "constrained-float", "int", "str", "<served>", "<here>", *algorithm_names(),
}  # fmt: skip
