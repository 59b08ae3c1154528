"""Train the paper's six objectives on the demo's corpus, and plot misalignment against KL (`make pareto`).

The corpus is the standard library of the running Python, as in the demo. The job reuses the demo's results in the same
folder. It trains six GPT-2s of 0.6 M parameters from scratch, which differ only in the objective. The paper measures KL
from GPT-3, which was shut down. The reference here is the model trained by maximum likelihood, which sees the same text
without feedback; its own KL is therefore 0. Each objective has one training run; `--seeds 0,1,2` trains and compares
all of it three times, each seed with a reference of its own.

Takes about half an hour on 2 cores. `--small` takes a few minutes, and its models learn nothing.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from jobs import cli, demo, demo_seeds
from jobs.commands import job_parser

METHODS = ("mle", "conditional", "filtering", "ul", "rwr", "awr")
REFERENCE = "mle"
KL = ("kl_gpt3_callback.num_samples=512", "kl_gpt3_callback.max_tokens=64")
SMALL = (*demo.SMALL, "kl_gpt3_callback.num_samples=16", "kl_gpt3_callback.max_tokens=16")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.config import load_config

    overrides = [*KL, *(SMALL if arguments.small else ()), *arguments.override]
    seeds = cli.seeds_of(arguments.seeds)
    task = load_config(demo.TASK, None, overrides)
    started = time.monotonic()
    output = demo.output_folder(arguments.output)
    demo.say("six training runs: about half an hour on 2 cores" if not arguments.small else "small: a few minutes")
    cli.start_ray()
    corpus, tokenizer = demo.prepare_corpus(
        output, task=task, overrides=overrides, stages=4, started=started, small=arguments.small
    )
    with demo.stage("3/4 train", started):
        for seed in seeds:
            for methods in _waves(os.cpu_count() or 1):
                demo.train_models(methods, corpus, tokenizer, output=output, overrides=overrides, seed=seed)
    with demo.stage("4/4 serve and evaluate", started):
        for seed in seeds:
            _evaluate(output, overrides=overrides, seed=seed)
    reports = demo_seeds.read_reports(output, "pareto", seeds)
    for seed, report in reports.items():
        page = Path(arguments.output) / demo_seeds.named("pareto", seed) / "report.html"
        demo.say(f"\n{format_front(report)}\n\nreport: {page}")
    demo_seeds.say_spread(reports, ("score", "kl_per_byte"), file=output / "pareto_seeds.json")
    demo.say(f"{time.monotonic() - started:.0f} s in total")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser("pareto", __doc__, examples=("", "--small --output out/small"))
    parser.add_argument(
        "--output", default="out/demo", help="folder for everything that the job makes (default: out/demo)"
    )
    parser.add_argument("--small", action="store_true", help="a hundredth of everything, to check that the job runs")
    parser.add_argument("--override", nargs="+", action="extend", default=[], metavar="A.B=C")
    demo_seeds.add_argument(parser)
    return parser


def _waves(num_cores: int) -> list[Sequence[str]]:
    """Return groups of methods that train at the same time, one method per core."""
    return [METHODS[first : first + num_cores] for first in range(0, len(METHODS), num_cores)]


def _evaluate(output: Path, *, overrides: Sequence[str], seed: int) -> None:
    from jobs import evaluate_lm

    models = [f"{name}={output / 'runs' / demo_seeds.named(name, seed)}" for name in METHODS]
    command = ["--task", demo.TASK, "--model", *models, "--reference", REFERENCE, "--seeds", "0,1,2"]
    command += ["--output", str(output / demo_seeds.named("pareto", seed))]
    demo.run_job(evaluate_lm, [*command, *demo.as_override(overrides)])


def format_front(report: dict[str, list[dict[str, float | str | None]]]) -> str:
    """Return a line for each arm that no other arm beats in both score and KL."""
    from phf_ray.measures.pareto import pareto_front

    points = [
        (str(row["arm"]), row["score"], row["kl_per_byte"])
        for row in report["table"]
        if isinstance(row["score"], float) and isinstance(row["kl_per_byte"], float)
    ]
    front = pareto_front(points)
    lines = [f"{name}: score {score:.4g}, KL {kl:.4g} nats per byte" for name, score, kl in points if name in front]
    return "\n".join(["arms that no other arm beats in both score and KL:", *lines])


if __name__ == "__main__":
    cli.run(main)
