"""Models and arms on the command line, for every job that asks or compares models."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from phf_ray.checkpoint import Control, ControlChoice
    from phf_ray.evaluation.models import NamedModel


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--arm`, for every job that compares models."""
    parser.add_argument(
        "--model",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]DIR|ID|URL",
        help="a checkpoint, a run directory (its newest checkpoint), a model of the hub (owner/name[@revision]), or "
        "the URL of a server that calls the model NAME; URL,key_env=VARIABLE names the variable that holds the "
        "server's key (default: OPENAI_API_KEY for OpenAI, PHF_API_KEY for any other server)",
    )
    parser.add_argument(
        "--allow-plain-http", action="store_true", help="send keys over http:// to other machines, unencrypted"
    )
    parser.add_argument(
        "--released", metavar="TASK", help="the paper's six published models of toxicity, pii or pep8, besides --model"
    )
    parser.add_argument(
        "--control",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]GOOD,BAD",
        help="control tokens of models without phf.json, or of the one called NAME",
    )
    parser.add_argument(
        "--arm",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[:good|bad|none]",
        help="models to compare, and the control token for each; default: every model, with the good token if it has "
        "one",
    )


def models_from(arguments: argparse.Namespace) -> "dict[str, NamedModel]":
    """Return the models of --model and --released, with the control tokens of --control."""
    from phf_ray.checkpoint import parse_control
    from phf_ray.evaluation.released import released_models

    texts = list(arguments.model)
    controls: dict[str | None, Control] = dict(map(parse_control, arguments.control))
    if arguments.released is not None:
        released = released_models(arguments.released)
        texts += [f"{name}={model_id}" for name, model_id in released.ids.items()]
        for name, control in released.controls.items():
            controls.setdefault(name, control)
    if not texts:
        raise ConfigError("no models: give --model DIR, or --released TASK")
    return with_controls(parse_models(texts, allow_plain_http=arguments.allow_plain_http), controls)


def with_controls(
    models: "Mapping[str, NamedModel]", controls: "Mapping[str | None, Control]"
) -> "dict[str, NamedModel]":
    """Return the models with control tokens by name. The name None: all others that have none of their own."""
    for name in controls:
        if name is not None and name not in models:
            raise ConfigError(f"--control {name}=...: no model is called {name}; --model names {', '.join(models)}")
    return {name: _with_control(model, controls) for name, model in models.items()}


def _with_control(model: "NamedModel", controls: "Mapping[str | None, Control]") -> "NamedModel":
    from phf_ray.checkpoint import CheckpointInfo

    info = model.info or CheckpointInfo()
    if model.directory is None or info.control is not None:
        if model.name in controls:
            raise ConfigError(f"--control {model.name}=...: {model.source} says itself which control tokens it has")
        return model
    control = controls.get(model.name, controls.get(None))
    return model if control is None else replace(model, info=info.model_copy(update={"control": control}))


def parse_models(
    texts: Sequence[str], *, allow_plain_http: bool = False, option: str = "--model"
) -> "dict[str, NamedModel]":
    from phf_ray.evaluation.models import parse_model

    models: dict[str, NamedModel] = {}
    for text in texts:
        model = parse_model(text, option=option, allow_plain_http=allow_plain_http)
        if model.name in models:
            raise ConfigError(f"{option}: two models are called {model.name}; rename one, such as other={model.source}")
        models[model.name] = model
    return models


def parse_arms(
    texts: Sequence[str], models: "Mapping[str, NamedModel]", *, marked: Collection[str] = ()
) -> "list[tuple[str, ControlChoice | None]]":
    """Return (model, control) pairs in the order of the report.

    `marked`: models whose chat template has markers of good and bad answers.
    """
    from phf_ray.checkpoint import split_model_id

    arms: list[tuple[str, ControlChoice | None]] = []
    for text in texts or list(models):
        name, control = (text, None) if text in models else split_model_id(text)
        if name not in models:
            beginning = text.rpartition(":")[0]
            if beginning in models:
                raise ConfigError(f"--arm {text}: write {beginning}:good, {beginning}:bad or {beginning}:none")
            raise ConfigError(f"--arm {text}: no model is called {name}; --model names {', '.join(models)}")
        info = models[name].info
        has_control = name in marked or (info is not None and info.control is not None)
        if control in ("good", "bad") and models[name].directory is not None and not has_control:
            raise ConfigError(f"--arm {text}: {models[name].source} has no control tokens; write {name}")
        if not control and has_control and models[name].directory is not None:
            control = "good"
        if (name, control) in arms:
            raise ConfigError(f"--arm {text}: named twice; name each arm once")
        arms.append((name, control))
    return arms
