"""Processes that form one gloo process group, as Ray Train's workers do."""

import gc
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

PATIENCE_S = 240.0


def run_on_ranks(function: Callable[[int], None], *, world_size: int, directory: Path) -> None:
    """Call `function(rank)`, which must be importable, in `world_size` processes with one torch thread each."""
    job = partial(_on_rank, function, world_size, f"file://{directory}/rendezvous")
    # A server that has imported torch once and forks from there: a fresh interpreter each takes ten seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["phf_ray.training.loop"])
    processes = [context.Process(target=job, args=(rank,), daemon=True) for rank in range(world_size)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE_S)
        assert [process.exitcode for process in processes] == [0] * world_size
    finally:
        for process in processes:
            process.kill()


def _on_rank(function: Callable[[int], None], world_size: int, rendezvous: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    try:
        function(rank)
    finally:
        # DDP must not be the last to hold the group: it would wait, with the interpreter's lock, for a thread that
        # waits for that lock.
        gc.collect()
        dist.destroy_process_group()
