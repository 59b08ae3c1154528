"""Reads feedback corpora as units of rows: examples as one row each, comparisons as pairs.

Ties and comparisons whose better answer is unknown are skipped and counted: nothing can be learned from them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from phf_ray.blocks.examples import AnswerIds, RowLimits, conversation_row, pack_units, rows_of_unit, runs_of
from phf_ray.blocks.held_out import is_held_out
from phf_ray.blocks.mismatched import ExampleRow, with_mismatched
from phf_ray.blocks.record_rows import record_row
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.tokens import TokenRun
from phf_ray.config import FeedbackCompat
from phf_ray.feedback.hindsight.fields import learned_texts, pieces_of
from phf_ray.feedback.layout import PromptForm
from phf_ray.feedback.reader import read_feedback_part
from phf_ray.feedback.rows import Comparison, Example, FeedbackRow, FieldRecord
from phf_ray.feedback.values import finite_number, unfolded
from phf_ray.generation.chat import ChatPrompt, Message, Prompt, PromptError, PromptTemplate, load_template, prompt_text
from phf_ray.generation.chat.joint_rows import JointRows
from phf_ray.records import LABEL, MARGIN, NEVER_SCORED, Rejected, ScoredDocument, TokenBlock, TokenKind

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
    has_labels: bool = False
    """Whether each row carries its label (KTO)."""
    has_mismatched: bool = False
    """Whether behind each row stands its prompt with another prompt's answer; see `blocks/mismatched.py`."""

    margin: Literal["column", "preference"] | None = None
    """Where the margin comes from that each pair carries; None: it carries none."""
    compat: FeedbackCompat = None
    """Rows as another system makes them."""
    for_reward: bool = False
    """Under compat: whether the rows are for a reward model."""
    prompts: PromptForm | None = None
    """What the rows of the corpus are made of; None in older manifests. Blocks are told apart by the corpus."""

    @property
    def is_joint(self) -> bool:
        """Whether prompt and completion are tokenized together, as TRL and AlpacaFarm do."""
        return self.compat in ("trl", "alpaca_farm")

    @property
    def rows_of_unit(self) -> int:
        return 2 if self.kind == "comparisons" or self.has_mismatched else 1


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
            texts += _answers_of(row)
            yield ScoredDocument(row.id, ("\n\n".join(texts),), (None,), (NEVER_SCORED,))


def _prompt_of(row: FeedbackRow) -> str:
    """Return the text that decides whether a row is held out: equal prompts stay on one side."""
    if row.prompt is not None:
        return prompt_text(row.prompt)
    assert isinstance(row, Example)
    first = next((place for place, one in enumerate(row.conversation) if one.role == "assistant"), None)
    return prompt_text(ChatPrompt(row.conversation[:first]))


def _answers_of(row: FeedbackRow) -> list[str]:
    if isinstance(row, Comparison):
        return [row.output_1, row.output_2]
    return [row.completion] if row.record is None else learned_texts(row.record)


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
        self._held_out: list[Unit] = []

    def blocks(self, parts: Iterable[Any]) -> Iterator[TokenBlock]:
        for block in pack_units(self._kept(parts), length=self._length, pad_id=self._pad_id):
            self._stats.add_block(block)
            yield block

    def held_out_blocks(self) -> Iterator[TokenBlock]:
        """Yield the blocks of the rows that `blocks` has left out so far."""
        whole = self._reader.whole_units(self._held_out, stats=PackingStats())
        return pack_units(whole, length=self._length, pad_id=self._pad_id)

    def _kept(self, parts: Iterable[Any]) -> Iterator[Sequence[TokenRun]]:
        for rows in self._reader.whole_units(self._units(parts), stats=self._stats):
            self._stats.num_documents_kept += 1
            yield rows

    def _units(self, parts: Iterable[Any]) -> Iterator["Unit"]:
        for part in parts:
            assert isinstance(part, FeedbackPart), part
            for unit in self._reader.units(part, stats=self._stats):
                if unit.is_held_out:
                    self._stats.num_documents_dropped["held_out"] += 1
                    self._held_out.append(unit)
                else:
                    yield unit


class Unit(NamedTuple):
    is_held_out: bool
    prompt: str
    rows: list[TokenRun]


class UnitReader:
    """Turns the rows of a feedback corpus into units of token rows."""

    def __init__(self, settings: ExampleSettings, tokenizer: "PreTrainedTokenizerFast", *, held_out_fraction: float):
        self._settings = settings
        self._tokenizer = tokenizer
        self._template: PromptTemplate = load_template(settings.template, tokenizer=tokenizer)
        self._fraction = held_out_fraction
        end_id = tokenizer.eos_token_id
        self._end_id, self._start_of_text = end_id, tokenizer.bos_token_id
        is_joint = settings.is_joint
        self._limits = RowLimits(settings.row_length, start_id=end_id, end_id=end_id, cuts_end=is_joint)
        self._joint_rows = JointRows(
            settings.compat if settings.is_joint else None,
            tokenizer=tokenizer,
            template=self._template,
            for_reward=settings.for_reward,
            length=settings.row_length,
        )
        # Words of a data set that spell out a special token would be read as that token. `all_special_tokens` lacks
        # those that were only added as special, such as the marks of turns.
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = sorted({*filter(None, tokenizer.all_special_tokens), *added})

    def units(self, part: FeedbackPart, *, stats: PackingStats) -> Iterator[Unit]:
        """Yield the units that one row of the corpus makes by itself."""
        for row in part.rows():
            rows = self._unit(row, stats=stats)
            if rows is not None:
                prompt = _prompt_of(row)
                yield Unit(is_held_out(prompt, self._fraction), prompt, rows)

    def whole_units(self, units: Iterable[Unit], *, stats: PackingStats) -> Iterator[Sequence[TokenRun]]:
        """Yield the rows of each unit, with those that other rows of the corpus lend it."""
        if not self._settings.has_mismatched:
            return (unit.rows for unit in units)
        examples = (ExampleRow(unit.prompt, row) for unit in units for row in unit.rows)
        return with_mismatched(examples, self._limits, stats=stats)

    def _unit(self, row: FeedbackRow, *, stats: PackingStats) -> list[TokenRun] | None:
        if isinstance(row, Example) and row.record is not None:
            return self._record(row.record, stats=stats)
        turns: tuple[Message, ...] = ()
        margin: float | None = None
        if isinstance(row, Comparison):
            if row.better is None or row.worse is None:
                stats.num_documents_dropped[row.verdict] += 1
                return None
            margin = _margin_of(row, self._settings.margin)
            if margin is None:
                stats.num_documents_dropped["no_margin"] += 1
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
            rows = self._rows(row.prompt, completions, control, stats=stats)
        except PromptError:
            stats.num_documents_dropped["template_cannot_hold_it"] += 1
            return None
        if rows is not None:
            rows = [self._with_numbers(one, row, margin) for one in rows]
        return rows if rows is None or self._settings.learn == "completions" else [_learned(one) for one in rows]

    def _with_numbers(self, run: TokenRun, row: FeedbackRow, margin: float | None) -> TokenRun:
        if self._settings.has_labels:
            assert isinstance(row, Example)
            run = run.with_number(LABEL, 1.0 if row.label else -1.0)
        if self._settings.margin is not None:
            assert margin is not None
            run = run.with_number(MARGIN, margin)
        return run

    def _rows(
        self, prompt: Prompt, completions: Sequence[str], control: str | None, *, stats: PackingStats
    ) -> list[TokenRun] | None:
        if not self._settings.is_joint:
            answers = [self._answer(prompt, text, control) for text in completions]
            return rows_of_unit(answers, self._limits, stats=stats)
        joint = [self._joint_rows.row(self._template.example(prompt, text)) for text in completions]
        # DIFFERS: phf-ray cuts pairs that are too long for a reward model; TRL leaves them out.
        drops_cut = self._settings.for_reward and self._settings.compat == "trl"
        return runs_of(joint, drops_cut=drops_cut, stats=stats)

    def _answer(self, prompt: Prompt, completion: str, control: str | None) -> AnswerIds:
        rendered = self._template.example(prompt, completion)
        token = {"good": self._settings.good, "bad": self._settings.bad}.get(control or "")
        before = [] if token is None else [int(self._tokenizer.convert_tokens_to_ids(token))]  # type: ignore[arg-type]
        return AnswerIds(self._ids(rendered.prompt), self._ids(rendered.completion), before)

    def _record(self, record: FieldRecord, *, stats: PackingStats) -> list[TokenRun] | None:
        if self._spells_special_token(list(record.texts.values())):
            stats.num_documents_dropped["special_token_in_text"] += 1
            return None
        pieces = pieces_of(record.fields, record.texts)
        if self._start_of_text is None and any(piece.token == "bos" for piece in pieces):
            stats.num_documents_dropped["tokenizer_has_no_bos"] += 1
            return None
        tokens = {"eos": self._end_id, "bos": self._start_of_text}
        ids = [self._ids(piece.text) if piece.token is None else [tokens[piece.token]] for piece in pieces]
        learned = [piece.is_learned for piece in pieces]
        # DIFFERS: phf-ray ends a record with one end-of-text token; CoH adds one more to it.
        adds_end = self._settings.compat == "coh"
        row = record_row(list(zip(ids, learned, strict=True)), self._limits, adds_end=adds_end, stats=stats)
        return None if row is None else [row if self._settings.learn == "completions" else _learned(row)]

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


def _margin_of(row: Comparison, source: Literal["column", "preference"] | None) -> float | None:
    """Return 0 if pairs carry no margin, and None if this one should and has none."""
    if source is None or row.preference is None:
        return 0.0
    if source == "preference":
        return 2 * abs(row.preference - 1.5)
    value = finite_number(unfolded({"meta": row.meta}).get(MARGIN))
    # Channels are float32, in which a larger number would be infinite.
    return None if value is None or abs(value) > np.finfo(np.float32).max else value


def _learned(row: TokenRun) -> TokenRun:
    kinds = np.where(row.kinds == TokenKind.GIVEN, TokenKind.PLAIN, row.kinds).astype(np.uint8)
    return TokenRun(row.ids, row.scores, kinds)
