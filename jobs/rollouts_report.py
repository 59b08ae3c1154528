"""Write the report of a run of rounds, from the rounds that it has stored.

Writes report.html and report.json into the run's directory. A run under way, or one that was stopped, has one as well.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.rollouts.guard import stop_rules_of, write_alpaca_farm_rollouts, write_rounds_report

    run, output = arguments.run, arguments.output
    if not run.is_dir():
        raise ConfigError(f"--run {run} is no directory; give that of a run of phf train-rl")
    if output is not None and output.is_file():
        raise ConfigError(f"--output {output} is a file; give a folder")
    summary = write_rounds_report(run, rules=stop_rules_of(run), output=output, seed=arguments.seed)
    if arguments.alpaca_farm:
        written = write_alpaca_farm_rollouts(run, output=output)
        print(f"{written[0].parent}: {len(written)} files as AlpacaFarm writes them")
    for alarm in summary.alarms:
        print(f"round {alarm.round}: {alarm.text}")
    print(f"{run if output is None else output}/report.html")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser("rollouts_report", __doc__, examples=("--run runs/ppo", "--run runs/ppo --alpaca-farm"))
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="directory of a run of rounds")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write into; default: the run's")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="chooses the samples that are shown (default 0)"
    )
    parser.add_argument(
        "--alpaca-farm", action="store_true", help="write rollouts/step_1.json and so on too, as AlpacaFarm does"
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
