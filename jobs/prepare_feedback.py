"""Prepare feedback: turn published examples and comparisons into a feedback corpus.

If you run the same command again, it does only the missing part.
"""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from jobs import cli
from jobs.commands import job_parser
from jobs.source_notes import print_licenses, print_planned_sources
from phf_ray.corpus.output import CorpusFolder
from phf_ray.feedback.formats.table import AUTO, FORMATS
from phf_ray.feedback.job import FeedbackRunner, prepare_feedback, run_feedback_here
from phf_ray.feedback.layout import FEEDBACK_KEYS
from phf_ray.feedback.manifest import FeedbackManifest
from phf_ray.feedback.plan import FeedbackRequest
from phf_ray.feedback.turn import TURNS

log = logging.getLogger("phf_ray.prepare_feedback")

_BYTES_HERE = 64 << 20
"""Input up to this size is prepared in this process, unless RAY_ADDRESS names a cluster: that takes less time than
starting Ray."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    request = FeedbackRequest(
        inputs=arguments.input,
        format=arguments.format,
        to=arguments.to,
        as_text=arguments.as_text,
        pairs=arguments.pairs,
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
    runner = _runner(request, output=arguments.output, restart=arguments.restart)
    for source in arguments.input:
        if Path(source).exists():
            cli.require_shared(source, flag="--input")
    output = cli.require_shared(arguments.output, flag="--output")
    manifest = prepare_feedback(request, output, restart=arguments.restart, runner=runner)
    _print_result(manifest, output=output)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "prepare_feedback",
        __doc__,
        examples=(
            "--input hh/harmless-base/train.jsonl.gz --output feedback/hh",
            "--input alpaca_noisy_multi_preference.json --output feedback/pairs",
            "--input feedback/pairs --to reward-conditioning --output feedback/conditioned",
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
    parser.add_argument("--to", choices=tuple(TURNS), help="make such examples of comparisons")
    parser.add_argument(
        "--as-text", action="store_true", help="keep dialogues of HH-RLHF and Nectar as text, not as messages"
    )
    parser.add_argument(
        "--pairs",
        choices=("all", "best"),
        default="all",
        help="of ranked answers (Nectar): all pairs (default), or the best with each of the others",
    )
    parser.add_argument(
        "--license", metavar="ID", help="licence of the input, such as cc-by-4.0; by default what its card says"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    parser.add_argument("--restart", action="store_true", help="discard the contents of the output and start over")
    parser.add_argument(
        "--shard-mb", type=float, metavar="MB", help="text per part; by default the size of the input decides"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what the input is taken for, and stop")
    return parser


def _runner(request: FeedbackRequest, *, output: str, restart: bool) -> FeedbackRunner:
    stored = None if restart else CorpusFolder(output, keys=FEEDBACK_KEYS).read_plan()
    files = request.find().files if stored is None else stored.files
    size = sum(file.text_bytes for file in files)
    if "RAY_ADDRESS" not in os.environ and size <= _BYTES_HERE:
        return run_feedback_here
    from phf_ray.feedback.on_ray import run_feedback_on_ray

    if stored is None:
        request.detect(files)
    cli.start_ray()
    return run_feedback_on_ray


def _print_result(manifest: FeedbackManifest, *, output: str) -> None:
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
