"""Answers of reference models behind any OpenAI-compatible URL, with our prompts and AlpacaFarm's decoding settings.

Every answer is kept in a store as soon as it is there, so a run that was ended asks only what is missing.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from phf_ray.errors import DataError
from phf_ray.feedback.values import unfolded
from phf_ray.generation.chat.prompts import USER, InstructionPrompt, Message
from phf_ray.generation.chat.templates import load_template
from phf_ray.judging.board.read import read_records
from phf_ray.judging.board.rows import instruction_of, optional_text
from phf_ray.judging.budget import Budget
from phf_ray.judging.endpoint import EndpointSettings, JudgeEndpoint
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.question import Answer, Asker, Failure, Question
from phf_ray.judging.store import Store
from phf_ray.judging.stored_asker import StoredAsker

TEMPLATE = "alpaca"
_AT_ONCE = 1000
"""Questions that are in memory at once; the endpoint sends fewer."""

Style = Literal["chat", "completion"]


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """How a model is asked."""

    style: Style
    max_characters: int | None
    """Length that a chat model is asked to keep to; None: none."""
    temperature: float = 0.7
    max_tokens: int = 300
    seed: int | None = None


def style_of(model: str) -> AnswerStyle:
    """Return how AlpacaFarm asked a model of this kind; every model that it did not know is a chat of 1000 characters.

    Davinci completed the text of the prompt; ChatGPT was asked for at most 1000 characters, GPT-4 for at most 500.
    """
    if "davinci" in model or "instruct" in model:
        return AnswerStyle("completion", None)
    return AnswerStyle("chat", 500 if model.startswith("gpt-4") else 1000)


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    instruction: str
    input: str
    dataset: str | None
    datasplit: str | None


def read_prompts(sources: Sequence[str], *, option: str) -> list[AskedPrompt]:
    """Return the prompts of rows with an instruction, and perhaps input, dataset and datasplit. Raises DataError."""
    prompts = []
    for place, record in read_records(sources, option=option):
        row = unfolded(record)
        values = {name: optional_text(row, name, place) for name in ("input", "dataset", "datasplit")}
        prompts.append(
            AskedPrompt(instruction_of(row, place), values["input"] or "", values["dataset"], values["datasplit"])
        )
    if not prompts:
        raise DataError(f"{option} {' '.join(sources)}: there are no rows; give files that are not empty")
    return prompts


def question_of(prompt: AskedPrompt, style: AnswerStyle, *, judge: str) -> Question:
    """Return what the model is asked. The text of a prompt is never a template itself."""
    text = load_template(TEMPLATE).example(InstructionPrompt(prompt.instruction, prompt.input), "").prompt
    decoding = {"temperature": style.temperature, "max_tokens": style.max_tokens}
    if style.style == "completion":
        return Question(judge, prompt=text, decoding=decoding, seed=style.seed)
    limit = [] if style.max_characters is None else [Message("system", _limit(style.max_characters))]
    return Question(judge, messages=(*limit, Message(USER, text)), decoding=decoding, seed=style.seed)


def _limit(max_characters: int) -> str:
    return f"Give a helpful answer of at most {max_characters} characters."


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    rows: list[dict[str, Any]]
    """AlpacaFarm's: instruction, input, output, generator, dataset, datasplit. A model may have said nothing."""
    failures: Counter[str]
    """Kind of the reason -> prompts without an answer."""
    example: str
    """The first reason; empty if there is none."""

    @property
    def content(self) -> bytes:
        return (json.dumps(self.rows, indent=1, ensure_ascii=False) + "\n").encode()


async def answer_prompts(
    prompts: Sequence[AskedPrompt], style: AnswerStyle, *, model: str, judge: str, asker: Asker
) -> ReferenceAnswers:
    """Return the model's answers in the order of the prompts. Raises what the asker raises."""
    rows: list[dict[str, Any]] = []
    failures: Counter[str] = Counter()
    example = ""
    for first in range(0, len(prompts), _AT_ONCE):
        some = prompts[first : first + _AT_ONCE]
        answers = await asyncio.gather(*(asker.ask(question_of(prompt, style, judge=judge)) for prompt in some))
        for prompt, answer in zip(some, answers, strict=True):
            if isinstance(answer, Failure):
                failures[answer.kind] += 1
                example = example or answer.reason
            else:
                rows.append(_row(prompt, answer, model))
    return ReferenceAnswers(rows, failures, example)


def _row(prompt: AskedPrompt, answer: Answer, model: str) -> dict[str, Any]:
    return {
        "instruction": prompt.instruction,
        "input": prompt.input,
        "output": answer.text.strip(),
        "generator": model,
        "dataset": prompt.dataset,
        "datasplit": prompt.datasplit,
    }


async def answer_here(
    prompts: Sequence[AskedPrompt],
    style: AnswerStyle,
    settings: EndpointSettings,
    *,
    cache: str,
    budget: Budget | None = None,
) -> ReferenceAnswers:
    """Answer the prompts by a server, with every answer kept in the folder `cache`."""
    store = Store(cache)
    asker = StoredAsker(store, JudgeEndpoint(settings), Ledger(store, budget))
    try:
        return await answer_prompts(prompts, style, model=settings.model, judge=settings.judge, asker=asker)
    finally:
        await asker.close()
        store.close()
