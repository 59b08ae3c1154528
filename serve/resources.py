"""CPUs, GPUs and threads of what is served, chosen from what the cluster has free.

Models come first: one GPU each if there are enough, an equal part of one if there are fewer, else CPUs. Whatever runs a
neural network on CPUs gets as many as every such replica can have from half of what each node has free; the other half
stays for the rest of the job. A replica has one thread per CPU that it asks for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from phf_ray.scorers.build import scorer_class
from serve.settings import ServeArgs, ServedModel, ServedScorer

MOST_CPUS = 8
"""More threads hardly speed up the small matrices of one token."""
LEAST_CPUS = 0.25
CPUS_BESIDE_A_GPU = 0.5
GPU_STEPS = 10_000
"""Ray counts GPUs in steps of 1/10,000."""


@dataclass(frozen=True, slots=True)
class Node:
    """What one node of the cluster has free."""

    num_cpus: float
    num_gpus: float = 0.0


def with_resources(
    args: ServeArgs, nodes: Sequence[Node], *, num_cpus: float | None = None, num_gpus: float | None = None
) -> ServeArgs:
    """Return the arguments with CPUs and GPUs for every replica that runs a neural network.

    `num_cpus` and `num_gpus` are those of each such replica; None: chosen from what `nodes` have free. Scorers get GPUs
    only if the models leave enough.
    """
    num_models, num_scorers = sum(map(runs_here, args.models)), sum(map(runs_network, args.scorers))
    gpus_of_model, gpus_of_scorer = gpu_shares(nodes, num_models=num_models, num_scorers=num_scorers, asked=num_gpus)
    num_on_cpus = (0 if gpus_of_model else num_models) + (0 if gpus_of_scorer else num_scorers)
    on_cpus = cpu_share(nodes, num_replicas=num_on_cpus)

    def share(gpus: float) -> dict[str, float]:
        chosen = CPUS_BESIDE_A_GPU if gpus else on_cpus
        return {"num_cpus": chosen if num_cpus is None else num_cpus, "num_gpus": gpus}

    models = [model.model_copy(update=share(gpus_of_model)) if runs_here(model) else model for model in args.models]
    scorers = [one.model_copy(update=share(gpus_of_scorer)) if runs_network(one) else one for one in args.scorers]
    return args.model_copy(update={"models": tuple(models), "scorers": tuple(scorers)})


def runs_here(model: ServedModel) -> bool:
    return model.upstream is None


def runs_network(served: ServedScorer) -> bool:
    """Whether the scorer uses a GPU if it has one."""
    return scorer_class(served.scorer["class_name"]).runs_on_device


def gpu_shares(
    nodes: Sequence[Node], *, num_models: int, num_scorers: int, asked: float | None = None
) -> tuple[float, float]:
    """Return the GPUs of each model, and of each scorer that can use one. `asked`: 0 to 1; None: what fits."""
    num_gpus = sum(int(node.num_gpus) for node in nodes)
    share = _equal_share(num_gpus, num_models or num_scorers) if asked is None else asked
    if not share or not num_models:
        return share, share
    # All shares are equal, so any place on any GPU takes any replica, in whatever order Ray starts them.
    num_left = places(num_gpus, share) - num_models
    return share, share if num_left >= num_scorers else 0.0


def places(num_gpus: float, share: float) -> int:
    """Return how many replicas have room on that many free GPUs. A replica with a part of a GPU has it on one GPU."""
    return int(num_gpus) * int(1 / share)


def _equal_share(num_gpus: int, num_replicas: int) -> float:
    if not num_gpus or not num_replicas:
        return 0.0
    num_per_gpu = -(-num_replicas // num_gpus)
    return GPU_STEPS // num_per_gpu / GPU_STEPS


def cpu_share(nodes: Sequence[Node], *, num_replicas: int) -> float:
    """Return the most CPUs that each replica can have from half of every node's free ones; `LEAST_CPUS` if below 1."""
    for num_cpus in range(MOST_CPUS, 0, -1):
        if sum(int(node.num_cpus / 2 // num_cpus) for node in nodes) >= num_replicas:
            return float(num_cpus)
    return LEAST_CPUS


def num_threads(num_cpus: float, *, num_cores: int | None = None) -> int:
    """Return the threads of a replica: one per CPU that it asks for, at least 1, and no more than there are cores.

    A local Ray counts at least 4 CPUs, on however few cores. `num_cores`: None for those of this process.
    """
    return max(1, min(int(num_cpus), num_cores or cores()))


def cores() -> int:
    """Return the number of cores that this process may use."""
    # Only Linux has sched_getaffinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
