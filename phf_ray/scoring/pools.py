"""Divides the scorers of a job into a CPU pool and a GPU pool."""

import logging
from dataclasses import replace

from phf_ray.config import PoolConfig, Pools
from phf_ray.corpus.plan import CorpusPlan
from phf_ray.corpus.segments import SEGMENTER_VERSIONS
from phf_ray.scorers.build import scorer_class
from phf_ray.scoring.executor import ScoringExecutor, ScoringPool
from phf_ray.scoring.request import ScoringRequest
from phf_ray.scoring.shard import ScoringStage

log = logging.getLogger(__name__)


def takes_gpu_pool(pools: Pools, executor: "ScoringExecutor") -> bool:
    """Whether the GPU pool's resources exist, or may come later and the user asked for them.

    A cluster that has no GPU at the start may get some, but the job waits for them only if the user asked for them.
    """
    return executor.has(pools.gpu) or ("gpu" in pools.model_fields_set and executor.may_grow())


def scoring_pools(request: ScoringRequest, plan: CorpusPlan, *, output: str, has_gpus: bool) -> list[ScoringPool]:
    """Return the pool of the scorers on CPUs, then the pool of those on GPUs, which also run on CPUs unless `has_gpus`.

    If all of the input already has a scorer's scores, the scorer is left out and its model is not loaded.
    """
    names = tuple(identity["name"] for identity in plan.identities)
    roots = {file.root for file in plan.files}
    known = [all(name in plan.reuse.get(root, {}) for root in roots) for name in names]
    configs = request.config.scoring.pools
    setup = request.setup_of(plan.key)
    models = {index for index, config in enumerate(setup.scorers) if scorer_class(config["class_name"]).runs_on_device}
    cpu = [index for index in range(len(names)) if not known[index] and not (has_gpus and index in models)]
    gpu = [index for index in range(len(names)) if not known[index] and index not in cpu]
    if slow := models & set(cpu):
        log.log(
            logging.WARNING if "gpu" in configs.model_fields_set else logging.INFO,
            "%s: on CPUs, because nothing here has %s; if your cluster adds GPU nodes on request, "
            "set scoring.pools.gpu, for example {max: 4}",
            ", ".join(names[index] for index in sorted(slow)),
            resources_of(configs.gpu),
        )
    used = [(config, indices) for config, indices in ((configs.cpu, cpu), (configs.gpu, gpu)) if indices]
    used = used or [(configs.cpu, [])]
    brought = [index for index, is_known in enumerate(known) if is_known]
    return [
        ScoringPool(
            ScoringStage(
                setup=replace(setup, scorers=tuple(setup.scorers[index] for index in indices)),
                identities=tuple(plan.identities[index] for index in indices),
                scorers_before=tuple(
                    names[index]
                    for index in sorted([*brought, *(index for _, before in used[:number] for index in before)])
                ),
                scorers=names,
                output=output,
                text_column=plan.key["--text-column"],
                keep_columns=tuple(plan.key.get("--keep-columns", ())),
                segmenter_versions=plan.key.get(SEGMENTER_VERSIONS),
                is_first=number == 0,
                is_last=number == len(used) - 1,
            ),
            config,
        )
        for number, (config, indices) in enumerate(used)
    ]


def resources_of(pool: PoolConfig) -> dict[str, float]:
    """Return the resources that one actor asks for."""
    wanted = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, **pool.resources}
    return {name: amount for name, amount in wanted.items() if amount}
