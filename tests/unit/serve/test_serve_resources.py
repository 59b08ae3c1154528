"""CPUs, GPUs and threads of what is served, by what a cluster has free."""

import os
import subprocess
import sys

import pytest
from places import ROOT

from serve.app import build
from serve.resources import Node, cores, cpu_share, gpu_shares, num_threads, with_resources
from serve.settings import parse_args

TOXICITY = {"scorer": {"class_name": "DetoxifyToxicityScorer"}}
PEP8 = {"scorer": {"class_name": "PEP8Scorer"}}


def args_of(num_models, *scorers):
    return parse_args(
        {"models": [{"name": f"m{number}", "path": "x"} for number in range(num_models)], "scorers": list(scorers)}
    )


def chosen(args, *nodes, **asked):
    """(CPUs, GPUs) of each model, then of each scorer."""
    found = with_resources(args, [Node(*node) for node in nodes], **asked)
    return [(one.num_cpus, one.num_gpus) for one in (*found.models, *found.scorers)]


@pytest.mark.parametrize(
    ("gpus", "num_models", "share"),
    [
        ([], 1, 0.0),
        ([0.0], 1, 0.0),
        ([1.0], 1, 1.0),
        ([1.0], 2, 0.5),
        ([1.0], 3, 0.3333),
        ([1.0, 1.0], 2, 1.0),
        ([2.0], 3, 0.5),
        ([8.0], 3, 1.0),
        # A GPU of which something else has a part is not free.
        ([0.5], 1, 0.0),
    ],
)
def test_every_model_gets_a_gpu_or_an_equal_part_of_one(gpus, num_models, share):
    nodes = [Node(8.0, num_gpus) for num_gpus in gpus]
    assert gpu_shares(nodes, num_models=num_models, num_scorers=0)[0] == share
    assert num_models * share <= sum(gpus)


@pytest.mark.parametrize(
    ("num_gpus", "asked", "shares"),
    [
        # One model and one scorer: the model comes first.
        (1.0, None, (1.0, 0.0)),
        (2.0, None, (1.0, 1.0)),
        (1.0, 0.5, (0.5, 0.5)),
        (1.0, 0.3, (0.3, 0.3)),
        (4.0, 0.0, (0.0, 0.0)),
        # The cluster may bring one.
        (0.0, 1.0, (1.0, 0.0)),
    ],
)
def test_scorers_get_gpus_that_models_leave(num_gpus, asked, shares):
    assert gpu_shares([Node(8.0, num_gpus)], num_models=1, num_scorers=1, asked=asked) == shares


def test_scorers_alone_get_the_gpus():
    assert chosen(args_of(0, TOXICITY, PEP8), (8.0, 1.0)) == [(0.5, 1.0), (0.25, 0.0)]


@pytest.mark.parametrize(
    ("cpus", "num_replicas", "share"),
    [
        ([4.0], 1, 2.0),
        ([4.0], 2, 1.0),
        ([4.0], 3, 0.25),
        ([16.0], 2, 4.0),
        ([128.0], 1, 8.0),
        # Each replica must fit on one node.
        ([4.0, 4.0], 2, 2.0),
        ([4.0, 4.0], 1, 2.0),
        ([1.0] * 16, 1, 0.25),
        ([], 1, 0.25),
    ],
)
def test_replicas_on_cpus_share_half_of_what_is_free(cpus, num_replicas, share):
    assert cpu_share([Node(num_cpus) for num_cpus in cpus], num_replicas=num_replicas) == share


def test_only_what_runs_a_network_gets_more():
    args = parse_args(
        {
            "models": [
                {"name": "here", "path": "x"},
                {"name": "there", "path": "x", "upstream": {"url": "http://127.0.0.1:9/v1"}},
            ],
            "scorers": [TOXICITY, PEP8],
        }
    )
    assert chosen(args, (8.0, 0.0)) == [(2.0, 0.0), (0.25, 0.0), (2.0, 0.0), (0.25, 0.0)]
    # The scorer has the CPUs to itself if the model is on the GPU.
    assert chosen(args, (8.0, 1.0)) == [(0.5, 1.0), (0.25, 0.0), (4.0, 0.0), (0.25, 0.0)]


def test_what_is_asked_for_is_what_replicas_get():
    assert chosen(args_of(2, PEP8), (2.0, 1.0), num_cpus=3.0, num_gpus=0.25) == [(3.0, 0.25), (3.0, 0.25), (0.25, 0.0)]
    assert chosen(args_of(1), (8.0, 1.0), num_gpus=0.0) == [(4.0, 0.0)]


def test_ray_is_asked_for_what_was_chosen():
    args = with_resources(args_of(1, TOXICITY), [Node(8.0, 2.0)])
    _, models, scorers = build(args)._bound_deployment.init_args
    for application in (models["m0"], scorers["toxicity"]):
        assert application._bound_deployment.ray_actor_options == {"num_cpus": 0.5, "num_gpus": 1.0}


@pytest.mark.parametrize(
    ("num_cpus", "num_cores", "expected"), [(0.25, 8, 1), (1.0, 8, 1), (2.0, 8, 2), (2.9, 8, 2), (4.0, 2, 2), (0, 8, 1)]
)
def test_a_replica_has_a_thread_per_cpu_but_no_more_than_there_are_cores(num_cpus, num_cores, expected):
    assert num_threads(num_cpus, num_cores=num_cores) == expected


THREADS = """
import os, sys
from serve import deployments
assert "torch" not in sys.modules, "loaded before its threads are set"
deployments.{prepare}(2.0)
import torch
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("prepare", ["limit_threads", "prepare_process"])
@pytest.mark.skipif(cores() < 2, reason="one core")
def test_a_replica_of_two_cpus_has_two_threads_whatever_ray_was_started_with(prepare):
    code = THREADS.format(prepare=prepare)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2\n", done.stderr
