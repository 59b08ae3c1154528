"""Score a corpus segment by segment, on this machine or a cluster.

If you run the same command again, it does only the missing part. Exit code 5 means that too many segments could not be
scored.
"""

import argparse
import datetime
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.commands import job_parser
from jobs.source_notes import print_licenses, print_planned_sources
from phf_ray.errors import ConfigError, PhfError
from phf_ray.storage.data_set_names import parse_data_set

if TYPE_CHECKING:
    from phf_ray.corpus.manifest import CorpusManifest
    from phf_ray.scoring.estimate import ScoringEstimate
    from phf_ray.scoring.executor import ScoringExecutor
    from phf_ray.scoring.plan import ScoringPreview
    from phf_ray.scoring.progress import ScoreProgress
    from phf_ray.scoring.request import ScoringRequest

log = logging.getLogger("phf_ray.score_corpus")

_LOG_EVERY_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.scoring.estimate import estimate_scoring
    from phf_ray.scoring.plan import preview_scoring
    from phf_ray.scoring.request import ScoringRequest

    request = ScoringRequest(
        cli.config_from(arguments),
        inputs=arguments.input,
        limit=arguments.limit,
        text_column=arguments.text_column,
        keep_columns=arguments.keep_columns,
        shard_bytes=None if arguments.shard_mb is None else max(1, int(arguments.shard_mb * 1e6)),
        license=arguments.license,
    )
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit} scores nothing; give 1 or more")
    if arguments.append and arguments.restart:
        raise ConfigError("--append keeps the contents of the output, but --restart discards them; give only one")
    if arguments.estimate:
        _print_estimate(estimate_scoring(request), price=arguments.price)
        return 0
    if arguments.dry_run:
        _print_preview(preview_scoring(request), request, output=arguments.output)
        return 0
    if "RAY_ADDRESS" in os.environ and not arguments.in_process:
        cli.start_ray()
    for source in arguments.input:
        name = parse_data_set(source)
        if name.is_local if name is not None else Path(source).exists():
            cli.require_shared(source if name is None else name.place, flag="--input")
    output = cli.require_shared(arguments.output, flag="--output")
    _score(request, output=output, append=arguments.append, restart=arguments.restart, in_process=arguments.in_process)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "score_corpus",
        __doc__,
        examples=(
            "--task pep8 --input src/ 'more/**/*.py' --output scored/ --estimate",
            "--task toxicity --input allenai/c4:en@validation --limit 10000 --output scored/",
            "--task toxicity --input comments.jsonl.gz --text-column body --output s3://bucket/scored",
        ),
    )
    cli.add_config_arguments(parser, method=False)
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        metavar="SRC",
        help="folders, quoted globs, files (.py .txt .jsonl .json .parquet ...; also .gz .zst .bz2 .xz), URLs, scored "
        "corpora, data sets of the hub (ID[:CONFIG][@SPLIT], such as allenai/c4:en@train), data sets that `datasets` "
        "saved and clones of the hub's (FOLDER[:CONFIG][@SPLIT])",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL of the scored corpus")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    parser.add_argument(
        "--license", metavar="ID", help="licence of the input, such as cc-by-4.0; by default what its card says"
    )
    parser.add_argument("--text-column", metavar="C", help="column with the text in JSON lines and tables")
    parser.add_argument(
        "--keep-columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="C",
        help="columns to keep in `meta`, besides id, meta and metadata",
    )
    parser.add_argument("--append", action="store_true", help="also score input files added since the last run")
    parser.add_argument("--restart", action="store_true", help="discard the contents of the output and start over")
    parser.add_argument(
        "--shard-mb", type=float, metavar="MB", help="text per part; by default the corpus's size decides"
    )
    cli.add_in_process_argument(parser, does="score")
    parser.add_argument("--estimate", action="store_true", help="score about 1,000 documents, and print hours and cost")
    parser.add_argument(
        "--price",
        type=float,
        default=0.05,
        metavar="X",
        help="price of an hour of one CPU, for --estimate (default 0.05)",
    )
    return parser


def _score(request: "ScoringRequest", *, output: str, append: bool, restart: bool, in_process: bool) -> None:
    """Run the job, and write its `summary.json` however the job ends."""
    from phf_ray.corpus.output import CorpusFolder
    from phf_ray.scoring.job import run_scoring

    begin = time.monotonic()
    shown = _Shown()

    def write_summary(**facts: Any) -> None:
        place = CorpusFolder(output)
        # If the job refused to touch the folder, it must not write a summary there either.
        if place.is_ours():
            elapsed = {"elapsed_s": round(time.monotonic() - begin, 3)}
            place.write_summary({"job": "score_corpus", "output": output} | facts | elapsed | shown.facts())

    try:
        manifest = run_scoring(
            request,
            output,
            append=append,
            restart=restart,
            progress=shown,
            executor=_executor(request, in_process=in_process),
        )
    except BaseException as error:
        shown.close()
        known = {"error": str(error)} if isinstance(error, PhfError) else {}
        try:
            write_summary(status="failed", **known)
        except (OSError, PhfError) as second:
            # The store may have failed the job, too. The job's own error says more.
            log.warning("summary.json could not be written: %s", second)
        raise
    shown.close()
    _print_result(manifest, output=output)
    write_summary(status="complete", **_facts(manifest))


def _executor(request: "ScoringRequest", *, in_process: bool) -> "ScoringExecutor":
    """Return who scores: this process if that is asked for, or if there is little to score and Ray is not asked for."""
    from phf_ray.scoring.executor import InProcessScoring
    from phf_ray.scoring.small import SmallScoring, bytes_here

    def on_ray() -> "ScoringExecutor":
        from phf_ray.scoring.on_ray import RayScoring

        return RayScoring(cli.start_ray)

    if in_process:
        return InProcessScoring()
    return on_ray() if cli.asks_for_ray() else SmallScoring(on_ray, most=bytes_here(request.config))


def _facts(manifest: "CorpusManifest") -> dict[str, Any]:
    from phf_ray.storage.licenses import license_facts, licenses_of

    return {
        "documents": manifest.documents,
        "segments": manifest.segments,
        "characters": manifest.characters,
        "rejected": dict(manifest.rejected),
        **_lost(manifest),
        "failed": {name: dict(stats.failed) for name, stats in manifest.stats.scorers.items()},
        "fingerprint": manifest.fingerprint,
        **license_facts(licenses_of(manifest.sources)),
    }


def _lost(manifest: "CorpusManifest") -> dict[str, Any]:
    losses = manifest.stats.losses
    lost = {"files": len(losses.files), "bytes": losses.num_bytes, "records": losses.records}
    return {"lost": lost} if losses else {}


def _print_result(manifest: "CorpusManifest", *, output: str) -> None:
    size = f"{manifest.documents:,} documents, {manifest.segments:,} segments, {manifest.characters:,} characters"
    print(f"{output}: {size}")
    for identity in manifest.scorers:
        stats = manifest.scorer_stats(identity["name"])
        histogram = stats.segment_histogram
        if histogram.mean is not None:
            middle = f"mean {histogram.mean:.6g}, median {histogram.quantile(0.5):.6g}"
            print(f"{identity['name']}: {middle} {identity['unit']}")
        for reason, count in stats.failed.most_common():
            print(f"{identity['name']}: {count:,} segments without a score: {reason}")
    for reason, count in sorted(manifest.rejected.items()):
        print(f"{count:,} records rejected: {reason} (listed in {output}/rejected)")
    print_licenses(manifest.sources)
    losses = manifest.stats.losses
    if losses:
        known = f"{losses.num_bytes:,} bytes and {losses.records:,} records are known to be missing"
        print(f"{len(losses.files):,} input files could not be read to their end: {known}")


class _Shown:
    """Shows progress: on a terminal, one line that updates itself; elsewhere, a log line every 10 s."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last: ScoreProgress | None = None
        self._logged = float("-inf")

    def __call__(self, progress: "ScoreProgress") -> None:
        self._last = progress
        if self._live:
            print(f"\r\x1b[K{describe_progress(progress)}", end="", file=sys.stderr, flush=True)
        elif progress.elapsed_s - self._logged >= _LOG_EVERY_S or progress.shards_done == progress.shards:
            self._logged = progress.elapsed_s
            log.info("%s", describe_progress(progress))

    def close(self) -> None:
        if self._live and self._last is not None:
            print(file=sys.stderr, flush=True)

    def facts(self) -> dict[str, Any]:
        if self._last is None:
            return {}
        return {"shards_done": self._last.shards_done, "shards": self._last.shards}


def describe_progress(progress: "ScoreProgress") -> str:
    stats = progress.stats
    eta = "-" if progress.eta_s is None else str(datetime.timedelta(seconds=round(progress.eta_s)))
    return (
        f"{progress.shards_done}/{progress.shards} shards, {stats.documents:,} documents, {stats.segments:,} segments, "
        f"{stats.characters:,} characters, {stats.num_failed:,} failed, {stats.rejected.total():,} rejected, "
        f"{progress.bytes_per_s / 1e6:.2f} MB/s, {eta} left"
    )


def _print_preview(plan: "ScoringPreview", request: "ScoringRequest", *, output: str) -> None:
    size = f"{len(plan.files):,} files, about {plan.num_bytes / 1e6:,.1f} MB of text, about {plan.num_shards:,} parts"
    limit = "" if request.limit is None else f", of which the first {request.limit:,} records are scored"
    print(f"{size}{limit}, into {output}")
    print(f"segmenter {request.config.scoring.segmenter}")
    for identity in plan.identities:
        versions = ", ".join(f"{name} {version}" for name, version in identity["versions"].items())
        print(f"scorer {identity['name']} ({identity['class_name']}): {identity['unit']}; {versions}")
    print_planned_sources(plan.sources)
    for root, scorers in plan.reuse.items():
        for name in scorers:
            print(f"scores of {name} are reused from {root}")


def _print_estimate(estimate: "ScoringEstimate", *, price: float) -> None:
    speed = estimate.characters / max(estimate.elapsed_s, 1e-9) / 1e6
    print(
        f"{estimate.documents:,} documents with {estimate.characters:,} characters in {estimate.elapsed_s:.1f} s "
        f"on one core: {speed:.3f} M characters/s"
    )
    print(
        f"the whole corpus, about {estimate.total_bytes / 1e6:,.1f} MB: {estimate.cpu_hours:.2f} CPU hours, "
        f"{estimate.cpu_hours * price:.2f} at {price:g} an hour"
    )


if __name__ == "__main__":
    cli.run(main)
