"""Chat templates in files, in the language of transformers: Jinja, in its sandbox."""

import json
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes
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


def compile_template(text: str, *, name: str, values: Mapping[str, Any]) -> MessageRenderer:
    """Compile a template. `values`: special tokens by name, such as `eos_token`; bos_token and eos_token default to ''.

    Raises ConfigError if the text is no template.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], keep_trailing_newline=False
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    try:
        template = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"template {name}, line {error.lineno}: {error.message}") from None
    known = {"bos_token": "", "eos_token": "", **values}

    def render(messages: list[dict[str, str]], opens: bool) -> str:
        return template.render(messages=messages, add_generation_prompt=opens, **known)

    return render


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
