"""Print thresholds of a scored corpus: the score that a given share of its segments or documents does not exceed."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs import cli
from jobs.commands import job_parser

if TYPE_CHECKING:
    from phf_ray.corpus.manifest import CorpusManifest
    from phf_ray.measures.histogram import Histogram


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.corpus.stored import open_corpora
    from phf_ray.measures.histogram import Histogram

    manifest = open_corpora([arguments.corpus])[0].manifest
    unit = _unit(manifest, arguments.scorer)
    print(f"{manifest.documents:,} documents, {manifest.segments:,} segments; {unit}; higher is worse")
    stats = manifest.scorer_stats(arguments.scorer)
    for name, histogram in (("segments", stats.segment_histogram), ("documents", stats.document_histogram)):
        for quantile in arguments.quantile:
            print(describe_threshold(histogram, name=name, quantile=quantile))
    error = Histogram.RATIO - 1
    print(f"a threshold is at most {error:.0%} above the exact quantile, and never below it")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "thresholds", __doc__, examples=("--corpus scored/", "--corpus scored/ --quantile 0.5 0.9 --scorer pep8")
    )
    parser.add_argument("--corpus", required=True, metavar="DIR", help="output of score-corpus")
    parser.add_argument(
        "--quantile", nargs="+", type=float, default=[0.5], metavar="Q", help="quantiles between 0 and 1 (default 0.5)"
    )
    parser.add_argument("--scorer", metavar="NAME", help="by default the first scorer, which training uses")
    return parser


def _unit(manifest: "CorpusManifest", scorer: str | None) -> str:
    found = [one for one in manifest.scorers if scorer in (None, one["name"])]
    return f"{found[0]['name']}, {found[0]['unit']}" if found else "scorer unknown"


def describe_threshold(histogram: "Histogram", *, name: str, quantile: float) -> str:
    """Return one line with the threshold, and the share and mean score on each side of it."""
    threshold = histogram.quantile(quantile)
    below, above = histogram.split(threshold)
    total = below.count + above.count
    sides = ", ".join(
        f"{side.count / total:.1%} {where} (mean {'-' if side.mean is None else format(side.mean, '.6g')})"
        for where, side in (("at or below", below), ("above", above))
    )
    return f"{name} quantile {quantile:g}: threshold {threshold:.6g}; {sides}"


if __name__ == "__main__":
    cli.run(main)
