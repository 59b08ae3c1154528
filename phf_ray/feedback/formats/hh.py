"""Anthropic's HH-RLHF: `chosen` and `rejected` are whole dialogues with one beginning, the prompt.

The prompt ends with the last "\\n\\nAssistant:" that both dialogues share. Cutting each at its own last mark would give
other prompts where an answer holds a further mark.
"""

import re

from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    common_beginning,
    text_of,
)
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ASSISTANT, USER, ChatPrompt, Message, TextPrompt

HUMAN_MARK = "\n\nHuman:"
ANSWER_MARK = "\n\nAssistant:"
_ROLES = {HUMAN_MARK: USER, ANSWER_MARK: ASSISTANT}
_MARK = re.compile(f"({HUMAN_MARK}|{ANSWER_MARK})")


def convert(record: Record, reading: Reading) -> Converted:
    chosen, rejected = text_of(record, "chosen"), text_of(record, "rejected")
    if chosen == rejected:
        raise UnfitRecord("equal_answers", "chosen and rejected are the same")
    if record.get("prompt") is None:
        common = common_beginning(chosen, rejected)
        end = common.rfind(ANSWER_MARK)
        if end < 0:
            raise UnfitRecord("no_prompt", f"chosen and rejected share no {ANSWER_MARK!r}")
        prompt = common[: end + len(ANSWER_MARK)]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        prompt = text_of(record, "prompt")
    columns = frozenset({"prompt", "chosen", "rejected"})
    if reading.as_text:
        return Converted((Comparison(TextPrompt(prompt), chosen, rejected, 1.0),), columns, names_better=True)
    # The mark, not the answer, has the space before it and the line ends after it.
    row = Comparison(ChatPrompt(dialogue(prompt)), chosen.strip(), rejected.strip(), 1.0)
    return Converted((row,), columns, names_better=True)


def dialogue(prompt: str) -> tuple[Message, ...]:
    """Return the turns of a prompt that ends with the mark of the answer. Raises UnfitRecord if it is no dialogue."""
    before, *pieces = _MARK.split(prompt)
    if before.strip():
        raise UnfitRecord("not_a_dialogue", f"it begins with {before[:40]!r}, not with {HUMAN_MARK!r}")
    turns = [Message(_ROLES[mark], words.strip()) for mark, words in zip(pieces[::2], pieces[1::2], strict=True)]
    if len(turns) < 2 or turns[-1] != Message(ASSISTANT, ""):
        raise UnfitRecord("not_a_dialogue", f"the prompt has no turn before a last {ANSWER_MARK!r}")
    return tuple(turns[:-1])


def _fits(record: Record) -> bool:
    texts = [record["chosen"], record["rejected"]]
    return "prompt" not in record and all(isinstance(text, str) and HUMAN_MARK in text for text in texts)


HH = FeedbackFormat(columns=(("chosen", "rejected"),), fits=_fits, convert=convert, holds_dialogues=True)
