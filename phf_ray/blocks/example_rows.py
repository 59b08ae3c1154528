"""Reads feedback corpora as units of rows: examples as one row each, comparisons as pairs.

Ties and comparisons whose better answer is unknown are skipped and counted: nothing can be learned from them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from phf_ray.blocks.examples import AnswerIds, RowLimits, conversation_row, pack_units, rows_of_unit
from phf_ray.blocks.held_out import is_held_out
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.tokens import TokenRun
from phf_ray.feedback.reader import read_feedback_part
from phf_ray.feedback.rows import Comparison, Example, FeedbackRow
from phf_ray.generation.chat import ChatPrompt, Message, Prompt, PromptError, PromptTemplate, load_template, prompt_text
from phf_ray.records import NEVER_SCORED, Rejected, ScoredDocument, TokenBlock, TokenKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class ExampleSettings:
    """The settings that decide blocks of examples, apart from rows, tokenizer and length of the blocks."""

    kind: Literal["examples", "comparisons"]
    template: str
    """Name or absolute path of the prompts' template; see `phf_ray.generation.chat`."""
    template_text: str
    """Its content: an edited template makes other blocks."""
    row_length: int
    learn: Literal["completions", "all"]
    """Tokens that are learned: those of answers, or those of prompts too."""
    good: str | None = None
    """Control token of answers that stand behind `good`."""
    bad: str | None = None


@dataclass(frozen=True, slots=True)
class FeedbackPart:
    """A file of a feedback corpus."""

    file: str
    size: int

    @property
    def label(self) -> str:
        return self.file

    def rows(self) -> Iterator[FeedbackRow]:
        return read_feedback_part(self.file)

    def documents(self, _reject: Callable[[Rejected], None], /) -> Iterator[ScoredDocument]:
        """Yield the words of each row, for comparisons with evaluation sets."""
        for row in self.rows():
            texts = [_prompt_of(row)]
            texts += [row.output_1, row.output_2] if isinstance(row, Comparison) else [row.completion]
            yield ScoredDocument(row.id, ("\n\n".join(texts),), (None,), (NEVER_SCORED,))


def _prompt_of(row: FeedbackRow) -> str:
    """Return the text that decides whether a row is held out: equal prompts stay on one side."""
    if row.prompt is not None:
        return prompt_text(row.prompt)
    assert isinstance(row, Example)
    first = next((place for place, one in enumerate(row.conversation) if one.role == "assistant"), None)
    return prompt_text(ChatPrompt(row.conversation[:first]))


class ExamplePacker:
    """Packs the rows of parts into blocks, and keeps the held-out ones for blocks of their own."""

    def __init__(
        self,
        settings: ExampleSettings,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        length: int,
        held_out_fraction: float,
        stats: PackingStats,
    ):
        """`stats` counts what is packed, but not the held-out blocks."""
        self._reader = UnitReader(settings, tokenizer, held_out_fraction=held_out_fraction)
        self._length, self._stats = length, stats
        pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self._pad_id = int(pad_id)
        self._held_out: list[list[TokenRun]] = []

    def blocks(self, parts: Iterable[Any]) -> Iterator[TokenBlock]:
        for block in pack_units(self._units(parts), length=self._length, pad_id=self._pad_id):
            self._stats.add_block(block)
            yield block

    def held_out_blocks(self) -> Iterator[TokenBlock]:
        """Yield the blocks of the rows that `blocks` has left out so far."""
        return pack_units(self._held_out, length=self._length, pad_id=self._pad_id)

    def _units(self, parts: Iterable[Any]) -> Iterator[list[TokenRun]]:
        for part in parts:
            assert isinstance(part, FeedbackPart), part
            for apart, unit in self._reader.units(part, stats=self._stats):
                if apart:
                    self._stats.num_documents_dropped["held_out"] += 1
                    self._held_out.append(unit)
                else:
                    self._stats.num_documents_kept += 1
                    yield unit


class UnitReader:
    """Turns the rows of a feedback corpus into units of token rows."""

    def __init__(self, settings: ExampleSettings, tokenizer: "PreTrainedTokenizerFast", *, held_out_fraction: float):
        self._settings = settings
        self._tokenizer = tokenizer
        self._template: PromptTemplate = load_template(settings.template, tokenizer=tokenizer)
        self._fraction = held_out_fraction
        end_id = tokenizer.eos_token_id
        self._limits = RowLimits(settings.row_length, start_id=end_id, end_id=end_id)
        # Words of a data set that spell out a special token would be read as that token. `all_special_tokens` lacks
        # those that were only added as special, such as the marks of turns.
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = sorted({*filter(None, tokenizer.all_special_tokens), *added})

    def units(self, part: FeedbackPart, *, stats: PackingStats) -> Iterator[tuple[bool, list[TokenRun]]]:
        """Yield each unit, and whether it is held out."""
        for row in part.rows():
            rows = self._unit(row, stats=stats)
            if rows is not None:
                yield is_held_out(_prompt_of(row), self._fraction), rows

    def _unit(self, row: FeedbackRow, *, stats: PackingStats) -> list[TokenRun] | None:
        turns: tuple[Message, ...] = ()
        if isinstance(row, Comparison):
            if row.better is None or row.worse is None:
                stats.num_documents_dropped[row.verdict] += 1
                return None
            completions, control = [row.better, row.worse], None
        else:
            completions, control, turns = [row.completion], row.control, row.conversation
        spoken = [text for one in turns for text in (one.role, one.content)]
        if self._spells_special_token([*completions, *spoken, _prompt_of(row)]):
            stats.num_documents_dropped["special_token_in_text"] += 1
            return None
        try:
            if row.prompt is None:
                return self._conversation(turns, stats=stats)
            answers = [self._answer(row.prompt, text, control) for text in completions]
        except PromptError:
            stats.num_documents_dropped["template_cannot_hold_it"] += 1
            return None
        rows = rows_of_unit(answers, self._limits, stats=stats)
        return rows if rows is None or self._settings.learn == "completions" else [_learned(one) for one in rows]

    def _answer(self, prompt: Prompt, completion: str, control: str | None) -> AnswerIds:
        rendered = self._template.example(prompt, completion)
        token = {"good": self._settings.good, "bad": self._settings.bad}.get(control or "")
        before = [] if token is None else [int(self._tokenizer.convert_tokens_to_ids(token))]  # type: ignore[arg-type]
        return AnswerIds(self._ids(rendered.prompt), self._ids(rendered.completion), before)

    def _conversation(self, messages: Sequence[Message], *, stats: PackingStats) -> list[TokenRun] | None:
        pieces = [(self._ids(piece.text), piece.is_answer) for piece in self._template.conversation(messages)]
        row = conversation_row(pieces, self._limits, stats=stats)
        if row is None:
            return None
        return [row if self._settings.learn == "completions" else _learned(row)]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _spells_special_token(self, texts: Sequence[str]) -> bool:
        return any(token in text for text in texts for token in self._special)


def _learned(row: TokenRun) -> TokenRun:
    kinds = np.where(row.kinds == TokenKind.GIVEN, TokenKind.PLAIN, row.kinds).astype(np.uint8)
    return TokenRun(row.ids, row.scores, kinds)
