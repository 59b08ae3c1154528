"""Draw gold and proxy against KL for any set of finished runs and results, on one page.

Takes runs of train-rl, outputs of best-of-n, evaluate-lm, leaderboard and annotate, and reports of models against their
base (phf rounds), and tells them apart by their files. Writes frontier.html, one file that needs no network, and
frontier.json, with every figure of it. Nothing is sampled or scored again; it needs no GPU and no Ray.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.evaluation.report.text_table import aligned, ruled
    from phf_ray.rollouts.frontier.table import frontier_text
    from phf_ray.rollouts.frontier.write import FIGURES, PAGE, write_frontier

    output: Path = arguments.output
    if any(place.is_file() for place in (output, *output.parents)):
        raise ConfigError(f"--output {output} is a file, or is below one; give a folder")
    frontier = write_frontier(arguments.results, output)
    if frontier.methods:
        print("\n".join(ruled(aligned(frontier_text(frontier.methods)))))
    for warning in frontier.unlike.warnings:
        print(f"warning: {warning}")
    print(f"{output / PAGE}\n{output / FIGURES}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "frontier",
        __doc__,
        examples=(
            "runs/ppo runs/rloo out/best --output out/frontier",
            "out/demo/rounds short=runs/ppo_1 long=runs/ppo_2 out/leaderboard --output out/frontier",
        ),
    )
    parser.add_argument(
        "results",
        nargs="+",
        metavar="[NAME=]RUN_OR_RESULT",
        help="folders of runs and results; NAME is what the page calls it (default: the folder's name; models keep "
        "theirs)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    return parser


if __name__ == "__main__":
    cli.run(main)
