"""Chat templates in files, in the language of transformers: Jinja, in its sandbox."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from phf_ray.errors import ConfigError
from phf_ray.generation.chat.templates import MessageRenderer


class _Generation(Extension):
    """`{% generation %}`, with which templates of transformers mark answers. What it holds is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Names(jinja2.utils.Namespace):
    """`namespace()`, which takes no name that Python itself uses. As in transformers."""

    def __init__(*args: Any, **values: Any) -> None:
        known = dict(*args[1:], **values)
        for name in known:
            _refuse_inner(name)
        jinja2.utils.Namespace.__init__(args[0], known)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_inner(name)
        super().__setitem__(name, value)


def _refuse_inner(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no place for {name!r}; use a name without underscore")


def compile_template(text: str, *, name: str, values: Mapping[str, Any]) -> MessageRenderer:
    """Compile a template. `values`: special tokens by name, such as `eos_token`; bos_token and eos_token default to ''.

    Raises ConfigError if the text is no template.
    """
    environment = _environment()
    try:
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"template {name}, line {error.lineno}: {error.message}") from None
    known = {"bos_token": "", "eos_token": "", **values}

    def render(messages: list[dict[str, str]], opens: bool, control: str | None) -> str:
        return template.render(messages=messages, add_generation_prompt=opens, control=control, **known)

    return render


def variables_of(text: str) -> set[str]:
    """Return the variables that a template reads; empty if the text is no template."""
    try:
        return meta.find_undeclared_variables(_environment().parse(text))
    except jinja2.TemplateError:
        return set()


def _environment() -> ImmutableSandboxedEnvironment:
    """Templates reach no file, because nothing loads any, and no attribute of Python's."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], keep_trailing_newline=False
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    environment.globals["namespace"] = _Names
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
