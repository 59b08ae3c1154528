r"""The prompt of a judge: words of ours with places for an instruction and two answers, once for every pair.

Texts that are judged only ever fill places. They stand between marks, `<text>` and `</text>`, that occur in none of
them: an answer can't end its own place, whatever it says, and a `{output_1}` in it is two braces and a word.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from phf_ray.config import AnnotatorConfig, PromptFiles, shipped_or_own
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import USER, Message
from phf_ray.judging.disguises import BRACKETS, bare_text
from phf_ray.judging.pairs import Pair

_PLACE = re.compile(r"\{(instruction|input|output_1|output_2)\}")
_CHAT_ML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_TEXT_FORM = (".yml", ".yaml")

PADDING = Pair("1+1=", "", "2", "3")
"""Fills the last prompt of a batch; nobody reads its verdict."""


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """Messages, or one text for a completion, with as many places of each kind as there are pairs in a prompt."""

    messages: tuple[Message, ...]
    is_chat: bool
    batch_size: int
    shows_input: bool
    """Whether an input has a place of its own; otherwise it follows the instruction."""

    def render(self, pairs: Sequence[Pair]) -> tuple[Message, ...] | str:
        """Fill the places, and those that are left with an easy sum."""
        padded = [*pairs, *[PADDING] * (self.batch_size - len(pairs))]
        values = {
            "instruction": [pair.instruction if self.shows_input else pair.whole_instruction for pair in padded],
            "input": [pair.input for pair in padded],
            "output_1": [pair.output_1 for pair in padded],
            "output_2": [pair.output_2 for pair in padded],
        }
        mark = mark_for(text for texts in values.values() for text in texts)
        left = {name: iter(texts) for name, texts in values.items()}

        def filled(place: re.Match[str]) -> str:
            return f"<{mark}>\n{next(left[place[1]])}\n</{mark}>"

        # Places are found in the template alone: what has been filled in is never looked at again.
        messages = tuple(Message(message.role, _PLACE.sub(filled, message.content)) for message in self.messages)
        return messages if self.is_chat else messages[0].content


def mark_for(texts: Iterable[str]) -> str:
    """Return the first of `text`, `text-1`, `text-2`, ... that none of the texts uses as a mark, even in disguise."""
    joined = "\n".join(bare_text(text) for text in texts if BRACKETS.search(text))
    # The end of a longer mark, `</text-12>`, is no end of `<text-1>`.
    taken = set(re.findall(r"</?(text(?:-\d+)?)", joined))
    number, mark = 0, "text"
    while mark in taken:
        number += 1
        mark = f"text-{number}"
    return mark


def load_prompts(annotator: AnnotatorConfig, *, folder: Path) -> tuple[JudgePrompt, JudgePrompt]:
    """Return the prompts for rows without and with an input. Relative paths are looked for in `folder` first.

    Raises ConfigError if a file can't be read, or has not as many places as the annotator has pairs in a prompt.
    """
    prompt = annotator.prompt
    if isinstance(prompt, PromptFiles):
        without = _load(annotator, prompt.without_input, folder=folder, shows_input=False)
        return without, _load(annotator, prompt.with_input, folder=folder, shows_input=True)
    alone = _load(annotator, str(prompt), folder=folder, shows_input=False)
    return alone, alone


def _load(annotator: AnnotatorConfig, name: str, *, folder: Path, shows_input: bool) -> JudgePrompt:
    beside = folder / name
    path = beside if beside.is_file() else Path(shipped_or_own(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"annotator {annotator.name}: prompt {name}: {error}; give a text file, beside the pool's or by its path"
        ) from None
    is_chat = annotator.judge.chat is not None
    messages = _messages(text, path=path, is_chat=is_chat)
    places = [place for message in messages for place in _PLACE.findall(message.content)]
    _check_places(annotator, Counter(places), path=path, shows_input=shows_input)
    return JudgePrompt(messages, is_chat=is_chat, batch_size=annotator.batch_size, shows_input=shows_input)


def _messages(text: str, *, path: Path, is_chat: bool) -> tuple[Message, ...]:
    if path.suffix in _TEXT_FORM:
        if not is_chat:
            raise ConfigError(f"{path}: messages are for a `chat` judge; write a .txt file for a completion")
        return tuple(_message(one, path=path) for one in _yaml_list(text, path=path))
    found = _CHAT_ML.findall(text) if is_chat else []
    if found:
        return tuple(Message(role, content.strip("\n")) for role, content in found)
    return (Message(USER, text.removesuffix("\n")),)


def _yaml_list(text: str, *, path: Path) -> list[Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path} holds a {type(values).__name__}; write a list of messages, each {{role, content}}")
    return values


def _message(value: Any, *, path: Path) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"} or not all(map(_is_text, value.values())):
        raise ConfigError(f"{path}: {str(value)[:80]!r} is no message; write {{role: user, content: ...}}")
    return Message(value["role"], value["content"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _check_places(annotator: AnnotatorConfig, places: Counter[str], *, path: Path, shows_input: bool) -> None:
    wanted = {"instruction", "output_1", "output_2"} | ({"input"} if shows_input else set())
    wrong = [name for name in sorted(wanted) if places[name] != annotator.batch_size]
    if not shows_input and places["input"]:
        raise ConfigError(
            f"annotator {annotator.name}: {path} has a place {{input}}; write `prompt: {{without_input: FILE, "
            "with_input: FILE}`, with this one as with_input"
        )
    if wrong:
        found = ", ".join(f"{{{name}}} {count} times" for name, count in sorted(places.items())) or "no place at all"
        raise ConfigError(
            f"annotator {annotator.name}: {path} has {found}; with batch_size {annotator.batch_size} it needs "
            f"{', '.join(f'{{{name}}}' for name in wrong)} {annotator.batch_size} times each"
        )
