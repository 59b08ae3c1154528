"""Chat models as arms of an evaluation: the arguments, the templates, and which of them have markers."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jobs.serve import add_template_argument, with_templates
from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from phf_ray.config import Config
    from phf_ray.evaluation.models import NamedModel


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--api",
        choices=("completions", "chat"),
        default="completions",
        help="ask models to go on with the prompts (the default), or for answers to them; prompts may then be "
        "conversations (`messages`)",
    )
    add_template_argument(parser)


def read_chat_arguments(
    arguments: argparse.Namespace, config: "Config", models: "Mapping[str, NamedModel]"
) -> tuple[dict[str, str], set[str]]:
    """Return the chosen templates by model, and the models whose template has markers of good and bad answers.

    Raises ConfigError for what can't be asked in chats, and for a directory without a template.
    """
    is_chat = arguments.api == "chat"
    if is_chat:
        _check_chats(arguments, config)
    templates = _chosen_templates(arguments, models)
    return templates, _marked_models(models, templates) if is_chat else set()


def _check_chats(arguments: argparse.Namespace, config: "Config") -> None:
    """Raise ConfigError for what can't be evaluated in chats."""
    from phf_ray.evaluation.chats import check_scenarios

    check_scenarios(config.generation.scenario_configs)
    if arguments.reference is not None or arguments.reference_samples is not None:
        raise ConfigError("--reference: KL compares texts that models go on with; leave it out, or --api chat")


def _chosen_templates(arguments: argparse.Namespace, models: "Mapping[str, NamedModel]") -> dict[str, str]:
    """Return the templates of --chat-template by model."""
    if arguments.chat_template and arguments.api != "chat":
        raise ConfigError("--chat-template is for chats; give --api chat with it")
    named = with_templates([{"name": name} for name in models], arguments.chat_template)
    found = {str(model["name"]): str(model["chat_template"]) for model in named if "chat_template" in model}
    elsewhere = [name for name in found if models[name].directory is None]
    if elsewhere and len(elsewhere) == len(found):
        raise ConfigError(f"--chat-template: the server of {elsewhere[0]} has its own template; leave it out")
    return found


def _marked_models(models: "Mapping[str, NamedModel]", templates: Mapping[str, str]) -> set[str]:
    """Return the models whose template has markers of good and bad answers. A server's says so itself, when asked.

    Raises ConfigError for a directory without a template.
    """
    from phf_ray.generation.chat.templates import OWN, load_template, stored_template
    from phf_ray.models.backbone import load_tokenizer_beside

    found = set()
    for name, model in models.items():
        if model.directory is None:
            found.add(name)
            continue
        rows = None if model.info is None else model.info.rows
        tokenizer = load_tokenizer_beside(model.directory)
        try:
            if name in templates or rows is None:
                template = load_template(templates.get(name, OWN), tokenizer=tokenizer)
            else:
                template = stored_template(rows.template, rows.template_text, tokenizer=tokenizer)
        except ConfigError as error:
            raise ConfigError(f"{name} has no chat template: {error}; choose one with --chat-template") from None
        if template.reads_control:
            found.add(name)
    return found
