"""Names of files and columns in a feedback corpus, and checks that recognise such a folder.

    part-00000.parquet ...  the rows
    rejected/part-*.parquet source, record, reason, detail of records that became no row
    keys/*                  16 bytes for each row that was read, by which --append finds duplicates
    plan.json               input, settings and shards; shard i becomes part i
    manifest.json           kind, form of the prompts, columns, counts
    README.md               data card that `datasets.load_dataset` reads
    report.json             figures of --report
    _SUCCESS                written last

Columns of `examples`: id, PROMPT, completion, [label], [control], meta; of conversations: id, messages, meta; of
records with fields: id, prompt, fields, texts, meta.
Columns of `comparisons`: id, PROMPT, output_1, output_2, preference, annotator, meta.
PROMPT is `prompt`; or `messages`, a list of {role, content}; or `prompt, instruction, input`, where `prompt` is all.

These names are a contract: users, `datasets` and later stages read them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import pyarrow as pa

from phf_ray.corpus.layout import MANIFEST, PLAN, has_ours
from phf_ray.feedback.rows import Comparison, Example, FeedbackRow, FieldRecord
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt, Message, Prompt, TextPrompt, prompt_text
from phf_ray.storage.files import open_filesystem, store_errors

STAGE = "feedback"
FEEDBACK_KEYS = {MANIFEST: {"kind", "prompts"}, PLAN: {"stage", "shards"}}
"""Keys found only in files that phf-ray wrote for a feedback corpus."""

Kind = Literal["examples", "comparisons"]
PromptForm = Literal["text", "messages", "instruction", "conversation", "fields"]
"""How the rows of a set hold their prompts; conversations and records with fields hold their answers too. One form per
set."""

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROMPTS: Mapping[PromptForm, tuple[tuple[str, pa.DataType], ...]] = {
    "text": (("prompt", pa.string()),),
    "messages": (("messages", _MESSAGES),),
    "instruction": (("prompt", pa.string()), ("instruction", pa.string()), ("input", pa.string())),
    "conversation": (("messages", _MESSAGES),),
    "fields": (("prompt", pa.string()), ("fields", pa.string()), ("texts", pa.string())),
}
_WHOLE = ("conversation", "fields")
"""Forms that hold the answers too."""
_ANSWERS: Mapping[Kind, tuple[tuple[str, pa.DataType], ...]] = {
    "examples": (("completion", pa.string()),),
    "comparisons": (
        ("output_1", pa.string()),
        ("output_2", pa.string()),
        ("preference", pa.float64()),
        ("annotator", pa.string()),
    ),
}


def is_feedback_corpus(path: str) -> bool:
    """Whether prepare-feedback wrote this folder, finished or not."""
    filesystem, root = open_filesystem(path)
    with store_errors(path):
        return any(has_ours(filesystem, root, name, keys=FEEDBACK_KEYS) for name in FEEDBACK_KEYS)


@dataclass(frozen=True, slots=True)
class RowForm:
    """What all rows of a set have in common. It decides the columns."""

    kind: Kind
    prompts: PromptForm
    has_label: bool = False
    has_control: bool = False

    @classmethod
    def of(cls, row: FeedbackRow) -> Self:
        if isinstance(row, Comparison):
            return cls("comparisons", _form_of(row.prompt))
        if row.record is not None:
            return cls("examples", "fields")
        return cls("examples", _form_of(row.prompt), row.label is not None, row.control is not None)

    @property
    def schema(self) -> pa.Schema:
        fields = [("id", pa.string()), *_PROMPTS[self.prompts]]
        if self.prompts not in _WHOLE:
            fields += _ANSWERS[self.kind]
        fields += [("label", pa.bool_())] * self.has_label + [("control", pa.string())] * self.has_control
        return pa.schema([*fields, ("meta", pa.string())])

    def columns(self, rows: Iterable[FeedbackRow]) -> dict[str, list[Any]]:
        """Return the rows as a list for each column."""
        columns: dict[str, list[Any]] = {name: [] for name in self.schema.names}
        for row in rows:
            values = _cells(row)
            for name, column in columns.items():
                column.append(values[name])
        return columns

    def __str__(self) -> str:
        return f"{self.kind} with columns {', '.join(self.schema.names)}"


def row_of(record: Mapping[str, Any]) -> FeedbackRow:
    """Return the row that a part holds as this record."""
    messages = tuple(Message(one["role"], one["content"]) for one in record.get("messages") or ())
    fixed = {"id": record["id"], "meta": record["meta"]}
    prompt: Prompt = ChatPrompt(messages) if "messages" in record else TextPrompt(record.get("prompt", ""))
    if "instruction" in record:
        prompt = InstructionPrompt(record["instruction"], record["input"])
    if "output_1" in record:
        answers = {name: record[name] for name, _ in _ANSWERS["comparisons"]}
        return Comparison(prompt=prompt, **answers, **fixed)
    if "fields" in record:
        return Example(prompt, record=FieldRecord(record["fields"], json.loads(record["texts"])), **fixed)
    if "completion" not in record:
        return Example(prompt=None, conversation=messages, **fixed)
    label, control = record.get("label"), record.get("control")
    return Example(prompt=prompt, completion=record["completion"], label=label, control=control, **fixed)


def _form_of(prompt: Prompt | None) -> PromptForm:
    if prompt is None:
        return "conversation"
    return {TextPrompt: "text", ChatPrompt: "messages", InstructionPrompt: "instruction"}[type(prompt)]  # type: ignore[return-value]


def _cells(row: FeedbackRow) -> dict[str, Any]:
    cells: dict[str, Any] = {"id": row.id, "meta": row.meta}
    if row.prompt is not None:
        cells["prompt"] = prompt_text(row.prompt)
    if isinstance(row.prompt, InstructionPrompt):
        cells |= {"instruction": row.prompt.instruction, "input": row.prompt.input}
    messages: Sequence[Message] = row.prompt.messages if isinstance(row.prompt, ChatPrompt) else ()
    if isinstance(row, Example):
        messages = messages or row.conversation
        if row.record is not None:
            texts = json.dumps(dict(row.record.texts), ensure_ascii=False)
            cells |= {"fields": row.record.fields, "texts": texts}
        cells |= {"completion": row.completion, "label": row.label, "control": row.control}
    else:
        cells |= {name: getattr(row, name) for name, _ in _ANSWERS["comparisons"]}
    cells["messages"] = [{"role": message.role, "content": message.content} for message in messages]
    return cells
