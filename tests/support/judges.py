"""Judges for tests: askers that answer from what they are shown, and pools that ask them."""

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phf_ray.judging import Judge, Pair
from phf_ray.judging.question import Answer, Failure, Question

CHAT = {"chat": {"url": "http://localhost:1/v1", "model": "m"}}
REGEX = {"regex": {1: r"Output \(a\)", 2: r"Output \(b\)"}}


def shown_in(question: Question) -> list[tuple[str, str, str]]:
    """(instruction, answer a, answer b) of every pair in the prompt."""
    if question.messages is None:
        prompt = str(question.prompt)
    else:
        prompt = "\n".join(message.content for message in question.messages)
    texts = re.findall(r"<(text(?:-\d+)?)>\n(.*?)\n</\1>", prompt, re.DOTALL)
    values = [text for _, text in texts]
    return list(zip(values[::3], values[1::3], values[2::3], strict=True))


class LongerAsker:
    """Prefers the longer answer of each pair in the prompt, and remembers what it was asked."""

    def __init__(self, say: Callable[[str], str] = lambda text: text):
        self.questions: list[Question] = []
        self._say = say

    async def ask(self, question: Question) -> Answer | Failure:
        self.questions.append(question)
        verdicts = [f"Output ({'a' if len(a) >= len(b) else 'b'})" for _, a, b in shown_in(question)]
        return Answer(self._say("\n".join(verdicts)), price=0.12, seconds=1.2)

    @property
    def shown(self) -> list[tuple[str, str, str]]:
        return [pair for question in self.questions for pair in shown_in(question)]


def prompt_file(folder: Any, *, pairs: int = 1, name: str = "prompt.txt") -> str:
    """Write a prompt with places for as many pairs; return its path."""
    (folder / name).write_text("Which is better?\n" + "{instruction}\n{output_1}\n{output_2}\n" * pairs)
    return str(folder / name)


def asked_pool(folder: Any, *, pairs: int = 1, **annotator: Any) -> dict[str, Any]:
    """A pool of one annotator that asks a judge behind a URL."""
    prompt = prompt_file(folder, pairs=pairs, name=f"prompt-{pairs}.txt")
    given = {"name": "asked", "judge": CHAT, "prompt": prompt, "parser": REGEX, "batch_size": pairs, **annotator}
    return {"annotators": [given]}


def rules(*names: str, **annotator: Any) -> dict[str, Any]:
    """A pool of rules."""
    return {"annotators": [{"name": name, "judge": {"rule": name}, **annotator} for name in names]}


def numbered_rows(num: int) -> list[dict[str, str]]:
    """Pairs of different lengths; the longer one is the second in every other row."""
    return [
        {"instruction": f"Count to {i}.", "input": "", "output_1": "x" * (i + 1), "output_2": "y" * (i + 2 * (i % 2))}
        for i in range(num)
    ]


class WaitsForAnother(Judge):
    """Judges in a process of its own, and prefers nothing before another process judges, too."""

    def __init__(self, folder: str, patience_s: float = 120):
        self._folder, self._deadline = Path(folder), time.monotonic() + patience_s

    def prefer(self, pairs: Sequence[Pair]) -> list[float]:
        (self._folder / str(os.getpid())).touch()
        while len(list(self._folder.iterdir())) < 2 and time.monotonic() < self._deadline:
            time.sleep(0.05)
        return [1.5 for _ in pairs]
