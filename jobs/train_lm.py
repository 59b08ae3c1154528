"""Train a language model on scored corpora, under Ray Train.

    python -m jobs.train_lm --task configs/pep8/pretrain.yml --method configs/pep8/conditional.yml \
        --run-name conditional --storage-path runs --override dataset.datasets=[scored]

Builds missing token blocks below the storage path, and trains into `<storage-path>/<run-name>/`. If you run the same
command again, it continues an interrupted run, even with another number of workers, and keeps a finished run.
"""

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs.cli import (
    add_config_arguments,
    add_run_arguments,
    asks_for_ray,
    config_from,
    is_url,
    require_shared,
    run,
    start_ray,
)
from jobs.commands import job_parser
from jobs.packing import block_builder
from phf_ray.errors import ConfigError, IncompleteError

if TYPE_CHECKING:
    from phf_ray.blocks.manifest import BlockManifest
    from phf_ray.config import Config
    from phf_ray.corpus.overlap import OverlapCounter
    from phf_ray.runs.directory import RunDirectory
    from phf_ray.training.driver import EvaluationsBeside, Fit
    from phf_ray.training.plan import TrainJob
    from phf_ray.training.reference import ReferenceRunner

log = logging.getLogger("jobs.train_lm")


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
    begun = directory.read_config().get("tokenizer")
    if begun is not None:
        # Runs of earlier versions took gpt2 where the task names no tokenizer.
        config = config.with_tokenizer_of(begun["path_or_name"], revision=begun.get("revision"))
    elif checkpoint_path is not None:
        config = config.with_tokenizer_of(checkpoint_path)
    elif not config.model.from_scratch:
        config = config.with_tokenizer_of(config.model.path_or_name, revision=config.model.revision)
    directory.check(config=config.model_dump(mode="json"))
    if is_done(config, directory):
        return 0
    check_adapters(config, checkpoint_path=checkpoint_path)
    if arguments.dry_run:
        _print_plan(arguments, config, storage_path=storage_path, checkpoint_path=checkpoint_path)
        return 0

    summary = _train(arguments, config, directory=directory, checkpoint_path=checkpoint_path)
    print(directory.path / summary["checkpoint"])
    push_once(config, directory)
    refuse_missing_evaluations(summary)
    return 0


def _train(
    arguments: argparse.Namespace, config: "Config", *, directory: "RunDirectory", checkpoint_path: str | None
) -> dict[str, Any]:
    from phf_ray.blocks.feedback_corpora import check_feedback
    from phf_ray.config import task_path
    from phf_ray.corpus.data_sets import check_data_sets
    from phf_ray.evaluation.beside_training import check_kl_settings
    from phf_ray.evaluation.prompts import check_prompts
    from phf_ray.feedback.layout import is_feedback_corpus
    from phf_ray.training.eval_sets import read_eval_sets, store_eval_sets

    sources = _sources(config, storage_path=str(directory.path.parent), run_name=arguments.run_name, remembers=True)
    corpora = [sources[source] for source in config.dataset.datasets]
    check_feedback(config, corpora)
    texts = [corpus for corpus in corpora if not is_feedback_corpus(corpus)]
    if texts:
        check_data_sets(config, texts)
    sets = read_eval_sets(config, sources)
    check_prompts(scenario.prompts_path for scenario in config.generation.scenario_configs)
    check_kl_settings(config)
    if arguments.in_process:
        refuse_workers(config)
    elif asks_for_ray():
        start_ray()
    require_shared(arguments.storage_path, flag="--storage-path")
    from phf_ray.blocks.build import ensure_blocks
    from phf_ray.blocks.manifest import read_block_manifest
    from phf_ray.blocks.thresholds import resolve_thresholds
    from phf_ray.training.driver import Helpers, Tracking, run_training
    from phf_ray.training.plan import plan_training
    from phf_ray.training.value_range import check_value_range

    builder = block_builder(in_process=arguments.in_process, start=start_ray)
    blocks = ensure_blocks(config, corpora=corpora, output_root=f"{directory.path.parent}/blocks", builder=builder)
    manifest = read_block_manifest(blocks.root)
    runners = _runners(config, manifest=manifest, checkpoint_path=checkpoint_path, in_process=arguments.in_process)
    # Control tokens of feedback are stated, not chosen by a score.
    thresholds = {} if blocks.examples is not None else resolve_thresholds(config, manifests=blocks.manifests)
    check_value_range(config, manifests=blocks.manifests)

    def accept(**plan: str | None) -> None:
        directory.check(config=config.model_dump(mode="json"), plan=plan)

    accept(blocks_hash=blocks.fingerprint, checkpoint_path=checkpoint_path)
    reference = _reference(
        config,
        blocks=blocks.root,
        checkpoint_path=checkpoint_path,
        accept=lambda folder: accept(reference=folder),
        run=runners.refer,
    )
    eval_sets = store_eval_sets(
        config,
        sets,
        parts=[part for group in blocks.groups for part in group.parts],
        folder=f"{directory.path.parent}/blocks/eval_sets",
        counter=runners.compare,
    )
    plan = plan_training(
        config,
        manifest=manifest,
        objective_threshold=thresholds.get("objective"),
        checkpoint_path=checkpoint_path,
        eval_sets=eval_sets,
        reference=reference,
    )
    log.info(
        "%d steps of %d sequences, %d tokens each",
        plan.num_steps,
        config.training.effective_batch_size,
        config.dataset.seq_length,
    )
    return run_training(
        config,
        plan=plan,
        run=directory,
        blocks_path=blocks.root,
        task=task_path(arguments.task).resolve().parent.name,
        tracking=Tracking(group=arguments.group_name, tags=tuple(arguments.tags)),
        helpers=Helpers(fit=runners.fit, plan_evaluations=partial(runners.plan_evaluations, num_steps=plan.num_steps)),
    )


class _Runners(NamedTuple):
    """Who does the work of a run after the packing: this process, or Ray."""

    compare: "OverlapCounter"
    refer: "ReferenceRunner"
    fit: "Fit[TrainJob]"
    plan_evaluations: Callable[..., "EvaluationsBeside | None"]


def _runners(config: "Config", *, manifest: "BlockManifest", checkpoint_path: str | None, in_process: bool) -> _Runners:
    """Return this process if it is told to train, or if the run is small and nobody asks for Ray."""
    from phf_ray.training.small import is_small

    if in_process:
        return _runners_here(config)
    if not asks_for_ray() and is_small(config, manifest=manifest, checkpoint_path=checkpoint_path):
        log.info(
            "a small run: training in this process, without Ray and its restarts; RAY_ADDRESS=local, or the address of "
            "a cluster, has it on Ray"
        )
        return _runners_here(config)
    start_ray()
    return _runners_on_ray(config)


def _runners_here(config: "Config") -> _Runners:
    from phf_ray.corpus.overlap import overlaps_here
    from phf_ray.training.in_process import fit_here
    from phf_ray.training.reference import compute_here

    return _Runners(overlaps_here, compute_here, fit_here, partial(no_evaluations, config))


def _runners_on_ray(config: "Config") -> _Runners:
    from phf_ray.blocks.on_ray import overlaps_on_ray
    from phf_ray.evaluation.on_ray import evaluations_beside
    from phf_ray.training.on_ray import compute_reference, fit_on_ray

    return _Runners(overlaps_on_ray, compute_reference, fit_on_ray, partial(evaluations_beside, config))


def refuse_workers(config: "Config") -> None:
    """Raise ConfigError for a run in this process that is to have several workers."""
    if config.training.num_workers > 1:
        raise ConfigError(
            f"--in-process has a single worker, and training.num_workers is "
            f"{config.training.num_workers}; set it to 1, or leave the flag out"
        )


def no_evaluations(config: "Config", run: "RunDirectory", *, num_steps: int) -> None:
    """Plan evaluations during a training in this process: raise ConfigError if the configuration asks for any."""
    del run
    from phf_ray.config.cadence import evaluation_steps

    if any(evaluation_steps(config, num_steps=num_steps)):
        raise ConfigError(
            "--in-process can't evaluate beside the training, and the configuration asks for it; add --override "
            "generation.scenario_configs=[], or leave the flag out"
        )


def _reference(
    config: "Config",
    *,
    blocks: str,
    checkpoint_path: str | None,
    accept: Callable[[str], None],
    run: "ReferenceRunner",
) -> str | None:
    """Compute the log-probabilities of the model that the run starts from, if the objective compares with them."""
    if not config.objective.reads_reference:
        return None
    from phf_ray.blocks.tokenizer import load_tokenizer
    from phf_ray.training.reference import ensure_reference
    from phf_ray.training.start import initial_model

    tokenizer = load_tokenizer(config.tokenizer)
    return ensure_reference(
        config,
        blocks=blocks,
        checkpoint_path=checkpoint_path,
        build=lambda: initial_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer),
        run=run,
        accept=accept,
    )


def default_run_name(task: str, method: str | None, *, shape: str | None = None) -> str:
    """Return a name after task, shape of the model and method: `pep8-mle`, `toxicity-finetune-1b-ul_finetune`."""
    from phf_ray.config import task_path
    from phf_ray.config.shipped import MAIN_TASKS

    file = task_path(task).resolve()
    parts = [file.parent.name] + ([] if file.stem in MAIN_TASKS else [file.stem])
    return "-".join([*parts, *(Path(name).stem for name in (shape, method) if name is not None)])


def is_done(config: "Config", directory: "RunDirectory") -> bool:
    """Return whether nothing is left of the run but, perhaps, its push to the hub, which is tried here.

    Evaluations during training that are missing are left: the next start tries them again.
    """
    before = directory.read_summary()
    if before.get("status") != "finished" or _missing_evaluations(before):
        return False
    log.info("%s is finished; nothing to do", directory.path)
    push_once(config, directory)
    return True


def push_once(config: "Config", directory: "RunDirectory") -> None:
    """Push the model to the hub once, if the config asks for it. If the push fails, the next start tries again."""
    training, summary = config.training, directory.read_summary()
    if training.hub_model_id is None or not training.push_to_hub or "pushed_to" in summary:
        return
    from phf_ray.training.hub import push_to_hub

    url = push_to_hub(
        directory.path / summary["checkpoint"], repository=training.hub_model_id, private=training.hub_private_repo
    )
    directory.write_summary(summary | {"pushed_to": url})


def _missing_evaluations(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return step -> reason."""
    return dict(summary.get("evaluations", {}).get("missing", {}))


def refuse_missing_evaluations(summary: Mapping[str, Any]) -> None:
    missing = _missing_evaluations(summary)
    if missing:
        raise IncompleteError(
            f"the model is trained, but evaluations during training are missing: {missing}; fix the cause, or remove "
            "their folders in evaluations/"
        )


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "train_lm",
        __doc__.split("\n")[0],
        examples=(
            "--task pep8 --method conditional --override dataset.datasets=[scored]",
            "--task configs/toxicity/pretrain.yml --method configs/toxicity/mle.yml",
            "--task toxicity/finetune --method ul_finetune --run-name b --storage-path runs --dry-run",
        ),
    )
    add_config_arguments(parser, method=True)
    add_run_arguments(parser, name="pep8-mle")
    parser.add_argument(
        "--tokens-per-s", type=float, metavar="N", help="with --dry-run: speed of all workers, to skip the short trial"
    )
    return parser


def check(arguments: argparse.Namespace, config: "Config") -> None:
    """Check what can be checked before Ray starts."""
    if config.rollouts is not None:
        raise ConfigError("the method learns from rounds of its own answers; start it with `phf train-rl`")
    if not config.dataset.datasets:
        raise ConfigError(
            "dataset.datasets is empty; add --override dataset.datasets=[DIR] with a scored corpus or, for plain "
            "likelihood, any text"
        )
    check_place(arguments, taken=("blocks",), example="mle-1")


def check_place(arguments: argparse.Namespace, *, taken: Sequence[str], example: str) -> None:
    """Check the name of the run, and where it is stored. `taken`: folders that the storage has for other things."""
    if arguments.run_name in ("", ".", "..", *taken) or "/" in arguments.run_name:
        raise ConfigError(f"--run-name {arguments.run_name!r} can't name a new folder; use a word such as {example}")
    if is_url(arguments.storage_path):
        raise ConfigError(
            f"--storage-path {arguments.storage_path} is a URL, but runs need a mounted file system; give a path such "
            f"as /mnt/shared/{arguments.storage_path.rstrip('/').rpartition('/')[2]}"
        )


def _sources(config: "Config", *, storage_path: str, run_name: str, remembers: bool) -> dict[str, str]:
    """Return data set -> the same at the commit with which the run began, or with an absolute path."""
    from phf_ray.corpus.sources import pinned_sources

    memory = f"{storage_path}/blocks/sources/{run_name}.json"
    pins = partial(pinned_sources, memory=memory, remembers=remembers)
    measured = list(config.dataset.eval_datasets.values())
    return pins(config.dataset.datasets, option="dataset.datasets") | pins(measured, option="dataset.eval_datasets")


def check_adapters(config: "Config", *, checkpoint_path: str | None) -> None:
    """Check what `model.lora` names against its base model, without loading a weight."""
    if config.model.lora is None:
        return
    from phf_ray.blocks.tokenizer import load_tokenizer
    from phf_ray.models.frozen_base import refuse_4bit
    from phf_ray.models.shape import planned_shape
    from phf_ray.training.speed import has_gpu
    from phf_ray.training.start import starting_model

    training = config.training
    if config.model.load_in_4bit:
        asked = training.resources_per_worker.get("GPU", 0) > 0
        refuse_4bit(
            has_gpu=asked or (not training.resources_per_worker and has_gpu()), parallelism=training.parallelism
        )
    tokenizer = load_tokenizer(config.tokenizer)
    starting = starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    planned_shape(starting, tokenizer=tokenizer, is_reward_model=config.trains_reward_model)


def _print_plan(
    arguments: argparse.Namespace, config: "Config", *, storage_path: str, checkpoint_path: str | None
) -> None:
    """Print steps, tokens, parameters, memory, disk and time, without Ray."""
    from phf_ray.blocks.plan import plan_blocks
    from phf_ray.blocks.tokenizer import load_tokenizer
    from phf_ray.models.shape import planned_shape
    from phf_ray.training.estimate import describe_run
    from phf_ray.training.speed import Speed, tried_speed
    from phf_ray.training.start import initial_learner, starting_model
    from phf_ray.training.token_count import count_tokens
    from phf_ray.training.value_range import check_value_range

    tokenizer = load_tokenizer(config.tokenizer)
    sources = _sources(config, storage_path=storage_path, run_name=arguments.run_name, remembers=False)
    corpora = [sources[source] for source in config.dataset.datasets]
    blocks = plan_blocks(config, corpora=corpora, tokenizer=tokenizer, output_root=f"{storage_path}/blocks")
    check_value_range(config, manifests=blocks.manifests)
    starting = starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    shape = planned_shape(starting, tokenizer=tokenizer, is_reward_model=config.trains_reward_model)
    speed: Speed | str
    if arguments.tokens_per_s is not None:
        speed = (arguments.tokens_per_s, "as given by --tokens-per-s")
    else:
        speed = tried_speed(
            config,
            shape=shape,
            build=lambda: initial_learner(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer),
        )
    tokens = count_tokens(blocks, tokenizer=tokenizer, weights=config.dataset.weights)
    print(f"run          {storage_path}/{arguments.run_name}")
    for line in describe_run(config, plan=blocks, tokens=tokens, shape=shape, speed=speed):
        print(line)


if __name__ == "__main__":
    run(main)
