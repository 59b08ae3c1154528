"""TRL's formats: `prompt, completion[, label]`, `prompt, chosen, rejected`, `chosen, rejected` with one beginning, and
`messages`. Each of prompt and answers is a text or a list of messages."""

from typing import Any

from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    answer_of,
    common_beginning,
    messages_of,
    text_of,
)
from phf_ray.feedback.rows import Comparison, Example
from phf_ray.generation.chat.prompts import ChatPrompt, Message, Prompt, TextPrompt

COMPARED = frozenset({"prompt", "chosen", "rejected"})


def convert(record: Record, _: Reading) -> Converted:
    if "chosen" in record and "rejected" in record:
        return Converted((comparison_of(record),), COMPARED, names_better=True)
    if "completion" in record:
        return _example(record)
    messages = messages_of(record, "messages")
    if not any(message.role == "assistant" and message.content.strip() for message in messages):
        raise UnfitRecord("empty_answer", "no message of the assistant says anything")
    return Converted((Example(prompt=None, conversation=messages),), frozenset({"messages"}))


def _example(record: Record) -> Converted:
    prompt = _prompt(record)
    completion = _answer(record, "completion", prompt)
    label = record.get("label")
    if label is None:
        return Converted((Example(prompt, completion),), frozenset({"prompt", "completion"}))
    if not isinstance(label, bool) and label not in (0, 1):
        raise UnfitRecord("bad_label", f"label {label!r} is neither true nor false")
    return Converted((Example(prompt, completion, label=bool(label)),), frozenset({"prompt", "completion", "label"}))


def comparison_of(record: Record, preference: float | None = 1.0) -> Comparison:
    """Return `chosen` and `rejected` in this order. `preference`: another one, if the record says that it is."""
    if preference == 1.0 and record["chosen"] == record["rejected"] and record["chosen"] is not None:
        raise UnfitRecord("equal_answers", "chosen and rejected are the same")
    is_whole = isinstance(record["chosen"], list) and not isinstance(record.get("prompt"), list)
    if record.get("prompt") is None or is_whole:
        prompt, chosen, rejected = _split_messages(record) if is_whole else _split_texts(record)
    else:
        prompt = _prompt(record)
        chosen, rejected = _answer(record, "chosen", prompt), _answer(record, "rejected", prompt)
    return Comparison(prompt, chosen, rejected, preference)


def _prompt(record: Record) -> Prompt:
    if isinstance(record.get("prompt"), list):
        messages = messages_of(record, "prompt")
        if not messages:
            raise UnfitRecord("no_prompt", "column 'prompt' has no messages")
        return ChatPrompt(messages)
    return TextPrompt(text_of(record, "prompt"))


def _answer(record: Record, name: str, prompt: Prompt) -> str:
    if isinstance(prompt, TextPrompt):
        return text_of(record, name)
    if isinstance(record.get(name), str):
        return str(record[name])
    return answer_of(messages_of(record, name), name)


def _split_messages(record: Record) -> tuple[Prompt, str, str]:
    """Take the messages that both begin with as the prompt. The last of each is its answer, even if both are equal."""
    chosen, rejected = messages_of(record, "chosen"), messages_of(record, "rejected")
    common = _common(chosen[:-1], rejected[:-1])
    if not common:
        raise UnfitRecord("no_prompt", "chosen and rejected have no message in common to begin with")
    prompt = ChatPrompt(common)
    return prompt, answer_of(chosen[len(common) :], "chosen"), answer_of(rejected[len(common) :], "rejected")


def _common(first: tuple[Message, ...], second: tuple[Message, ...]) -> tuple[Message, ...]:
    pairs: Any = zip(first, second, strict=False)
    length = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
    return first[:length]


def _split_texts(record: Record) -> tuple[Prompt, str, str]:
    """Take the text that both begin with as the prompt. It ends before a space, so that no word is cut, as in TRL."""
    chosen, rejected = text_of(record, "chosen"), text_of(record, "rejected")
    begin = len(common_beginning(chosen, rejected))
    if begin and chosen[begin - 1] == " ":
        begin -= 1
    if not begin:
        raise UnfitRecord("no_prompt", "chosen and rejected have no beginning in common")
    return TextPrompt(chosen[:begin]), chosen[begin:], rejected[begin:]


TRL = FeedbackFormat(
    columns=(("chosen", "rejected"), ("prompt", "completion"), ("messages",)),
    fits=lambda _: True,
    convert=convert,
)
