"""Prepare feedback: turn published examples and comparisons into a feedback corpus.

If you run the same command again, it does only the missing part.
"""

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from jobs import cli
from jobs.commands import job_parser
from jobs.source_notes import print_licenses, print_planned_sources
from phf_ray.config.hindsight import DEFAULT_PHRASES, FeedbackForm, load_phrases
from phf_ray.corpus.layout import REPORT
from phf_ray.errors import ConfigError
from phf_ray.feedback.formats.table import AUTO, FORMATS
from phf_ray.feedback.hindsight.settings import COH, DEFAULT_KINDS, KINDS, HindsightSettings
from phf_ray.feedback.prepare import USES

if TYPE_CHECKING:
    from phf_ray.feedback.job import FeedbackRunner
    from phf_ray.feedback.manifest import FeedbackManifest

log = logging.getLogger("phf_ray.prepare_feedback")

_BYTES_HERE = 64 << 20
"""Input up to this size is prepared in this process, unless RAY_ADDRESS names a cluster: that takes less time than
starting Ray."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.feedback.against import find_other_set
    from phf_ray.feedback.hindsight.jsonl import check_json_lines_file, write_json_lines
    from phf_ray.feedback.job import prepare_feedback
    from phf_ray.feedback.plan import FeedbackRequest
    from phf_ray.feedback.report import report_feedback, report_lines

    request = FeedbackRequest(
        inputs=arguments.input,
        format=arguments.format,
        to=arguments.to,
        as_text=arguments.as_text,
        pairs=arguments.pairs,
        hindsight=_hindsight(arguments),
        limit=arguments.limit,
        shard_bytes=None if arguments.shard_mb is None else max(1, int(arguments.shard_mb * 1e6)),
        license=arguments.license,
    )
    if arguments.dry_run:
        found = request.find()
        size = sum(file.text_bytes for file in found.files) / 1e6
        print(f"{len(found.files):,} files, about {size:,.1f} MB, into {arguments.output}")
        detected = request.detect(found.files)
        print(f"format {detected}, {detected.reason}")
        print_planned_sources(found.sources)
        return 0
    if arguments.append and arguments.restart:
        raise ConfigError("--append keeps the contents of the output, but --restart discards them; give only one")
    if arguments.against and not arguments.report:
        raise ConfigError("--against names sets for the report; add --report")
    if arguments.jsonl is not None:
        check_json_lines_file(arguments.jsonl)
    against = [find_other_set(source) for source in arguments.against]
    output = _shared(arguments)
    manifest = prepare_feedback(
        request, output, append=arguments.append, restart=arguments.restart, runner=_runner(arguments)
    )
    _print_result(manifest, output=output)
    if arguments.jsonl is not None:
        if manifest.form.prompts != "fields":
            raise ConfigError(f"--jsonl writes records with fields, and {output} holds {manifest.form}; add --to {COH}")
        print(f"{write_json_lines(output, arguments.jsonl):,} records in {arguments.jsonl}")
    if arguments.report:
        print("\n".join(("", f"report ({output}/{REPORT})", *report_lines(report_feedback(output, against)))))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "prepare_feedback",
        __doc__,
        examples=(
            "--input hh/harmless-base/train.jsonl.gz --output feedback/hh",
            "--input hh/train.jsonl.gz --to coh --include-feedback p,n,pn,np --output feedback/coh",
            "--input berkeley-nest/Nectar --pairs best --output feedback/nectar --report --against alpaca_eval.json",
        ),
    )
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="SRC",
        help="folders, quoted globs, files (.jsonl .json .parquet .arrow; JSON also .gz .zst .bz2 .xz), URLs, data "
        "sets from the hub or saved by `datasets`, feedback corpora",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL of the feedback corpus")
    parser.add_argument(
        "--format",
        choices=(AUTO, *FORMATS),
        default=AUTO,
        help=f"format of the input (default {AUTO}: its columns say)",
    )
    parser.add_argument("--to", choices=USES, help="make such examples of comparisons")
    _add_hindsight_arguments(parser)
    parser.add_argument(
        "--as-text", action="store_true", help="keep dialogues of HH-RLHF and Nectar as text, not as messages"
    )
    parser.add_argument(
        "--pairs",
        choices=("all", "best"),
        default="all",
        help="of ranked or rated answers: all pairs (default), or the best with each of the others",
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence of the input, such as cc-by-4.0; by default what its card says"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    parser.add_argument(
        "--report",
        action="store_true",
        help=f"print lengths, labels, repeats and how often the longer answer wins, and write {REPORT}; also of a set "
        "that is finished",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        metavar="SET",
        help="for --report: sets, such as those of an evaluation, in which to look for the prompts",
    )
    parser.add_argument("--append", action="store_true", help="also take in input that came since the last run")
    parser.add_argument("--restart", action="store_true", help="discard the contents of the output and start over")
    parser.add_argument(
        "--shard-mb", type=float, metavar="MB", help="text per part; by default the size of the input decides"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what the input is taken for, and stop")
    return parser


def _add_hindsight_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("--to coh (Chain of Hindsight)")
    group.add_argument(
        "--include-feedback",
        metavar="KINDS",
        help=f"some of {','.join(KINDS)}: the good answer, the bad one, good before bad, bad before good, each of "
        "them with every sentence of hindsight in place of the markers, each answer with its rating (default "
        f"{','.join(DEFAULT_KINDS)})",
    )
    group.add_argument(
        "--phrases", metavar="NAME|FILE", help=f"words of the markers and sentences (default {DEFAULT_PHRASES})"
    )
    group.add_argument("--seed", type=int, help="draws the words that ask for a summary or name sources (default 0)")
    group.add_argument(
        "--form", choices=get_args(FeedbackForm), help="what the answers are (default: format and prompts say it)"
    )
    group.add_argument(
        "--compat", choices=(COH,), help="coh: label turns that two dialogues share like the rest, as the original does"
    )
    group.add_argument(
        "--jsonl",
        type=Path,
        metavar="FILE",
        help="also write the records as JSON lines with `fields`, for other trainers",
    )


def _hindsight(arguments: argparse.Namespace) -> HindsightSettings | None:
    """Return the settings of `--to coh`. Raises ConfigError for options that mean nothing without it."""
    names = ("include_feedback", "phrases", "seed", "form", "compat")
    if arguments.to != COH:
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name) is not None]
        if given:
            raise ConfigError(f"{', '.join(given)} needs --to {COH}; add it")
        return None
    kinds = ",".join(DEFAULT_KINDS) if arguments.include_feedback is None else arguments.include_feedback
    phrases = load_phrases(DEFAULT_PHRASES if arguments.phrases is None else arguments.phrases)
    return HindsightSettings.of(kinds, phrases, seed=arguments.seed or 0, form=arguments.form, compat=arguments.compat)


def _runner(arguments: argparse.Namespace) -> "FeedbackRunner":
    """Return a runner that starts Ray only when there is work for it, which is after the input has been checked."""
    from phf_ray.feedback.job import run_feedback_here
    from phf_ray.feedback.plan import text_bytes

    def run(work: Callable[[Mapping[str, Any]], Any], rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        if "RAY_ADDRESS" not in os.environ and text_bytes(rows) <= _BYTES_HERE:
            return run_feedback_here(work, rows)
        from phf_ray.feedback.on_ray import run_feedback_on_ray

        cli.start_ray()
        _shared(arguments)
        return run_feedback_on_ray(work, rows)

    return run


def _shared(arguments: argparse.Namespace) -> str:
    """Return the output as other machines see it. Raises ConfigError if they can't see that or the input."""
    for source in arguments.input:
        if Path(source).exists():
            cli.require_shared(source, flag="--input")
    return cli.require_shared(arguments.output, flag="--output")


def _print_result(manifest: "FeedbackManifest", *, output: str) -> None:
    stats = manifest.stats
    taken = f"{manifest.format}, made for {manifest.to}" if manifest.to else manifest.format
    print(f"{output}: {stats.rows:,} {manifest.form} (format {taken})")
    for name, count in sorted({**stats.preferences, **stats.marks}.items()):
        print(f"{name}: {count:,}")
    for reason, count in sorted(stats.rejected.items()):
        print(f"{count:,} records rejected: {reason} (listed in {output}/rejected)")
    print_licenses(manifest.sources)
    if stats.losses:
        print(f"{len(stats.losses.files):,} input files could not be read to their end")


if __name__ == "__main__":
    cli.run(main)
