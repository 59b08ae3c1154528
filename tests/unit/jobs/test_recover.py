"""`phf recover` with the differences on the hub."""

import os
import subprocess
import sys

from alpaca_farm import trained, write_base, write_difference
from hub_server import serving_hub
from places import ROOT

from phf_ray.models.loading import load_checkpoint


def recover(folder, name, **environment):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "jobs.recover",
            "--base",
            folder / "base",
            "--name",
            name,
            "--output",
            folder / "models",
        ],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )


def test_differences_come_from_the_hub_and_what_it_lacks_is_told_before_any_weights_are_fetched(tmp_path):
    base = write_base(tmp_path / "base")
    model = trained(base)
    write_difference(tmp_path / "hub/models/tatsu-lab/alpaca-farm-sft10k-wdiff/main", model, base)
    with serving_hub(tmp_path / "hub") as (hub, url):
        refused = recover(tmp_path, "all", HF_ENDPOINT=url)
        read_before = hub.files_read()
        done = recover(tmp_path, "sft10k", HF_ENDPOINT=url)
    assert refused.returncode == 2
    assert "--name tatsu-lab/alpaca-farm-reward-model-sim-wdiff: there is no such" in refused.stderr
    assert "model_sum.txt" in read_before
    assert not any(path.endswith((".bin", ".safetensors")) for path in read_before)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'models/sft10k'}\n"
    found = load_checkpoint(tmp_path / "models/sft10k").model.backbone.state_dict()
    assert all((found[name] - weight).abs().max() < 1e-6 for name, weight in model.state_dict().items())
    alone = recover(tmp_path, "ppo-sim", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert alone.returncode == 4
    assert "run `phf fetch-models --hub tatsu-lab/alpaca-farm-ppo-sim-wdiff` on a machine with internet" in alone.stderr
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["sft10k"]
