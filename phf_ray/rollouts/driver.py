"""Drives a run of rounds from its start to its summary, as `training/driver.py` drives one on blocks."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any

from phf_ray.adapter_folder import is_adapter, model_or_base
from phf_ray.config import Config, ModelConfig
from phf_ray.errors import ConfigError
from phf_ray.models.architecture import architecture_of
from phf_ray.models.positions import position_limit
from phf_ray.rollouts.algorithms.build import build_algorithm
from phf_ray.rollouts.critics import PlannedCritic, plan_critic
from phf_ray.rollouts.plan import RolloutJob, RolloutPlan, StoredPrompts, plan_rollouts, store_prompts, usable_prompts
from phf_ray.rollouts.progress import RoundLines
from phf_ray.runs.directory import RunDirectory
from phf_ray.storage.licenses import license_facts
from phf_ray.training.driver import Helpers, Tracking, drive, plain_job, renew_card
from phf_ray.training.licenses import model_licenses
from phf_ray.training.reference import identity_of_start
from phf_ray.training.start import initial_model, starting_model


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedRun:
    plan: RolloutPlan
    prompts: StoredPrompts
    left_out: Mapping[str, int]
    """Why prompts can't be answered -> how many."""
    critic: PlannedCritic | None = None


def prepare_rollouts(
    config: Config,
    *,
    tokenizer: Any,
    checkpoint_path: str | None,
    folder: str,
    accept: Callable[[dict[str, Any]], None] = lambda _: None,
    stores: bool = True,
) -> PreparedRun:
    """Read the prompts, leave out what can't be answered, store the others in `folder`, and plan the run.

    `accept` is told the plan, and raises an error if it can't be that of the run. `stores`: false to plan only.
    """
    _check_algorithm(config)
    critic = plan_critic(config, tokenizer=tokenizer)
    contexts = [
        _context_of(starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)),
        None if critic is None else critic.context,
    ]
    context = min((each for each in contexts if each is not None), default=None)
    usable = usable_prompts(config, tokenizer=tokenizer, context=context)
    prompts = store_prompts(usable, folder=folder, stores=stores)
    start = identity_of_start(
        config, checkpoint_path, lambda: initial_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    )
    plan = plan_rollouts(
        config,
        prompts=prompts,
        checkpoint_path=checkpoint_path,
        start=start,
        critic=None if critic is None else critic.identity,
    )
    accept(dataclasses.asdict(plan))
    return PreparedRun(plan, prompts, usable.left_out, critic)


def _context_of(starting: ModelConfig) -> int | None:
    """Return the positions of the model, without loading it; None: its configuration names no limit."""
    if not starting.from_scratch and starting.path_or_name is not None and is_adapter(starting.path_or_name):
        # An adapter has the positions of its base model.
        base = str(model_or_base(Path(starting.path_or_name)))
        starting = starting.model_copy(update={"path_or_name": base})
    if not starting.from_scratch:
        starting = starting.model_copy(update={"config_kwargs": {}})
    context, _ = position_limit(architecture_of(starting).get_text_config())
    return context


def _check_algorithm(config: Config) -> None:
    """Raise ConfigError for what the configuration alone did not show (see `problems_of_algorithm`)."""
    section = config.algorithm
    assert section is not None
    algorithm = build_algorithm(section, compat=config.feedback_compat)
    if algorithm.learns_pairs and not config.training.document_mask:
        raise ConfigError(f"algorithm {section.name} learns pairs, which share a row; set training.document_mask: true")


def run_rollouts(
    config: Config,
    prepared: PreparedRun,
    *,
    run: RunDirectory,
    task: str,
    tracking: Tracking,
    helpers: Helpers[RolloutJob],
) -> dict[str, Any]:
    """Run all rounds, from the newest complete checkpoint if there is one, and return the run's summary.

    Signals and errors are as those of `run_training`.
    """
    plan = prepared.plan
    job = RolloutJob(
        **plain_job(config, plan=dataclasses.asdict(plan), run=run, task=task), prompts_path=prepared.prompts.path
    )

    def facts() -> dict[str, Any]:
        return license_facts(model_licenses(config.model, checkpoint_path=plan.checkpoint_path))

    assert config.rollouts is not None
    lines = RoundLines(config.rollouts.rounds)
    summary = drive(job, config=config, run=run, tracking=tracking, helpers=helpers, sinks=[lines], facts=facts)
    corpora = [PurePath(source).name for source in config.rollouts.prompts]
    renew_card(run, config=config, job=job, corpora=corpora, metrics=summary["metrics"])
    return summary
