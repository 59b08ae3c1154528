"""Has model outputs judged against a reference. Who judges is an argument."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.values import unfolded
from phf_ray.generation.chat.prompts import InstructionPrompt, prompt_text
from phf_ray.judging.board.read import Numbered, read_records
from phf_ray.judging.board.rows import (
    NO_ANSWER,
    NO_REFERENCE_ANSWER,
    JudgedRow,
    instruction_of,
    judged_row,
    optional_text,
    text_of,
)
from phf_ray.judging.question import Failure

Output = dict[str, str]
"""instruction, input, output; and `error`, why the output is an empty text, if the model gave none."""
JudgePairs = Callable[[list[Output], list[Output]], Iterable[Mapping[str, Any]]]
"""(outputs of the reference, outputs of a model; matched, of one length) -> rows of judgements."""

_ENDINGS = {".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".gz", ".zst"}


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    name: str
    outputs: tuple[Output, ...]


def read_outputs(sources: Sequence[str], *, option: str, name: str | None = None) -> list[ModelOutputs]:
    """Return the outputs of each model: its name is `name`, else what the rows say (`generator`), else the file's.

    Raises ConfigError if two files have one name, and rows that have none.
    """
    by_model: defaultdict[str, list[Output]] = defaultdict(list)
    called: dict[str, str] = {}
    for source in sources:
        stem = _stem(source)
        for place, record in read_records([source], option=option):
            record = unfolded(record)
            given = name or optional_text(record, "generator", place)
            if not given and called.setdefault(stem, source) != source:
                raise ConfigError(
                    f"{option}: {called[stem]} and {source} would both be called {stem}, because their rows have no "
                    "`generator`; write one into the rows, or rename a file"
                )
            by_model[given or stem].append(_output(record, place))
    if not by_model:
        raise DataError(f"{option} {' '.join(sources)}: there are no rows; give files that are not empty")
    return [ModelOutputs(model, tuple(outputs)) for model, outputs in by_model.items()]


def are_outputs(records: Iterable[Numbered]) -> bool:
    """Whether the first record is an output of a model, and no judgement."""
    first = next(iter(records), None)
    return first is not None and "output" in first[1] and "output_1" not in unfolded(first[1])


def one_model(models: Sequence[ModelOutputs], *, option: str) -> ModelOutputs:
    if len(models) > 1:
        names = ", ".join(model.name for model in models[:5])
        raise ConfigError(f"{option} has outputs of {len(models)} models ({names}); give those of one, the reference")
    return models[0]


def reference_of(rows: Sequence[JudgedRow]) -> ModelOutputs:
    """Return the answers of the model that all of these rows are judged against."""
    names = sorted({row.generator_1 for row in rows})
    if len(names) != 1:
        raise ConfigError(
            f"the leaderboard has several references ({', '.join(names[:5])}); name the file of one with --reference"
        )
    answers: dict[tuple[str, str, str], Output] = {}
    for row in rows:
        output = {"instruction": row.instruction, "input": row.input, "output": row.output_1}
        kind, _, reason = (row.error or "").partition(": ")
        if row.preference is None and kind == NO_REFERENCE_ANSWER:
            output["error"] = reason
        answers.setdefault((row.instruction, row.input, row.output_1), output)
    return ModelOutputs(names[0], tuple(answers.values()))


def judge_outputs(
    models: Sequence[ModelOutputs], reference: ModelOutputs, judge: JudgePairs
) -> tuple[list[JudgedRow], list[str]]:
    """Return the judged rows of all models, and notes on prompts that only one side answers.

    Raises ConfigError, before anything is judged, if a model and the reference have no prompt in common, or have one
    name and other outputs.
    """
    same = [model for model in models if model.name == reference.name]
    for model in same:
        _check_same(model, reference)
    matched = [(model, *_matched(model, reference)) for model in models if model.name != reference.name]
    notes = [note for *_, found in matched for note in found]
    notes += [f"{model.name}: its outputs are those of the reference, and were not judged" for model in same]
    if not matched:
        raise ConfigError(f"all outputs are those of the reference, {reference.name}; give those of another model")
    notes += [note for model in (*models, reference) for note in _unanswered_notes(model)]
    rows = []
    for model, theirs, ours, _ in matched:
        names = {"generator_1": reference.name, "generator_2": model.name}
        both = list(zip(theirs, ours, strict=True))
        shown = [(one, other) for one, other in both if "error" not in one and "error" not in other]
        answers = judge([one for one, _ in shown], [other for _, other in shown]) if shown else ()
        judged = [
            judged_row({**record, **names}, f"judgement {number} of {model.name}")
            for number, record in enumerate(answers)
        ]
        pairs = {(*one.values(), other["output"]) for one, other in shown}
        if len(judged) < len(pairs):
            notes.append(f"{model.name}: {len(pairs):,} pairs were given, {len(judged):,} judgements came back")
        rows += judged
        rows += [_not_shown(one, other, names) for one, other in both if "error" in one or "error" in other]
    return rows, notes


def _not_shown(one: Output, other: Output, names: Mapping[str, str]) -> JudgedRow:
    """Return the row of a pair that lacks an answer, which no judge sees."""
    # The reference's reason first: an empty text of the reference is then never taken for what it said.
    error = f"{NO_REFERENCE_ANSWER}: {one['error']}" if "error" in one else f"{NO_ANSWER}: {other['error']}"
    return JudgedRow(
        instruction=one["instruction"],
        input=one["input"],
        output_1=one["output"],
        output_2=other["output"],
        generator_1=names["generator_1"],
        generator_2=names["generator_2"],
        preference=None,
        error=error,
    )


def _unanswered_notes(model: ModelOutputs) -> list[str]:
    kinds = Counter(Failure(output["error"]).kind for output in model.outputs if "error" in output)
    if not kinds:
        return []
    told = ", ".join(f"{kind} x {count:,}" for kind, count in sorted(kinds.items()))
    example = next(output["error"] for output in model.outputs if "error" in output)
    return [
        f"{model.name} has no answer to {kinds.total():,} of {len(model.outputs):,} prompts ({told}; the first: "
        f"{example:.200})"
    ]


def _stem(source: str) -> str:
    """Return the name of a file without the endings of its kind: `gpt-3.5` of gpt-3.5.jsonl.gz."""
    path = PurePath(source)
    while path.suffix.lower() in _ENDINGS:
        path = path.with_suffix("")
    return path.name


def _check_same(model: ModelOutputs, reference: ModelOutputs) -> None:
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for output in reference.outputs:
        answers[_prompt(output)].add(output["output"])
    other = [one for one in model.outputs if one["output"] not in answers.get(_prompt(one), {one["output"]})]
    if other:
        raise ConfigError(
            f"{len(other):,} outputs of {model.name} are not those of the reference, which has this name too; give the "
            "model another name, in the rows (`generator`), by its file's, or with --name"
        )


def _output(record: Mapping[str, Any], place: str) -> Output:
    prompt = {"instruction": instruction_of(record, place), "input": optional_text(record, "input", place) or ""}
    error = optional_text(record, "error", place)
    if error and record.get("output") is None:
        return {**prompt, "output": "", "error": error}
    return {**prompt, "output": text_of(record, "output", place)}


def _matched(model: ModelOutputs, reference: ModelOutputs) -> tuple[list[Output], list[Output], list[str]]:
    """Return the outputs of reference and model to the same prompts, and notes on the rest.

    If a prompt occurs several times, its first answers are compared, then its second, and so on.
    """
    answers: defaultdict[str, list[Output]] = defaultdict(list)
    for output in reference.outputs:
        answers[_prompt(output)].append(output)
    seen: Counter[str] = Counter()
    theirs, ours = [], []
    for output in model.outputs:
        prompt = _prompt(output)
        if prompt in answers:
            theirs.append(answers[prompt][seen[prompt] % len(answers[prompt])])
            # The reference's wording of the prompt: the input may stand in the instruction there.
            ours.append({**output, **{name: theirs[-1][name] for name in ("instruction", "input")}})
            seen[prompt] += 1
    if not ours:
        raise ConfigError(
            f"{model.name} answers none of the {len(answers):,} prompts of the reference, {reference.name}; outputs "
            "are matched by instruction and input"
        )
    notes = []
    if len(ours) < len(model.outputs):
        notes.append(
            f"{model.name}: {len(model.outputs) - len(ours):,} of {len(model.outputs):,} answers are to prompts that "
            f"{reference.name} does not answer, and were left out"
        )
    if missing := len(answers) - len(seen):
        notes.append(f"{model.name} does not answer {missing:,} of the {len(answers):,} prompts of {reference.name}")
    return theirs, ours, notes


def _prompt(output: Output) -> str:
    return prompt_text(InstructionPrompt(output["instruction"], output["input"]))
