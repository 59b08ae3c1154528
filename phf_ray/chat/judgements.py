"""What a person said of answers, and whole conversations, as rows that `phf prepare-feedback` reads.

    comparisons.jsonl   two answers to the same messages, and which is better
    labels.jsonl        one answer, and whether it is good

Lines are added, never changed. The two kinds are apart because the rows of a feedback corpus have one form.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phf_ray.chat.conversation import ChatAnswer, ChatTurn, Conversation
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import Message
from phf_ray.storage.append import append_line

COMPARISONS, LABELS = "comparisons.jsonl", "labels.jsonl"
PREFERENCES: Mapping[str, float] = {"left": 1, "right": 2, "tie": 1.5}
GOOD: Mapping[str, bool] = {"up": True, "down": False}


class JudgementFiles:
    """Stores judgements of one server's answers in a folder of this machine."""

    def __init__(self, folder: str, *, annotator: str, url: str):
        self.folder = Path(folder)
        self._annotator, self._url = annotator, url
        if "://" in folder:
            raise ConfigError(f"--save-comparisons {folder}: judgements are added line by line; give a local folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (COMPARISONS, LABELS):
                append_line(self.folder / name, None)
        except OSError as error:
            raise ConfigError(f"--save-comparisons {folder}: nothing can be stored there ({error})") from None

    def add(self, turn: ChatTurn) -> Path:
        """Store what a person said of a turn, and return the file. Raises DataError if the disk refuses."""
        about = {"annotator": self._annotator, "time": _now(), "url": self._url}
        if len(turn.answers) == 2:
            name, row = COMPARISONS, comparison_row(turn)
        else:
            name, row = LABELS, label_row(turn)
        append_line(self.folder / name, json.dumps({**row, **about}))
        return self.folder / name


def comparison_row(turn: ChatTurn) -> dict[str, Any]:
    """Return the row of a judged turn. `output_1` is the answer that stood left, which was drawn."""
    assert turn.judgement is not None, "the caller has it judged"
    left, right = turn.answers
    return {
        "messages": _objects(left.asked),
        "output_1": left.text,
        "output_2": right.text,
        "preference": PREFERENCES[turn.judgement],
        "generator_1": left.arm.name,
        "generator_2": right.arm.name,
        "settings_1": _settings(left),
        "settings_2": _settings(right),
        "shown": {"left": 1, "right": 2, "left_is_arm": left.number + 1},
    }


def label_row(turn: ChatTurn) -> dict[str, Any]:
    assert turn.judgement is not None, "the caller has it judged"
    (answer,) = turn.answers
    return {
        "messages": _objects(answer.asked),
        "completion": answer.text,
        "label": GOOD[turn.judgement],
        "generator": answer.arm.name,
        "settings": _settings(answer),
    }


def exported(conversation: Conversation, *, url: str) -> str:
    """Return a conversation as JSON lines, one for each arm that has said anything.

    The line has the messages as they were heard, which `phf prepare-feedback` reads, and who answered each turn.
    """
    return "".join(f"{json.dumps(row)}\n" for row in _export_rows(conversation, url))


def _export_rows(conversation: Conversation, url: str) -> Iterator[dict[str, Any]]:
    numbers = sorted({answer.number for turn in conversation.turns for answer in turn.answers})
    for number in numbers:
        heard = [turn.answer_for(number) for turn in conversation.turns]
        usable = [answer for answer in heard if answer.is_usable]
        if not usable:
            continue
        yield {
            "messages": _objects(conversation.messages(number)),
            "arm": number + 1,
            "generators": [answer.arm.name for answer in usable],
            "settings": [_settings(answer) for answer in usable],
            "judgements": [
                turn.judgement for turn, answer in zip(conversation.turns, heard, strict=True) if answer.is_usable
            ],
            "time": _now(),
            "url": url,
        }


def _settings(answer: ChatAnswer) -> dict[str, Any]:
    found = {
        "model": answer.arm.model,
        "control": answer.arm.control,
        "temperature": answer.arm.temperature,
        "max_tokens": answer.arm.max_tokens,
        "finish_reason": answer.finish_reason,
        "stopped": answer.state == "stopped" or None,
        "scorer": None if answer.scores is None else answer.scores.scorer,
        "score": None if answer.scores is None else answer.scores.whole,
    }
    return {name: value for name, value in found.items() if value is not None}


def _objects(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
