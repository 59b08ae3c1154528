"""Build the token blocks that training reads.

    python -m jobs.build_blocks --task configs/pep8/pretrain.yml --method configs/pep8/conditional.yml --corpus scored

Training builds missing blocks itself. This job builds them ahead, for example on machines without accelerators. Started
again, it resumes and keeps finished blocks. The last line on standard output is the folder of the blocks.
"""

import argparse
from collections.abc import Sequence

from jobs.cli import (
    add_config_arguments,
    add_in_process_argument,
    asks_for_ray,
    config_from,
    is_url,
    require_shared,
    run,
    start_ray,
)
from jobs.commands import job_parser
from jobs.packing import block_builder
from phf_ray.errors import ConfigError
from phf_ray.storage.data_set_names import parse_data_set
from phf_ray.storage.data_sets import open_data_set


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    config = config_from(arguments)
    corpora = tuple(arguments.corpus) or config.dataset.datasets
    if not corpora:
        raise ConfigError("no corpus: give --corpus DIR, or set dataset.datasets in the task file")
    output = arguments.output or _beside(corpora[0])

    from phf_ray.blocks.build import build_blocks
    from phf_ray.blocks.feedback_corpora import check_feedback
    from phf_ray.blocks.plan import plan_blocks
    from phf_ray.blocks.tokenizer import load_tokenizer
    from phf_ray.corpus.data_sets import check_data_sets

    for corpus in corpora:
        open_data_set(corpus, option="--corpus")
    is_feedback = bool(check_feedback(config, corpora))
    if not arguments.dry_run:
        if not is_feedback:
            check_data_sets(config, corpora)
        if asks_for_ray() and not arguments.in_process:
            start_ray()
        output = require_shared(output, flag="--output")
    tokenizer = load_tokenizer(config.tokenizer)
    plan = plan_blocks(
        config, corpora=corpora, tokenizer=tokenizer, output_root=output, remembers=not arguments.dry_run
    )
    if arguments.dry_run:
        num_parts = sum(len(group.parts) for group in plan.groups)
        print(f"{num_parts} parts in {len(plan.groups)} groups, sequences of {plan.sequence_length} tokens")
        print(f"thresholds: {dict(plan.thresholds) or 'none'}")
        print(plan.root)
        return 0

    builder = block_builder(in_process=arguments.in_process, start=start_ray)
    print(build_blocks(plan, tokenizer=tokenizer, builder=builder))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "build_blocks",
        __doc__.split("\n")[0],
        examples=(
            "--task pep8 --method conditional --corpus scored/",
            "--task pep8 --method conditional --corpus scored/ --output blocks/ --dry-run",
        ),
    )
    add_config_arguments(parser, method=True)
    parser.add_argument(
        "--corpus",
        nargs="+",
        default=[],
        metavar="SRC",
        help="scored corpora, feedback corpora or, for plain likelihood, text; folders or names (ID[:CONFIG][@SPLIT]); "
        "default: dataset.datasets",
    )
    parser.add_argument("--output", metavar="DIR", help="parent of the folder of blocks; default: next to the corpus")
    add_in_process_argument(parser, does="pack")
    return parser


def _beside(given: str) -> str:
    """`data/scored` -> `data/blocks`."""
    data_set = parse_data_set(given)
    corpus = given if data_set is None else data_set.place if data_set.is_local else ""
    parent, _, name = corpus.rstrip("/").rpartition("/")
    if not name or name.startswith("*") or (is_url(corpus) and parent.endswith("/")):
        raise ConfigError(f"--corpus {given}: no folder next to the corpus can hold its blocks; give --output DIR")
    return f"{parent}/blocks" if parent or corpus.startswith("/") else "blocks"


if __name__ == "__main__":
    run(main)
