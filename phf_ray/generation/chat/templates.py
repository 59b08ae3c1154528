"""Finds a template by name or path, and renders prompts with it.

Three kinds: the tokenizer's own chat template (`tokenizer`), a chat template in a file (.jinja), and a file with two
keys (.json), as AlpacaFarm has them. Ours are in configs/templates. The words of a data set only ever fill places: they
are never read as a template themselves.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from phf_ray.config.shipped import shipped_folder, shipped_or_own
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import (
    ASSISTANT,
    Message,
    Prompt,
    PromptError,
    RenderedExample,
    TextPiece,
    as_messages,
)
from phf_ray.generation.chat.two_keys import TwoKeyTemplate

OWN = "tokenizer"
"""Name of the tokenizer's own chat template."""
_FOLDER = "templates"
_SUFFIXES = (".json", ".jinja")

MessageRenderer = Callable[[list[dict[str, str]], bool], str]
"""Renders messages; the flag says whether the text is to end where the assistant begins to speak."""


class PromptTemplate(Protocol):
    """Puts prompts into words. Raises PromptError if it can't hold one."""

    def prompt(self, prompt: Prompt) -> str:
        """Return the text that a model completes. It ends where the assistant begins to speak."""

    def example(self, prompt: Prompt, completion: str) -> RenderedExample:
        """Return the text of a prompt and that of its answer, apart. Adds no end of text."""

    def conversation(self, messages: Sequence[Message]) -> tuple[TextPiece, ...]:
        """Cut the text of a whole conversation into what the assistant says and what it is given."""


def load_template(name: str, *, tokenizer: Any = None) -> PromptTemplate:
    """Return the template `tokenizer`, one of ours (alpaca, hh, plain), or one in a file.

    `tokenizer`: of transformers, for its own template and for the special tokens that a .jinja file may name. Raises
    ConfigError if there is no such template, or its file can't be one.
    """
    if name == OWN:
        return _of_tokenizer(tokenizer)
    file = _file_of(name)
    if file.suffix == ".json":
        return TwoKeyTemplate.from_file(file)
    return _of_jinja(name, file.read_text(encoding="utf-8"), file=str(file), tokenizer=tokenizer)


def _of_jinja(name: str, text: str, *, file: str, tokenizer: Any) -> "MessageTemplate":
    from phf_ray.generation.chat.jinja import compile_template

    special = {} if tokenizer is None else dict(tokenizer.special_tokens_map)
    return MessageTemplate(name, compile_template(text, name=file, values=special))


def stored_template(name: str, text: str, *, tokenizer: Any = None) -> PromptTemplate:
    """Return the template that had this text when a model was trained, whatever its file holds today.

    `name`: as it was given to `load_template`. Raises ConfigError if the text can't be a template.
    """
    if name == OWN:
        return _of_tokenizer(tokenizer)
    if text.lstrip().startswith("{") and not text.lstrip().startswith(("{{", "{%", "{#")):
        return TwoKeyTemplate.from_text(name, text)
    return _of_jinja(name, text, file=name, tokenizer=tokenizer)


def template_source(name: str, *, tokenizer: Any = None) -> str:
    """Return what a template says, so that an edited one can be told from the one before. Raises as `load_template`."""
    if name == OWN:
        _of_tokenizer(tokenizer)
        return str(tokenizer.chat_template)
    return _file_of(name).read_text(encoding="utf-8")


def template_names() -> list[str]:
    return sorted(path.stem for path in (shipped_folder() / _FOLDER).glob("*") if path.suffix in _SUFFIXES)


def _file_of(name: str) -> Path:
    for suffix in _SUFFIXES:
        if (file := shipped_folder() / _FOLDER / f"{name}{suffix}").is_file() and "/" not in name:
            return file
    path = Path(shipped_or_own(name))
    if path.is_file() and path.suffix in _SUFFIXES:
        return path
    problem = "is neither .json nor .jinja" if path.is_file() else "does not exist"
    raise ConfigError(
        f"template {name} {problem}; give {OWN} (the tokenizer's own), one of {', '.join(template_names())}, a .json "
        "file with the keys prompt_inputs and prompt_noinputs, or a .jinja chat template"
    )


def _of_tokenizer(tokenizer: Any) -> "MessageTemplate":
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        which = "none is given here" if tokenizer is None else f"{tokenizer.name_or_path or 'this tokenizer'} has none"
        raise ConfigError(
            f"template {OWN} is the chat template of the tokenizer, and {which}; give one of "
            f"{', '.join(template_names())}, or a file"
        )

    def render(messages: list[dict[str, str]], opens: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens))

    return MessageTemplate(OWN, render)


class MessageTemplate:
    """A chat template: renders messages with roles. A text or an instruction is one message of the user."""

    def __init__(self, name: str, render: MessageRenderer):
        self._name = name
        self._render_with = render

    def prompt(self, prompt: Prompt) -> str:
        return self._render(as_messages(prompt), opens=True)

    def example(self, prompt: Prompt, completion: str) -> RenderedExample:
        messages = as_messages(prompt)
        before = self._render(messages, opens=True)
        whole = self._render([*messages, Message(ASSISTANT, completion)], opens=False)
        return RenderedExample(before, self._after(before, whole))

    def conversation(self, messages: Sequence[Message]) -> tuple[TextPiece, ...]:
        whole = self._render(messages, opens=False)
        pieces: list[TextPiece] = []
        done = ""
        for index, message in enumerate(messages):
            if message.role != ASSISTANT:
                continue
            before = self._render(messages[:index], opens=True)
            through = self._render(messages[: index + 1], opens=False)
            self._after(through, whole)
            pieces += [TextPiece(self._after(done, before), False), TextPiece(self._after(before, through), True)]
            done = through
        rest = self._after(done, whole)
        return tuple(piece for piece in (*pieces, TextPiece(rest, False)) if piece.text)

    def _render(self, messages: Sequence[Message], *, opens: bool) -> str:
        values: list[dict[str, str]] = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._render_with(values, opens)
        except Exception as error:  # noqa: BLE001  a template of others may fail in any way; only this prompt is lost
            raise PromptError(f"template {self._name}: {type(error).__name__}: {error}") from None

    def _after(self, before: str, whole: str) -> str:
        if not whole.startswith(before):
            raise PromptError(
                f"template {self._name}: the text up to an answer is not the beginning of the text with the answer, so "
                "nothing says where the answer begins; give another template"
            )
        return whole[len(before) :]
