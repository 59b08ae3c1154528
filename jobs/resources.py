"""Chooses CPUs and GPUs for a server from what the running Ray has free."""

import argparse
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from serve.resources import Node
    from serve.settings import ServeArgs

log = logging.getLogger("phf_ray.serve")

RELEASE_S = 5.0
"""Wait for what is in use: Ray's count of what a training gave back lags behind by seconds."""


def add_gpu_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-gpus",
        type=float,
        metavar="SHARE",
        help="GPUs for each model, 0 (run on CPUs) to 1; 0.5 puts two on one GPU (default: one each, or an equal share "
        "if there are fewer GPUs than models)",
    )


def check_resources(*, num_cpus: float | None, num_gpus: float | None) -> None:
    """Raise ConfigError for numbers that no replica can have."""
    if num_cpus is not None and not 0 <= num_cpus < float("inf"):
        raise ConfigError(f"--num-cpus {num_cpus:g}: give 0 or more")
    if num_gpus is not None and not 0 <= num_gpus <= 1:
        raise ConfigError(f"--num-gpus {num_gpus:g}: give 0 to run on CPUs, 1, or a part of 1; a model runs on one GPU")


def choose_resources(args: "ServeArgs", *, num_cpus: float | None, num_gpus: float | None) -> "ServeArgs":
    """Return the arguments with the resources of each replica. None: chosen from what the running Ray has free.

    Raises ConfigError if a Ray of this machine alone can't give what is asked for; a cluster may still grow.
    """
    import ray

    from serve.resources import runs_here, runs_network, with_resources

    num_models = sum(map(runs_here, args.models))
    if not num_models and not any(map(runs_network, args.scorers)):
        return args
    total = float(ray.cluster_resources().get("GPU", 0.0))
    if num_gpus is not None:
        _check_gpus(num_gpus, total, num_models=num_models)
    nodes = _free_nodes()
    if num_gpus is None and total:
        nodes = _usable(nodes, total=total)
    chosen = with_resources(args, nodes, num_cpus=num_cpus, num_gpus=num_gpus)
    named = [*((model.name, model) for model in chosen.models), *((one.name, one) for one in chosen.scorers)]
    for name, served in named:
        log.info("%s: %g CPUs, %g GPUs", name, served.num_cpus, served.num_gpus)
    return chosen


def _check_gpus(num_gpus: float, total: float, *, num_models: int) -> None:
    from serve.resources import places

    if not num_gpus or num_models <= places(total, num_gpus):
        return
    if os.environ.get("RAY_ADDRESS", "local") == "local":
        raise ConfigError(
            f"--num-gpus {num_gpus:g}: the models ({num_models}) do not fit on the GPUs that Ray finds on this machine "
            f"({total:g}); give a smaller part, or leave --num-gpus out"
        )
    log.warning("%d models do not fit on the cluster's %g GPUs; the server waits until it has more", num_models, total)


def _free_nodes() -> "list[Node]":
    """Return what each node has free. Waits up to `RELEASE_S` for what is in use."""
    import ray

    # Ray's public function sums over nodes, and a replica must fit on one.
    from ray._private.state import available_resources_per_node

    from serve.resources import Node

    total = ray.cluster_resources()
    deadline = time.monotonic() + RELEASE_S
    while True:
        free = available_resources_per_node().values()
        nodes = [Node(float(one.get("CPU", 0.0)), float(one.get("GPU", 0.0))) for one in free]
        in_use = total.get("CPU", 0.0) - sum(node.num_cpus for node in nodes)
        in_use += total.get("GPU", 0.0) - sum(node.num_gpus for node in nodes)
        if in_use <= 0 or time.monotonic() > deadline:
            return nodes
        time.sleep(0.2)


def _usable(nodes: "Sequence[Node]", *, total: float) -> "list[Node]":
    """Return the nodes without their GPUs if torch can't use them. Says why models run on CPUs beside GPUs."""
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        log.warning(
            "torch %s is built without GPUs, so models run on CPUs; install one that has them", torch.__version__
        )
        return [replace(node, num_gpus=0.0) for node in nodes]
    if not any(int(node.num_gpus) for node in nodes):
        log.warning(
            "all %g GPUs of the cluster are in use, so models run on CPUs; --num-gpus 1 waits for GPUs instead", total
        )
    return list(nodes)
