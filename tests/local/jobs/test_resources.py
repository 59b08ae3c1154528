"""What a server asks for, on a Ray of its own that says it has GPUs."""

import json
import os
import subprocess
import sys

from places import ROOT

SCENES = """
import json, sys, threading, time
import ray, torch
from jobs import cli, resources
from phf_ray.errors import ConfigError
from serve.settings import parse_args

resources.RELEASE_S = 60.0
ray.init(address="local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False)

def args(num_models):
    return parse_args({"models": [{"name": f"m{n}", "path": "x"} for n in range(num_models)]})

def choose(num_models, **asked):
    try:
        found = resources.choose_resources(args(num_models), **{"num_cpus": None, "num_gpus": None, **asked})
    except ConfigError as error:
        return str(error)
    return [(model.num_cpus, model.num_gpus) for model in found.models]

@ray.remote(num_gpus=2, max_retries=0)
def holds():
    time.sleep(600)

found = {"built without": choose(1)}
# The installed torch may be built without GPUs, of which only its version tells.
torch.version.cuda = "13.0"
found |= {"one": choose(1), "three": choose(3), "none": choose(1, num_gpus=0.0), "too many": choose(3, num_gpus=0.6)}
ends = holds.remote()
while ray.available_resources().get("GPU"):
    time.sleep(0.05)
threading.Timer(2.0, ray.cancel, (ends,), {"force": True}).start()
found["after a training"] = choose(2)
stays = holds.remote()
while ray.available_resources().get("GPU"):
    time.sleep(0.05)
resources.RELEASE_S = 0.5
found["in use"] = choose(1)
print("FOUND", json.dumps(found))
"""


def test_a_server_asks_for_the_gpus_that_are_free():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, "-c", SCENES], env=environment, capture_output=True, text=True, timeout=300)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")] or [done.stderr]
    found = json.loads(line.removeprefix("FOUND "))
    refusal = found.pop("too many")
    assert "--num-gpus 0.6: the models (3) do not fit on the GPUs that Ray finds on this machine (2)" in refusal
    assert found.pop("built without") in ([[4.0, 0.0]], [[0.5, 1.0]])
    assert found == {
        "one": [[0.5, 1.0]],
        "three": [[0.5, 0.5]] * 3,
        "none": [[4.0, 0.0]],
        "after a training": [[0.5, 1.0]] * 2,
        # What holds the GPUs also holds a CPU.
        "in use": [[3.0, 0.0]],
    }
    assert "all 2 GPUs of the cluster are in use, so models run on CPUs" in done.stderr
