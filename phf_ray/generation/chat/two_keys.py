"""Template files with two keys, as AlpacaFarm has them: `prompt_inputs` and `prompt_noinputs`."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import (
    ASSISTANT,
    USER,
    ChatPrompt,
    InstructionPrompt,
    Message,
    Prompt,
    PromptError,
    RenderedExample,
    TextPiece,
    TextPrompt,
)

if TYPE_CHECKING:
    from phf_ray.generation.chat.templates import Ending

_PLACES = {"prompt_inputs": ("{instruction}", "{input}"), "prompt_noinputs": ("{instruction}",)}
"""Key -> what its text must have a place for."""
# Doubled braces stand for one, as in AlpacaFarm, which fills its files with `format_map`.
_PLACE = re.compile(r"\{\{|\}\}|\{(instruction|input)\}")


class TwoKeyTemplate:
    """One text for instructions with an input, and one for those without. The answer follows directly."""

    reads_control = False

    def __init__(self, name: str, *, with_input: str, without_input: str):
        self._name = name
        self._with_input = with_input
        self._without_input = without_input

    @classmethod
    def from_file(cls, file: Path) -> Self:
        return cls.from_text(str(file), file.read_text(encoding="utf-8"))

    @classmethod
    def from_text(cls, file: str, content: str) -> Self:
        """`file`: where the text is from, for errors."""
        try:
            values = json.loads(content)
        except ValueError as error:
            raise ConfigError(f"template {file} is not JSON: {error}") from None
        for key, places in _PLACES.items():
            text = values.get(key) if isinstance(values, dict) else None
            if not isinstance(text, str):
                found = ", ".join(map(repr, values)) if isinstance(values, dict) else f"a {type(values).__name__}"
                raise ConfigError(
                    f"template {file} has no text {key!r} (found: {found or 'nothing'}); a template file is a JSON "
                    "object with the texts 'prompt_inputs' and 'prompt_noinputs'"
                )
            for place in places:
                if place not in text:
                    raise ConfigError(f"template {file}: {key!r} has no place for {place}; write {place} where it goes")
        return cls(Path(file).stem, with_input=values["prompt_inputs"], without_input=values["prompt_noinputs"])

    def prompt(self, prompt: Prompt) -> str:
        one = self._instruction_of(prompt)
        values = {"instruction": one.instruction, "input": one.input}
        template = self._with_input if one.input else self._without_input
        # One pass: what fills a place is not searched for places.
        return _PLACE.sub(lambda place: values[place[1]] if place[1] else place[0][0], template)

    def example(self, prompt: Prompt, completion: str) -> RenderedExample:
        return RenderedExample(self.prompt(prompt), completion)

    def conversation(self, messages: Sequence[Message]) -> tuple[TextPiece, ...]:
        if not messages or messages[-1].role != ASSISTANT:
            raise PromptError(f"template {self._name}: the conversation does not end with an answer")
        before = self.prompt(ChatPrompt(tuple(messages[:-1])))
        return TextPiece(before, False), TextPiece(messages[-1].content, True)

    def dialogue(self, messages: Sequence[Message], *, ending: "Ending" = "opened", control: str | None = None) -> str:
        """Each message of the user in the template's words, its answer directly after it, a blank line between turns.

        A system message comes first. Examples to learn from hold one instruction alone; see `prompt`.
        """
        del control
        turns: list[str] = []
        before = ""
        for message in messages:
            if message.role == USER:
                turns.append(self.prompt(TextPrompt(message.content)))
            elif message.role == ASSISTANT and before == USER:
                turns[-1] += message.content
            elif message.role == "system" and not turns:
                turns.append(message.content)
            else:
                where = f"after one of the {before}" if before else "at the beginning"
                raise PromptError(
                    f"template {self._name}: a message of the {message.role} {where}; it holds a system message, then "
                    "messages of user and assistant by turns"
                )
            before = message.role
        if ending == "opened" and before != USER:
            raise PromptError(f"template {self._name}: the conversation does not end with a message of the user")
        return "\n\n".join(turns)

    def _instruction_of(self, prompt: Prompt) -> InstructionPrompt:
        if isinstance(prompt, InstructionPrompt):
            return prompt
        if isinstance(prompt, TextPrompt):
            return InstructionPrompt(prompt.text)
        roles = [message.role for message in prompt.messages]
        if roles != [USER]:
            raise PromptError(
                f"template {self._name} holds one message of the user, this prompt has {', '.join(roles) or 'none'}; "
                "give a chat template: the tokenizer's own, hh, or a .jinja file"
            )
        return InstructionPrompt(prompt.messages[0].content)
