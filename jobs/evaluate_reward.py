"""Measure a reward model on comparisons: feedback corpora, RewardBench's files, and every format of prepare-feedback.

    python -m jobs.evaluate_reward --model runs/reward --comparisons reward_bench.parquet --output out/bench

Runs in this process. Writes reward.json, the same as a table, and the rewards row by row.
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import run
from jobs.commands import job_parser
from phf_ray.errors import ConfigError, DataError

if TYPE_CHECKING:
    from phf_ray.evaluation.rewards.judged import RewardItem
    from phf_ray.feedback.rows import FeedbackRow
    from phf_ray.records import Rejected

log = logging.getLogger("jobs.evaluate_reward")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from phf_ray.evaluation.rewards.figures import report_of
    from phf_ray.evaluation.rewards.judged import judge
    from phf_ray.evaluation.rewards.write import RESULT, write_result
    from phf_ray.runs.checkpoints import find_checkpoint
    from phf_ray.scorers.reward_model import RewardModelScorer, RewardModelSettings

    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit} judges nothing; give 1 or more")
    output: Path = arguments.output
    if (output / RESULT).exists():
        raise ConfigError(f"--output {output} has a {RESULT} already; give the name of another folder")
    items, rejected = _items(arguments.comparisons, limit=arguments.limit)
    model = find_checkpoint(arguments.model, option="--model")
    scorer = RewardModelScorer(
        RewardModelSettings(
            path=str(model),
            prompt_template=arguments.prompt_template,
            device=arguments.device,
            precision=arguments.precision,
            tokens_per_batch=arguments.tokens_per_batch,
        )
    )
    scorer.template()  # raises before anything is judged
    judged = list(judge(items, scorer))
    if all(one.error is not None for one in judged):
        raise DataError(f"none of {len(judged)} comparisons could be judged; the first: {judged[0].error}")
    result = {
        "model": str(model),
        "scorer": scorer.identity().to_json(),
        "comparisons": list(arguments.comparisons),
        **report_of(judged),
        "left_out": dict(rejected),
        "num_answers_cut": scorer.num_truncated,
    }
    output.mkdir(parents=True, exist_ok=True)
    print(write_result(output, judged, result), end="")
    for reason, count in sorted(rejected.items()):
        print(f"{count:,} records left out: {reason}")
    if scorer.num_truncated:
        print(f"{scorer.num_truncated:,} answers were cut, with their prompts, to the length of a row in training")
    print(output / RESULT)
    return 0


def _items(sources: Sequence[str], *, limit: int | None) -> "tuple[list[RewardItem], Counter[str]]":
    """Read the comparisons, and count the records that are none by reason. Raises DataError if there are none."""
    from phf_ray.evaluation.rewards.judged import RewardItem

    items: list[RewardItem] = []
    rejected: Counter[str] = Counter()
    first = ""
    for found in _records(sources):
        if isinstance(found, RewardItem):
            items.append(found)
        else:
            rejected[found.reason] += 1
            first = first or f"{found.source}, record {found.record}: {found.detail}"
        if limit is not None and len(items) == limit:
            break
    if not items:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in rejected.most_common()) or "they have no records"
        detail = f"; the first: {first}" if first else ""
        raise DataError(
            f"--comparisons {' '.join(sources)}: no comparison is left ({reasons}){detail}; give prompt, chosen and "
            "rejected, or another format of phf prepare-feedback"
        )
    return items, rejected


def _records(sources: Sequence[str]) -> "Iterator[RewardItem | Rejected]":
    from phf_ray.corpus.cut import Piece
    from phf_ray.corpus.read import read_rows_of
    from phf_ray.feedback.plan import FeedbackRequest
    from phf_ray.records import Rejected

    for file in FeedbackRequest(inputs=sources).find().files:
        for index, record in read_rows_of(file, Piece(0, 0)):
            if isinstance(record, Rejected):
                yield record
            else:
                yield from _items_of_record(record, source=file.name, index=index)


def _items_of_record(record: Mapping[str, Any], *, source: str, index: int) -> "list[RewardItem | Rejected]":
    """One item, or one for each pair of ranked answers."""
    from phf_ray.feedback.formats.base import UnfitRecord
    from phf_ray.feedback.formats.table import FORMATS, format_of
    from phf_ray.feedback.prepare import RowSettings, prepare_record
    from phf_ray.records import Rejected

    name = str(index if record.get("id") in (None, "") else record["id"])
    if _is_list_of_texts(record.get("rejected")):
        try:
            return [_item_of_lists(record, name)]
        except UnfitRecord as problem:
            return [Rejected(source, index, problem.reason, problem.detail)]
    known = format_of(record)
    if known is None:
        formats = "; ".join(f"{name}: {one}" for name, one in FORMATS.items())
        columns = ", ".join(map(repr, record))
        return [Rejected(source, index, "unknown_columns", f"columns {columns}; known formats are {formats}")]
    made = prepare_record(record, source=source, index=index, settings=RowSettings(known))
    items: list[RewardItem | Rejected] = []
    for number, one in enumerate(made):
        if isinstance(one, Rejected):
            items.append(one)
        else:
            [row] = one.rows
            row_name = name if len(made) == 1 else f"{name}/{number}"
            items.append(_item_of_row(row, name=row_name, subset=_subset(record), source=source, index=index))
    return items


def _item_of_row(
    row: "FeedbackRow", *, name: str, subset: str | None, source: str, index: int
) -> "RewardItem | Rejected":
    from phf_ray.evaluation.rewards.judged import RewardItem
    from phf_ray.feedback.rows import Comparison
    from phf_ray.records import Rejected

    if not isinstance(row, Comparison):
        return Rejected(source, index, "no_comparison", "an example has one answer")
    if row.better is None or row.worse is None:
        return Rejected(
            source, index, "tie" if row.verdict == "tie" else "no_preference", "no answer is the better one"
        )
    return RewardItem(name, subset, row.prompt, (row.better,), (row.worse,))


def _item_of_lists(record: Mapping[str, Any], name: str) -> "RewardItem":
    """RewardBench 2: one better answer or several, and several worse ones."""
    from phf_ray.evaluation.rewards.judged import RewardItem
    from phf_ray.feedback.formats.base import UnfitRecord, messages_of, text_of
    from phf_ray.generation.chat.prompts import ChatPrompt, Prompt, TextPrompt

    found, rejected = record.get("chosen"), record["rejected"]
    chosen: list[str] = [found] if isinstance(found, str) else found or []
    if not _is_list_of_texts(chosen):
        raise UnfitRecord("not_text", "column 'chosen' is neither a text nor a list of texts")
    if not all(answer.strip() for answer in (*chosen, *rejected)):
        raise UnfitRecord("empty_answer", "an answer has no characters besides white space")
    if not set(chosen).isdisjoint(rejected):
        raise UnfitRecord("equal_answers", "an answer is both among the better and the worse ones")
    is_chat = isinstance(record.get("prompt"), list)
    prompt: Prompt = ChatPrompt(messages_of(record, "prompt")) if is_chat else TextPrompt(text_of(record, "prompt"))
    return RewardItem(name, _subset(record), prompt, tuple(chosen), tuple(rejected))


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _subset(record: Mapping[str, Any]) -> str | None:
    """Return the record's subset; a feedback corpus keeps it among the other columns of its source."""
    from phf_ray.feedback.values import unfolded

    found = record.get("subset")
    if found is None:
        found = unfolded({"meta": record.get("meta")}).get("subset")
    return None if found is None else str(found)


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "evaluate_reward",
        __doc__.split("\n")[0],
        examples=(
            "--model runs/reward --comparisons feedback/pairs --output out/pairs",
            "--model runs/reward --comparisons reward_bench.parquet --output out/bench",
        ),
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR|ID",
        help="reward model: a checkpoint, a training run, or a model of the hub with one label",
    )
    parser.add_argument(
        "--comparisons",
        nargs="+",
        action="extend",
        required=True,
        metavar="SRC",
        help="feedback corpora; files, folders, globs and data sets with prompt, chosen and rejected, or in another "
        "format of prepare-feedback. A column subset is told apart, and rejected may be a list (RewardBench 2)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the result")
    parser.add_argument(
        "--prompt-template",
        metavar="NAME|FILE",
        help="template of the prompts; default: that of the training, or the tokenizer's chat template",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N comparisons")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto (the default): a GPU if there is one"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--tokens-per-batch", type=int, metavar="N", help="tokens of a batch, padding included")
    return parser


if __name__ == "__main__":
    run(main)
