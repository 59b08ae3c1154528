"""The manifest, which describes a feedback corpus without reading it, and the data card written from it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from phf_ray.corpus.card_lines import front_lines, source_lines
from phf_ray.corpus.losses import Losses
from phf_ray.feedback.hindsight.fields import learned_texts
from phf_ray.feedback.layout import RowForm
from phf_ray.feedback.rows import Comparison, Example, FeedbackRow
from phf_ray.generation.chat.prompts import ChatPrompt, prompt_text
from phf_ray.records import Rejected


@dataclass(slots=True)
class FeedbackStats:
    """Counts of one part, or of all parts, which add up."""

    rows: int = 0
    prompt_characters: int = 0
    answer_characters: int = 0
    preferences: Counter[str] = field(default_factory=Counter)
    """Comparisons by verdict: first, second, tie, unknown."""
    marks: Counter[str] = field(default_factory=Counter)
    """Examples by label (label_true, label_false) and by control token (control_good, control_bad)."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Records that became no row, by reason. `unreadable` and `trailing_bytes` stand for the rest of a file."""
    losses: Losses = field(default_factory=Losses)

    def add(self, row: FeedbackRow) -> None:
        self.rows += 1
        if isinstance(row, Comparison):
            self.preferences[row.verdict] += 1
            self.answer_characters += len(row.output_1) + len(row.output_2)
        else:
            self._add_example(row)
        if isinstance(row.prompt, ChatPrompt):
            self.prompt_characters += sum(len(message.content) for message in row.prompt.messages)
        elif row.prompt is not None:
            self.prompt_characters += len(prompt_text(row.prompt))

    def _add_example(self, row: Example) -> None:
        self.answer_characters += len(row.completion)
        if row.record is not None:
            self.answer_characters += sum(map(len, learned_texts(row.record)))
        if row.label is not None:
            self.marks[f"label_{str(row.label).lower()}"] += 1
        if row.control is not None:
            self.marks[f"control_{row.control}"] += 1
        for message in row.conversation:
            if message.role == "assistant":
                self.answer_characters += len(message.content)
            else:
                self.prompt_characters += len(message.content)

    def reject(self, rejected: Rejected) -> None:
        self.rejected[rejected.reason] += 1
        if rejected.loss is not None:
            self.losses.add(rejected.loss)

    def merge(self, other: "FeedbackStats") -> None:
        self.rows += other.rows
        self.prompt_characters += other.prompt_characters
        self.answer_characters += other.answer_characters
        self.preferences += other.preferences
        self.marks += other.marks
        self.rejected += other.rejected
        self.losses.merge(other.losses)

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "prompt_characters": self.prompt_characters,
            "answer_characters": self.answer_characters,
            "preferences": dict(sorted(self.preferences.items())),
            "marks": dict(sorted(self.marks.items())),
            "rejected": dict(sorted(self.rejected.items())),
            **({"losses": self.losses.to_json()} if self.losses else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            rows=values["rows"],
            prompt_characters=values["prompt_characters"],
            answer_characters=values["answer_characters"],
            preferences=Counter(values["preferences"]),
            marks=Counter(values["marks"]),
            rejected=Counter(values["rejected"]),
            losses=Losses.from_json(values["losses"]) if "losses" in values else Losses(),
        )


@dataclass(frozen=True, slots=True)
class FeedbackManifest:
    """Description of a whole feedback corpus, available without reading its parts."""

    form: RowForm
    format: str
    """Format of the input, a key of `FORMATS`."""
    to: str | None
    """What the comparisons of the input were turned into; None: stored as they were."""
    stats: FeedbackStats
    fingerprint: str
    """Hash of the ids of all rows in order. An id is a hash of its row's content, so equal hashes mean equal rows."""
    config: Mapping[str, Any]
    """Settings that decided the rows."""
    input_fingerprint: str
    num_parts: int
    sources: tuple[Mapping[str, str], ...] = ()
    """Data sets that the rows come from: `name`, with the commit on the hub, and `license`, each if known."""

    @property
    def kind(self) -> str:
        """`examples` or `comparisons`."""
        return self.form.kind

    @property
    def rows(self) -> int:
        return self.stats.rows

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            **asdict(self.form),
            "columns": self.form.schema.names,
            "format": self.format,
            "to": self.to,
            "fingerprint": self.fingerprint,
            "input_fingerprint": self.input_fingerprint,
            "num_parts": self.num_parts,
            "sources": list(map(dict, self.sources)),
            "config": dict(self.config),
            **self.stats.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            form=RowForm(values["kind"], values["prompts"], values["has_label"], values["has_control"]),
            format=values["format"],
            to=values["to"],
            stats=FeedbackStats.from_json(values),
            fingerprint=values["fingerprint"],
            config=values["config"],
            input_fingerprint=values["input_fingerprint"],
            num_parts=values["num_parts"],
            sources=tuple(values.get("sources", ())),
        )


_MEANINGS = {
    "id": "hash of the source path and the content",
    "prompt": "the prompt as text; with an instruction, that and its input after a blank line",
    "instruction": "what is asked",
    "input": "what the instruction is about; may be empty",
    "messages": "turns {role, content}",
    "completion": "the answer",
    "output_1": "an answer",
    "output_2": "another",
    "preference": "1: output_1 is better; 2: output_2; between them for degrees, 1.5 a tie; null: unknown",
    "annotator": "who judged; may be null",
    "label": "whether the answer is good",
    "fields": "the parts of the record's text; those in brackets are seen, not learned",
    "texts": "JSON: the texts that `fields` names",
    "control": "control token before the answer: good or bad",
    "meta": "JSON: where the row came from, and other columns of its source",
}


def feedback_card(manifest: FeedbackManifest) -> str:
    """Return README.md of a corpus."""
    stats = manifest.stats
    counts = {**stats.preferences, **stats.marks}
    lines = [
        *front_lines(manifest.sources),
        "",
        f"# Feedback corpus: {manifest.kind}",
        "",
        f"{stats.rows:,} {manifest.kind} from input in the format {manifest.format}"
        + (f", made for {manifest.to}" if manifest.to else "")
        + f"; {stats.rejected.total():,} records rejected, each with its reason in rejected/.",
        "",
        *[f"- {name}: {count:,}" for name, count in sorted(counts.items())],
        "",
        *source_lines(manifest.sources),
        "| column | content |",
        "|---|---|",
        *[f"| {name} | {_MEANINGS[name]} |" for name in manifest.form.schema.names],
        "",
        f"Fingerprint `{manifest.fingerprint}`. Counts and settings: manifest.json.",
    ]
    return "\n".join(lines) + "\n"
