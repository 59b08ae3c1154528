"""Cuts the text of a conversation where training cut it: a token that spans a cut is one that no row had there."""

from collections.abc import Sequence
from typing import Literal

from phf_ray.generation.chat.prompts import ASSISTANT, Message, PromptError
from phf_ray.generation.chat.templates import Ending, PromptTemplate

MOST_ANSWERS = 64
"""Each answer costs two renderings of what is said up to it, so that of a longer conversation only the last are cut."""


Cuts = Literal["nowhere", "before a last answer", "at each answer"]
"""Where training tokenized apart: nowhere, a prompt and its one answer, or each answer of a conversation or record."""


def cut_conversation(
    template: PromptTemplate, messages: Sequence[Message], text: str, cuts: Cuts, *, ending: Ending, control: str | None
) -> list[str]:
    """Cut `text`, which `template.dialogue` returned for these messages, ending and control. Return at least one piece.

    No cut is made around an answer if the text up to it is not how the whole text begins, or ends before another cut.
    """
    answers = [place for place, message in enumerate(messages) if message.role == ASSISTANT]
    if cuts != "at each answer":
        is_last = cuts != "nowhere" and ending != "opened" and answers[-1:] == [len(messages) - 1]
        answers = answers[-1:] if is_last else []
    begins = [0]
    for place in answers[-MOST_ANSWERS:]:
        is_whole = ending != "continued" or place < len(messages) - 1
        around = _around(template, messages, text, place, control=control, is_whole=is_whole)
        # Of an empty answer, some templates leave out the space before it.
        if around == sorted(around) and min(around, default=0) >= begins[-1]:
            begins += around
    pieces = [text[begin:end] for begin, end in zip(begins, [*begins[1:], len(text)], strict=True)]
    return [piece for piece in pieces if piece] or [""]


def _around(
    template: PromptTemplate, messages: Sequence[Message], text: str, place: int, *, control: str | None, is_whole: bool
) -> list[int]:
    """Return where an answer begins in the text, and, if it `is_whole`, where what follows it begins."""
    # Answers that are not the last may stand behind other words than those of `control`.
    for named in dict.fromkeys((control, None)):
        try:
            parts = [template.dialogue(messages[:place], control=named)]
            if is_whole:
                parts.append(template.dialogue(messages[: place + 1], ending="closed", control=named))
        except PromptError:
            continue
        if all(text.startswith(part) for part in parts):
            return [len(part) for part in parts]
    return []
