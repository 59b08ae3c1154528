"""The template that puts instructions into a model's words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from phf_ray.checkpoint import CheckpointInfo, starts_with_end_of_text
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import InstructionPrompt
from phf_ray.generation.chat.templates import OWN, load_template, stored_template

ALPACA = "alpaca"
"""Of models that say nothing: AlpacaFarm asked all models in such words."""


Words = Callable[[InstructionPrompt], str]
"""Puts an instruction into words. Raises PromptError if it can't."""


def words_of(directory: Path, info: CheckpointInfo | None, *, chosen: str | None) -> Words:
    """Return what puts instructions into a model's words.

    That is the chosen template, else the one that the model was trained with, else its tokenizer's, else AlpacaFarm's.
    """
    from phf_ray.models.backbone import load_tokenizer_beside

    tokenizer = load_tokenizer_beside(directory)
    rows = None if info is None else info.rows
    if chosen is None and rows is not None:
        return stored_template(rows.template, rows.template_text, tokenizer=tokenizer).prompt
    name = chosen or (OWN if tokenizer.chat_template else ALPACA)
    template = load_template(name, tokenizer=tokenizer)
    control = None if info is None else info.control
    # The server begins a text with this token, and some templates do, too.
    start = "" if starts_with_end_of_text(info, control) else _start_of(tokenizer)
    return lambda prompt: template.prompt(prompt).removeprefix(start)


def _start_of(tokenizer: Any) -> str:
    """Return the text of the token that the tokenizer itself puts before a text; empty if it puts none."""
    ids = list(tokenizer("")["input_ids"])
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def words_of_server(name: str, *, chosen: str | None) -> Words:
    """Return what puts instructions into words for a model on a server, which keeps its tokenizer to itself."""
    if chosen == OWN:
        raise ConfigError(
            f"--template {OWN}: the tokenizer of {name} is on its server; give a template by name or file"
        )
    return load_template(chosen or ALPACA).prompt
