"""Rank models by what judges, or humans, said of their answers.

Writes leaderboard.json, leaderboard.csv, plots and report.html, and rows.parquet, from which every figure is computed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import cli
from jobs.commands import job_parser
from jobs.sampled_answers import Sampling, add_sampling_arguments, check_sampling_arguments
from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from phf_ray.judging.board.outputs import JudgePairs, ModelOutputs
    from phf_ray.judging.board.rows import JudgedRow
    from phf_ray.judging.board.stored import BoardSettings


_OF_JUDGES = ("url", "model", "key_env", "budget")


def main(argv: Sequence[str] | None = None, *, judge: "JudgePairs | None" = None) -> int:
    """Run the job. `judge`: judges outputs in place of --annotators."""
    options = parser().parse_args(argv)

    from phf_ray.judging.board.human import read_labels, with_labels
    from phf_ray.judging.board.table import format_board
    from phf_ray.judging.board.write import check_replaced, rows_with_added, write_board

    check(options)
    sampling = Sampling(options) if options.models else None
    if Path(options.output).is_file():
        raise ConfigError(f"--output {options.output} is a file; give a folder")
    settings = _settings(options)
    if sampling is not None and options.dry_run:
        sampling.print_plan()
        return 0
    labels = read_labels(options.human, option="--human") if options.human else None
    rows, notes = _rows(options, settings, judge, sampling)
    if options.add:
        rows = rows_with_added(options.output, rows, overwrite=options.overwrite)
    elif not options.overwrite:
        check_replaced(options.output, rows)
    if labels is not None:
        rows = with_labels(rows, labels)
    settings = settings.model_copy(update={"notes": (*dict.fromkeys((*settings.notes, *notes)),)})
    board = write_board(options.output, rows, settings)
    print(format_board(board))
    print(f"{options.output}/report.html")
    if sampling is not None:
        sampling.raise_if_incomplete()
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "leaderboard",
        __doc__,
        examples=(
            "--comparisons judged --output leaderboard",
            "--outputs mine.json --reference davinci003.json --annotators greedy --url http://localhost:8000 "
            "--model my-model --output leaderboard",
            "--models sft=runs/sft dpo=runs/dpo --prompts eval.json --reference sft --annotators offline --output dpo",
        ),
    )
    parser.add_argument(
        "--comparisons",
        nargs="+",
        action="extend",
        default=[],
        metavar="SRC",
        help="judged rows with generator_1, generator_2 and preference, of which generator_2 is ranked: files (.jsonl "
        ".json .parquet; JSON also .gz .zst), folders, comparisons of phf annotate, leaderboards",
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="answers of models (instruction, input, output[, generator]) to judge first",
    )
    parser.add_argument(
        "--add",
        nargs="+",
        action="extend",
        default=[],
        metavar="SRC",
        help="add judged rows, or answers of a model to judge, to the leaderboard in --output",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE|NAME[=MODEL]",
        help="answers that --outputs and --models are judged against: a file, the NAME of one of --models, or a model "
        "that answers, too",
    )
    parser.add_argument("--annotators", metavar="NAME|FILE", help="who judges --outputs: a shipped pool, or a file")
    parser.add_argument("--url", help="server of the judges that name none")
    parser.add_argument("--model", help="model to ask, in place of those that the pool names")
    parser.add_argument("--key-env", metavar="VARIABLE", help="environment variable with the key of that server")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder that keeps the answers of judges behind URLs; default ~/.cache/phf_ray/judgements",
    )
    parser.add_argument(
        "--budget", metavar="X", help="most that all calls kept in the cache may cost: 5.00, or '200000 tokens'"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the model in --outputs")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the leaderboard")
    parser.add_argument(
        "--human",
        nargs="+",
        action="extend",
        default=[],
        metavar="SRC",
        help="human labels (instruction, output_1, output_2, preference) of pairs among the rows; rows may also have "
        "them as human_preference",
    )
    parser.add_argument(
        "--generators", nargs=2, metavar=("REFERENCE", "MODEL"), help="names of both models, for rows that name none"
    )
    parser.add_argument("--published", action="store_true", help="show AlpacaFarm's published rows beside, marked")
    parser.add_argument("--level", type=float, metavar="P", help="level of intervals (default 0.95)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of resampling (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace what --output holds")
    parser.add_argument("--dry-run", action="store_true", help="print what would be drawn and judged, and stop")
    add_sampling_arguments(parser)
    return parser


def check(options: argparse.Namespace) -> None:
    given = [name for name in ("comparisons", "outputs", "models", "add") if getattr(options, name)]
    if len(given) != 1 and given != ["outputs", "models"]:
        told = f"--{' and --'.join(given)}" if given else "none"
        raise ConfigError(f"give one of --comparisons, --outputs, --models and --add; given: {told}")
    check_sampling_arguments(options)
    if options.outputs and options.reference is None:
        raise ConfigError("--outputs needs --reference FILE: the answers that they are judged against")
    if options.name and options.models and not options.outputs:
        raise ConfigError(f"--name {options.name} is for --outputs; write --models {options.name}=...")
    of_outputs = [name for name in ("reference", "annotators", "name", "cache", *_OF_JUDGES) if getattr(options, name)]
    if options.comparisons and of_outputs:
        flag = of_outputs[0].replace("_", "-")
        raise ConfigError(f"--{flag} belongs to --outputs; --comparisons are judged already")
    if options.dry_run and not options.models:
        raise ConfigError("--dry-run counts what --models would be asked; `phf annotate --dry-run` counts judgements")
    if options.level is not None and not 0 < options.level < 1:
        raise ConfigError(f"--level {options.level} is not between 0 and 1; 0.95 is usual")


def _settings(options: argparse.Namespace) -> "BoardSettings":
    """Return the settings: those that were stored, if models are added, changed by what was given now."""
    from phf_ray.judging.board.stored import BoardSettings, holds_board, read_rows_file

    settings = BoardSettings()
    if options.add:
        if not holds_board(options.output):
            raise ConfigError(f"--add: {options.output} holds no leaderboard; make one with --comparisons or --outputs")
        settings = read_rows_file(options.output)[1]
    given = {"level": options.level, "seed": options.seed, "judged_by": options.annotators}
    changes = {name: value for name, value in given.items() if value is not None}
    return settings.model_copy(update={**changes, "show_published": options.published or settings.show_published})


def _rows(
    options: argparse.Namespace, settings: "BoardSettings", judge: "JudgePairs | None", sampling: Sampling | None
) -> tuple[list["JudgedRow"], list[str]]:
    """Return the rows that were given, judged if they are outputs, and notes on them."""
    from phf_ray.judging.board.outputs import are_outputs, judge_outputs, one_model, read_outputs, reference_of
    from phf_ray.judging.board.read import read_judged, read_records
    from phf_ray.judging.board.stored import read_rows_file
    from phf_ray.judging.board.write import check_reference

    option = "--comparisons" if options.comparisons else "--add" if options.add else "--outputs"
    sources = options.comparisons or options.add or options.outputs
    if options.comparisons or (options.add and not are_outputs(read_records(sources, option=option))):
        judged = read_judged(sources, option=option, generators=options.generators)
        if options.add:
            check_reference(options.output, (row.generator_1 for row in judged))
        return judged, []
    models = read_outputs(sources, option=option, name=options.name) if sources else []
    reference: ModelOutputs | None = None
    if options.reference is not None and (sampling is None or sampling.reference is None):
        reference = one_model(read_outputs([options.reference], option="--reference"), option="--reference")
        if options.add:
            check_reference(options.output, [reference.name])
    judge = judge or _judge(settings.judged_by, options)
    if sampling is not None:
        sampling.check_names(model.name for model in (*models, *([] if reference is None else [reference])))
        sampled, asked = sampling.draw()
        models, reference = models + sampled, reference or asked
    if reference is None:
        reference = reference_of(read_rows_file(options.output)[0])
    return judge_outputs(models, reference, judge)


def _judge(annotators: str | None, options: argparse.Namespace) -> "JudgePairs":
    if annotators is None:
        raise ConfigError("outputs need --annotators NAME|FILE: who judges them (offline, or a file of your own)")
    from phf_ray.judging import PairwiseAutoAnnotator

    given = {"caching_path": options.cache, **{name: getattr(options, name) for name in _OF_JUDGES}}
    annotator = PairwiseAutoAnnotator(annotators, **{name: value for name, value in given.items() if value is not None})
    return lambda theirs, ours: annotator.annotate_head2head(theirs, ours, is_ordered=True)


if __name__ == "__main__":
    cli.run(main)
