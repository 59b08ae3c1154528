"""Score a corpus: python -m jobs.score_corpus --task T --input SRC [SRC ...] --output DIR"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence

from jobs import cli
from phf_ray.errors import PhfError
from phf_ray.pipelines import score
from phf_ray.pipelines.score import Output, ScoreProgress

log = logging.getLogger("phf_ray.score_corpus")


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(prog="python -m jobs.score_corpus", description=__doc__)
    cli.add_config_arguments(parser, method=False)
    parser.add_argument("--input", nargs="+", required=True, metavar="SRC", help="folders, globs, files, URLs, hub ids")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL of the scored corpus")
    parser.add_argument("--limit", type=int, metavar="N", help="score only the first N records")
    parser.add_argument("--text-column", metavar="C", help="column of the text in JSON lines and tables")
    parser.add_argument("--append", action="store_true", help="score input files that were added, too")
    parser.add_argument("--restart", action="store_true", help="discard what the output holds")
    arguments = parser.parse_args(argv)
    config = cli.config_from(arguments)
    cli.start_ray()
    output = cli.require_shared(arguments.output, flag="--output")
    inputs = arguments.input
    manifest = score.score_corpus(
        config,
        inputs=inputs,
        output=output,
        limit=arguments.limit,
        text_column=arguments.text_column,
        append=arguments.append,
        restart=arguments.restart,
        progress=lambda progress: print(progress.shards_done, progress.shards, progress.stats.documents, progress.eta_s),
    )
    print(manifest.documents, manifest.segments, dict(manifest.rejected))
    return 0


if __name__ == "__main__":
    cli.run(main)
