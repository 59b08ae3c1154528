"""Models of the hub are brought into its cache, so that the jobs after it need no internet."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hub_server import serving_hub
from places import ROOT
from safetensors.torch import load_file
from tiny_models import tiny_gpt2, tiny_tokenizer

from phf_ray.errors import DataError
from phf_ray.models.convert import convert_to_safetensors
from phf_ray.models.loading import load_checkpoint


def fetch(home, *arguments, **environment):
    """Offline, unless told otherwise: what the hub's client can give is what its cache has."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.fetch_models", "--output", str(home / "models"), *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.fixture
def released(tmp_path):
    """A model as the paper's authors published theirs: GPT-2 with a value head and control tokens, pickled."""
    folder = tmp_path / "hub" / "models" / "owner" / "hungry_thing" / "main"
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer(control=True)
    model = tiny_gpt2(tokenizer, seed=3)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = model.state_dict() | {"value_head.head.weight": torch.full((1, model.config.n_embd), 0.25)}
    torch.save(weights, folder / "pytorch_model.bin")
    return model


def test_pickled_weights_are_converted_and_later_jobs_need_no_internet(tmp_path, released):
    cache = tmp_path / "home"
    with serving_hub(tmp_path / "hub") as (_, url):
        done = fetch(cache, "--models", "--hub", "owner/hungry_thing", HF_ENDPOINT=url, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert "converted to model.safetensors" in done.stderr
    again = fetch(cache, "--models", "--hub", "owner/hungry_thing")
    assert again.returncode == 0, again.stderr
    assert "converted" not in again.stderr
    [folder] = (cache / "hub" / "models--owner--hungry_thing" / "snapshots").iterdir()
    (folder / "pytorch_model.bin").unlink()
    loaded = load_checkpoint(folder)
    for name, weight in released.state_dict().items():
        assert torch.equal(loaded.model.backbone.state_dict()[name], weight), name
    assert (loaded.model.value_head.head.weight == 0.25).all()


def test_weights_in_several_files_are_converted_with_their_index(tmp_path):
    parts = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}
    for number, (name, tensor) in enumerate(parts.items(), 1):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    names = {name: f"pytorch_model-0000{number}-of-00002.bin" for number, name in enumerate(parts, 1)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    convert_to_safetensors(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for name, tensor in parts.items():
        assert torch.equal(load_file(tmp_path / index[name])[name], tensor)


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path):
    torch.save({"a": object()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="can't be read as tensors alone"):
        convert_to_safetensors(tmp_path)
    assert not any(tmp_path.glob("*.safetensors"))


def test_what_can_not_be_had_is_named_with_a_remedy(tmp_path):
    done = fetch(tmp_path, "--models", "--hub", "acme/other")
    assert done.returncode == 4
    assert (
        "--hub acme/other: there is no such folder here, the hub's cache lacks it, and the hub can't be asked"
        in done.stderr
    )
    assert "HF_HUB_OFFLINE=0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--models"], 2, "name at least one"),
        (["--models", "--hub", "gpt2", "--dry-run"], 0, "would fetch gpt2"),
        (["--models", "--hub", "a/b", "a/c@v1", "--revision", "v2", "--dry-run"], 0, "would fetch a/b@v2"),
        (["--models", "--hub", "https://huggingface.co/a/b"], 2, "is no name of the hub; write owner/name"),
    ],
)
def test_nothing_to_fetch_and_a_dry_run(tmp_path, arguments, code, said):
    done = fetch(tmp_path, *arguments)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert not (tmp_path / "models").exists()
