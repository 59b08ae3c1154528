"""Train a language model on rewards of its own answers, round by round, under Ray Train.

    python -m jobs.train_rl --task configs/alpaca/task.yml --method configs/alpaca/rloo.yml --run-name rloo \
        --checkpoint-path runs/sft --override rollouts.prompts=[prompts.jsonl] rollouts.reward.model=runs/reward

Trains into `<storage-path>/<run-name>/`; `rollouts/` there has all answers, rewards and log-probabilities. If you
run the same command again, it continues an interrupted run, even with another number of workers, and keeps a finished
run.
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import add_config_arguments, add_run_arguments, config_from, require_shared, run, start_ray
from jobs.commands import job_parser
from jobs.train_lm import (
    check_adapters,
    check_place,
    default_run_name,
    is_done,
    no_evaluations,
    push_once,
    refuse_missing_evaluations,
    refuse_workers,
)
from phf_ray.errors import ConfigError, PhfError

if TYPE_CHECKING:
    from phf_ray.config import Config
    from phf_ray.rollouts.driver import PreparedRun
    from phf_ray.rollouts.plan import RolloutJob
    from phf_ray.runs.directory import RunDirectory
    from phf_ray.training.driver import Helpers

log = logging.getLogger("jobs.train_rl")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.runs.directory import RunDirectory

    config = config_from(arguments)
    if arguments.run_name is None:
        arguments.run_name = default_run_name(arguments.task, arguments.method, shape=arguments.shape)
    check(arguments, config)
    storage_path = str(Path(arguments.storage_path).resolve())

    from phf_ray.runs.checkpoints import find_checkpoint

    directory = RunDirectory(Path(storage_path) / arguments.run_name)
    checkpoint_path = None
    if arguments.checkpoint_path is not None:
        checkpoint_path = str(find_checkpoint(arguments.checkpoint_path, option="--checkpoint-path").resolve())
    if checkpoint_path is not None:
        config = config.with_tokenizer_of(checkpoint_path)
    elif not config.model.from_scratch:
        config = config.with_tokenizer_of(config.model.path_or_name, revision=config.model.revision)
    directory.check(config=config.model_dump(mode="json"))
    if is_done(config, directory):
        return 0
    prepared = _prepare(config, directory, checkpoint_path=checkpoint_path, stores=not arguments.dry_run)
    if arguments.dry_run:
        _print_plan(config, prepared, directory=directory, checkpoint_path=checkpoint_path)
        return 0
    if arguments.in_process:
        refuse_workers(config)
    else:
        start_ray()
    require_shared(arguments.storage_path, flag="--storage-path")
    summary = _train(arguments, config, prepared, directory=directory)
    draw_page(directory.path)
    if summary["checkpoint"] is not None:
        print(directory.path / summary["checkpoint"])
        push_once(config, directory)
    refuse_missing_evaluations(summary)
    return 0


def _prepare(
    config: "Config", directory: "RunDirectory", *, checkpoint_path: str | None, stores: bool
) -> "PreparedRun":
    """Check all that can be known before Ray starts, and plan the run."""
    from phf_ray.blocks.tokenizer import load_tokenizer
    from phf_ray.evaluation.beside_training import check_kl_settings
    from phf_ray.evaluation.prompts import check_prompts
    from phf_ray.rollouts.driver import prepare_rollouts
    from phf_ray.rollouts.rewards.build import check_spec

    rollouts = config.rollouts
    assert rollouts is not None
    for spec in rollouts.reward:
        check_spec(spec, option="rollouts.reward")
    if rollouts.gold is not None:
        check_spec(rollouts.gold, option="rollouts.gold")
    check_prompts(scenario.prompts_path for scenario in config.generation.scenario_configs)
    check_kl_settings(config)
    check_adapters(config, checkpoint_path=checkpoint_path)

    def accept(plan: dict[str, Any]) -> None:
        directory.check(config=config.model_dump(mode="json"), plan=plan)

    return prepare_rollouts(
        config,
        tokenizer=load_tokenizer(config.tokenizer),
        checkpoint_path=checkpoint_path,
        folder=f"{directory.path.parent}/prompts",
        accept=accept,
        stores=stores,
    )


def _train(
    arguments: argparse.Namespace, config: "Config", prepared: "PreparedRun", *, directory: "RunDirectory"
) -> dict[str, Any]:
    from phf_ray.config import task_path
    from phf_ray.rollouts.driver import run_rollouts
    from phf_ray.training.driver import Tracking

    assert config.rollouts is not None
    log.info(
        "%d rounds of %d prompts x %d answers, %d steps each",
        config.rollouts.rounds,
        config.rollouts.prompts_per_round,
        config.rollouts.samples_per_prompt,
        config.rollouts.steps_per_round,
    )
    return run_rollouts(
        config,
        prepared,
        run=directory,
        task=task_path(arguments.task).resolve().parent.name,
        tracking=Tracking(group=arguments.group_name, tags=tuple(arguments.tags)),
        helpers=_helpers(config, prepared, run_name=directory.path.name, is_here=arguments.in_process),
    )


def _helpers(config: "Config", prepared: "PreparedRun", *, run_name: str, is_here: bool) -> "Helpers[RolloutJob]":
    from phf_ray.training.driver import Helpers

    if is_here:
        from phf_ray.rollouts.in_process import fit_rollouts_here

        return Helpers(
            fit=fit_rollouts_here, plan_evaluations=partial(no_evaluations, config, num_steps=prepared.plan.num_steps)
        )
    from phf_ray.evaluation.on_ray import evaluations_beside
    from phf_ray.rollouts.on_ray.metrics import RoundGauges
    from phf_ray.rollouts.on_ray.train import fit_rollouts_on_ray

    assert config.rollouts is not None
    plan_evaluations = partial(evaluations_beside, config, num_steps=prepared.plan.num_steps)
    gauges = RoundGauges(run_name, config.rollouts.rounds)
    return Helpers(fit=fit_rollouts_on_ray, plan_evaluations=plan_evaluations, sinks=(gauges,))


def draw_page(run: Path) -> None:
    """Draw the page of the rounds so far. The run is sound without it, so what hinders it is only told."""
    from phf_ray.rollouts.guard import stop_rules_of, write_rounds_report

    try:
        write_rounds_report(run, rules=stop_rules_of(run))
    except PhfError as error:
        log.warning("there is no new page of the rounds: %s", error)
    else:
        log.info("%s/report.html", run)


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "train_rl",
        __doc__.split("\n")[0],
        examples=(
            "--task alpaca --method rloo --checkpoint-path runs/sft --override rollouts.prompts=[prompts.jsonl] "
            "rollouts.reward.model=runs/reward",
            "--task alpaca --method configs/alpaca/ppo.yml --run-name ppo --storage-path runs --dry-run",
        ),
    )
    add_config_arguments(parser, method=True)
    add_run_arguments(parser, name="alpaca-rloo", of_start="; they are the reference, too")
    return parser


def check(arguments: argparse.Namespace, config: "Config") -> None:
    """Check what can be checked without a file."""
    if config.rollouts is None or config.algorithm is None:
        raise ConfigError(
            "the configuration has no rollouts and no algorithm; give --method with a file that has them, such as "
            "rloo (configs/alpaca/rloo.yml), or learn from stored data with `phf train-lm`"
        )
    check_place(arguments, taken=("blocks", "prompts"), example="rloo-1")


def _print_plan(
    config: "Config", prepared: "PreparedRun", *, directory: "RunDirectory", checkpoint_path: str | None
) -> None:
    """Print rounds, prompts, steps, parameters, memory and disk, without Ray."""
    from phf_ray.blocks.tokenizer import load_tokenizer
    from phf_ray.models.shape import planned_shape
    from phf_ray.rollouts.estimate import describe_rounds
    from phf_ray.training.start import starting_model

    tokenizer = load_tokenizer(config.tokenizer)
    starting = starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    print(f"run          {directory.path}")
    for line in describe_rounds(config, prepared, shape=planned_shape(starting, tokenizer=tokenizer)):
        print(line)


if __name__ == "__main__":
    run(main)
