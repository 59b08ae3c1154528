"""Finds a template by name or path, and renders prompts with it.

Three kinds: the tokenizer's own chat template (`tokenizer`), a chat template in a file (.jinja), and a file with two
keys (.json), as AlpacaFarm has them. Ours are in configs/templates. The words of a data set only ever fill places: they
are never read as a template themselves.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from phf_ray.config.hindsight import Markers, load_phrases
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

COH = "coh"
"""Name of the template of Chain of Hindsight."""
_MARKED = "{%- set user_marker, good_marker, bad_marker = "
"""Beginning of a template's text that says its own markers, in its first line."""

_CONTROL = "control"
"""The variable by which a template learns what kind of answer is asked for: good, bad or none."""

MessageRenderer = Callable[[list[dict[str, str]], bool, str | None], str]
"""Renders messages; the flag says whether the text is to end where the assistant begins to speak, the last value is
that of `control`."""

Ending = Literal["opened", "closed", "continued"]
"""How the text of a conversation ends: where the assistant begins to speak, after the last message as it is, or within
the last message, which is to be continued."""


class PromptTemplate(Protocol):
    """Puts prompts into words. Raises PromptError if it can't hold one."""

    reads_control: bool
    """Whether its words depend on what kind of answer is asked for: good, bad or none."""

    def prompt(self, prompt: Prompt) -> str:
        """Return the text that a model completes. It ends where the assistant begins to speak."""

    def example(self, prompt: Prompt, completion: str) -> RenderedExample:
        """Return the text of a prompt and that of its answer, apart. Adds no end of text."""

    def conversation(self, messages: Sequence[Message]) -> tuple[TextPiece, ...]:
        """Cut the text of a whole conversation into what the assistant says and what it is given."""

    def dialogue(self, messages: Sequence[Message], *, ending: Ending = "opened", control: str | None = None) -> str:
        """Return the text of a conversation up to where the model goes on. `control`: None is good."""


def load_template(name: str, *, tokenizer: Any = None, markers: Markers | None = None) -> PromptTemplate:
    """Return the template `tokenizer`, one of ours (alpaca, chatml, coh, hh, plain), or one in a file.

    `tokenizer`: of transformers, for its own template and for the special tokens that a .jinja file may name.
    `markers`: of the template coh; None: those of `configs/phrases/coh.yml`. Raises ConfigError if there is no such
    template, or its file can't be one.
    """
    if name == OWN:
        return _of_tokenizer(tokenizer)
    file = _file_of(name)
    if file.suffix == ".json":
        return TwoKeyTemplate.from_file(file)
    text = file.read_text(encoding="utf-8")
    return _of_jinja(name, text, file=str(file), tokenizer=tokenizer, markers=markers)


def _of_jinja(name: str, text: str, *, file: str, tokenizer: Any, markers: Markers | None) -> "MessageTemplate":
    from phf_ray.generation.chat.jinja import compile_template, variables_of

    if markers is not None and text.startswith(_MARKED):
        text = text.partition("\n")[2]
    special = {} if tokenizer is None else dict(tokenizer.special_tokens_map)
    render = compile_template(text, name=file, values={**_marker_values(markers or load_phrases().markers), **special})
    return MessageTemplate(name, render, reads_control=_CONTROL in variables_of(text))


def _marker_values(markers: Markers) -> dict[str, str]:
    """Return the markers of Chain of Hindsight by the names that templates know them by."""
    return {"user_marker": markers.user, "good_marker": markers.good, "bad_marker": markers.bad}


def with_markers(text: str, markers: Markers) -> str:
    """Return the text of a template that has these markers, whatever the file of phrases holds when it is read."""
    words = (json.dumps(word, ensure_ascii=False) for word in (markers.user, markers.good, markers.bad))
    return f"{_MARKED}{', '.join(words)} -%}}\n{text}"


def stored_template(name: str, text: str, *, tokenizer: Any = None, markers: Markers | None = None) -> PromptTemplate:
    """Return the template that had this text when a model was trained, whatever its file holds today.

    `name`: as it was given to `load_template`. `markers`: in place of those that the text itself says. Raises
    ConfigError if the text can't be a template.
    """
    if name == OWN:
        return _of_tokenizer(tokenizer)
    if text.lstrip().startswith("{") and not text.lstrip().startswith(("{{", "{%", "{#")):
        return TwoKeyTemplate.from_text(name, text)
    return _of_jinja(name, text, file=name, tokenizer=tokenizer, markers=markers)


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

    from phf_ray.generation.chat.jinja import variables_of

    reads_control = _CONTROL in variables_of(_default_of(tokenizer.chat_template))

    def render(messages: list[dict[str, str]], opens: bool, control: str | None) -> str:
        known = {_CONTROL: control} if reads_control else {}
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens, **known))

    return MessageTemplate(OWN, render, reads_control=reads_control)


def _default_of(found: str | Mapping[str, str]) -> str:
    """Return the template that is taken of several; empty if the tokenizer says of none that it is."""
    return found if isinstance(found, str) else found.get("default", "")


_HERE = "THE-ANSWER-GOES-ON-HERE "


class MessageTemplate:
    """A chat template: renders messages with roles. A text or an instruction is one message of the user."""

    def __init__(self, name: str, render: MessageRenderer, *, reads_control: bool = False):
        self._name = name
        self._render_with = render
        self.reads_control = reads_control

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

    def dialogue(self, messages: Sequence[Message], *, ending: Ending = "opened", control: str | None = None) -> str:
        if ending != "continued":
            return self._render(messages, opens=ending == "opened", control=control)
        *before, last = messages
        marked = Message(last.role, last.content + _HERE)
        whole = self._render([*before, marked], opens=False, control=control)
        text, found, rest = whole.rpartition(_HERE.strip())
        if not found or last.content.strip() not in text:
            raise PromptError(
                f"template {self._name}: the last message is not in the text as it is, so it can't be continued; end "
                "with a message of the user"
            )
        # Where the template trims messages, it would have trimmed this one too.
        return text if rest.startswith(" ") else text.rstrip()

    def _render(self, messages: Sequence[Message], *, opens: bool, control: str | None = None) -> str:
        values: list[dict[str, str]] = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._render_with(values, opens, control)
        except Exception as error:  # noqa: BLE001  a template of others may fail in any way; only this prompt is lost
            raise PromptError(f"template {self._name}: {type(error).__name__}: {error}") from None

    def _after(self, before: str, whole: str) -> str:
        if not whole.startswith(before):
            raise PromptError(
                f"template {self._name}: the text up to an answer is not the beginning of the text with the answer, so "
                "nothing says where the answer begins; give another template"
            )
        return whole[len(before) :]
