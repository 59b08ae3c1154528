"""Sets of prompts to be answered: whatever a file, folder, data set or feedback corpus holds, each prompt once."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phf_ray.characters import half_at
from phf_ray.errors import DataError
from phf_ray.feedback.values import unfolded
from phf_ray.generation.chat.prompts import (
    ASSISTANT,
    ChatPrompt,
    InstructionPrompt,
    Message,
    Prompt,
    PromptError,
    TextPrompt,
    prompt_text,
)
from phf_ray.generation.chat.templates import PromptTemplate
from phf_ray.judging.board.read import read_records
from phf_ray.storage.hashing import digest

COLUMNS = ("messages", "instruction", "prompt", "question", "text")
"""Where a row may hold its prompt; the first that is there is taken."""


@dataclass(frozen=True, slots=True)
class RolloutPrompt:
    """A prompt, ready to be answered."""

    id: str
    """Hash of its text, equal in every process."""
    text: str
    """The words that the model completes."""
    prompt: Prompt
    """What was asked, before a template put it into words."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of its row."""

    @property
    def instruction(self) -> str:
        """As AlpacaFarm's rows have it: the instruction, or all of another prompt."""
        return self.prompt.instruction if isinstance(self.prompt, InstructionPrompt) else prompt_text(self.prompt)

    @property
    def input(self) -> str:
        return self.prompt.input if isinstance(self.prompt, InstructionPrompt) else ""


@dataclass(frozen=True, slots=True)
class PromptSet:
    prompts: tuple[RolloutPrompt, ...]
    """In the order of the input."""
    left_out: Counter[str]
    """Why prompts were left out -> how many: duplicate, and template for those that the template can't hold."""


def read_prompts(
    sources: Sequence[str], *, template: PromptTemplate | None, option: str = "--prompts", limit: int | None = None
) -> PromptSet:
    """Read the prompts of JSON, JSON lines, Parquet, folders, data sets and feedback corpora.

    `template` puts them into words; None: they are texts to be continued as they are. `limit`: only the first rows.
    Raises DataError that names the first row without a prompt, ConfigError if a source does not exist.
    """
    found: dict[str, RolloutPrompt] = {}
    left_out: Counter[str] = Counter()
    for place, record in itertools.islice(read_records(sources, option=option), limit):
        try:
            made = rollout_prompt(prompt_of(record, place), template=template, row=unfolded(record))
        except PromptError:
            left_out["template"] += 1
            continue
        if (half := half_at(made.text)) is not None:
            raise DataError(f"{place}: character {half} of the prompt is half of a surrogate pair; mend or remove it")
        left_out["duplicate"] += made.id in found
        found.setdefault(made.id, made)
    if not found:
        because = f" that the template can hold ({left_out['template']} can't)" if left_out["template"] else ""
        raise DataError(f"{option} {' '.join(sources)}: there are no prompts{because}; give a file with some")
    return PromptSet(tuple(found.values()), +left_out)


def rollout_prompt(
    prompt: Prompt, *, template: PromptTemplate | None, row: Mapping[str, Any] | None = None
) -> RolloutPrompt:
    """Put a prompt into words. Raises PromptError if the template can't hold it."""
    text = prompt_text(prompt) if template is None else template.prompt(prompt)
    return RolloutPrompt(digest(["prompt", text], size=16), text, prompt, dict(row or {}))


def prompt_of(record: Mapping[str, Any], place: str) -> Prompt:
    """Return the prompt of a row: `messages`, `instruction` with perhaps `input`, `prompt`, `question` or `text`.

    A prompt may be messages, as TRL has them, or an object with a `text`, as RealToxicityPrompts has it. Raises
    DataError, with `place`, if there is none.
    """
    name = next((name for name in COLUMNS if record.get(name) is not None), None)
    if name is None:
        raise DataError(
            f"{place} has no prompt (its columns: {', '.join(map(str, record)) or 'none'}); write one of "
            f"{', '.join(COLUMNS)}"
        )
    value = record[name]
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        value = value["text"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _of_messages(value, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: {name} is {value!r:.60}, not a text; write a text, or a list of messages")
    given = record.get("input")
    if name != "instruction":
        return TextPrompt(value)
    if given is not None and not isinstance(given, str):
        raise DataError(f"{place}: input is {given!r:.60}; it must be a text, or null")
    return InstructionPrompt(value, given or "")


def _of_messages(value: Sequence[Any], place: str) -> Prompt:
    """Return the messages up to the answer that is asked for: an answer at the end does not belong to the prompt."""
    try:
        turns = [(str(one["role"]), one["content"]) for one in value]
    except (KeyError, TypeError):
        raise DataError(f"{place}: messages are {value!r:.80}; write a list of {{role, content}}") from None
    while turns and turns[-1][0] == ASSISTANT:
        turns.pop()
    if not turns:
        raise DataError(f"{place}: the conversation has no turn before an answer; remove it")
    for role, content in turns:
        if not isinstance(content, str):
            raise DataError(
                f"{place}: a message of the {role} is {content!r:.60}, not a text; write texts, or remove it"
            )
    return ChatPrompt(tuple(Message(role, content) for role, content in turns))
