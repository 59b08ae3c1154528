"""Battles of Chatbot Arena and MT-bench: `model_a, model_b, winner, conversation_a, conversation_b`.

The two conversations part at the first answer. So only battles of one turn compare two answers to one prompt; longer
ones are rejected and counted. A judgement of an earlier `turn` (MT-bench) looks at the conversation up to there.
"""

from collections.abc import Mapping

from phf_ray.feedback.formats.base import (
    TIE,
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    annotator_of,
    answer_of,
    messages_of,
    number_of,
)
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ChatPrompt, Message

_CONVERSATIONS = ("conversation_a", "conversation_b")
_WINNERS: Mapping[str, float] = {
    "model_a": 1.0,
    "model_b": 2.0,
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "bothbad"), TIE),
}


def convert(record: Record, _: Reading) -> Converted:
    turn = number_of(record, "turn")
    end = 2 * int(turn) if turn is not None and turn >= 1 else None
    first, second = (messages_of(record, name) for name in _CONVERSATIONS)
    if len(first) != len(second):
        raise UnfitRecord("unequal_lists", f"one conversation has {len(first)} messages, the other {len(second)}")
    # A system message may come before the turns.
    begin = sum(message.role == "system" for message in first)
    first, second = (one[: None if end is None else begin + end] for one in (first, second))
    prompt, one, other = compared(first, second, names=_CONVERSATIONS)
    winner = record.get("winner")
    row = Comparison(
        prompt,
        one,
        other,
        _WINNERS.get(winner) if isinstance(winner, str) else None,
        annotator_of(record, "judge"),
    )
    notes = ({"generator": record.get("model_a")}, {"generator": record.get("model_b")})
    return Converted((row,), frozenset({*_CONVERSATIONS, "model_a", "model_b", "judge"}), notes=(notes,))


def compared(
    first: tuple[Message, ...], second: tuple[Message, ...], *, names: tuple[str, ...]
) -> tuple[ChatPrompt, str, str]:
    """Return the prompt that two conversations share, and their last answers. `names`: their columns.

    Raises UnfitRecord if they differ before.
    """
    if len(first) < 2:
        raise UnfitRecord("no_prompt", f"the conversations have {len(first)} messages: no question and answer")
    if first[:-1] != second[:-1]:
        raise UnfitRecord("several_answers", "the conversations differ before their last answers, so share no prompt")
    return ChatPrompt(first[:-1]), answer_of(first[-1:], names[0]), answer_of(second[-1:], names[1])


BATTLES = FeedbackFormat(
    columns=(("model_a", "model_b", "winner", *_CONVERSATIONS),), fits=lambda _: True, convert=convert
)
