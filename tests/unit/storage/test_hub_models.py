"""Models by their name on the hub, from a hub on this machine over its own routes."""

import json
import os
import subprocess
import sys

import pytest
from hub_server import commit_of, serving_hub
from places import ROOT

from phf_ray.errors import ConfigError
from phf_ray.runs.checkpoints import find_checkpoint, name_after_run
from phf_ray.storage.hub import HubModel, hub_model

# huggingface_hub reads its environment when it is imported.
CODE = """
import json, sys
from phf_ray.errors import PhfError
from phf_ray.runs.checkpoints import find_checkpoint, name_after_run

found = []
for name in sys.argv[1:]:
    try:
        folder = find_checkpoint(name, option="--model")
        found.append([sorted(path.name for path in folder.iterdir()), folder.name, name_after_run(folder)])
    except PhfError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def find(names, *, endpoint, home, **environment):
    values = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
    values["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", CODE, *names]
    done = subprocess.run(command, env=values, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def root(tmp_path):
    def write(name, *files, revision="main"):
        folder = tmp_path / "hub" / "models" / name / revision
        folder.mkdir(parents=True)
        for file in ("config.json", *files):
            (folder / file).write_bytes(b"{}" if file.endswith(".json") else b"weights" * 500)

    write("owner/safe", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "run.py", "extra.msgpack")
    write("owner/safe", "model.safetensors", revision="v2")
    write("owner/pickled", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "training_args.bin")
    write("owner/gguf", "model.Q4_K_M.gguf")
    write("owner/gated", "model.safetensors")
    (tmp_path / "home").mkdir()
    return tmp_path / "hub"


def test_weights_config_and_tokenizer_come_and_nothing_else(root, tmp_path):
    names = ["owner/safe", "owner/safe@v2", "owner/pickled"]
    with serving_hub(root) as (hub, url):
        safe, second, pickled = find(names, endpoint=url, home=tmp_path / "home")
        num_requests = len(hub.requests)
    assert safe == [
        ["config.json", "model.safetensors", "tokenizer.json"],
        commit_of(root / "models/owner/safe/main"),
        "safe",
    ]
    assert second == [["config.json", "model.safetensors"], commit_of(root / "models/owner/safe/v2"), "safe"]
    assert pickled[0] == ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
    assert num_requests
    # What was fetched once is found without a hub.
    again = find(names[:1], endpoint=url, home=tmp_path / "home", HF_HUB_OFFLINE="1")
    assert again == [safe]


def test_an_adapter_of_the_hub_comes_with_its_base_model(root, tmp_path):
    for name, base in (("whole", "owner/safe"), ("alone", "owner/gone")):
        folder = root / "models" / "owner" / name / "main"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights" * 500)
        about = {"peft_type": "LORA", "base_model_name_or_path": base, "revision": "v2"}
        (folder / "adapter_config.json").write_text(json.dumps(about))
    with serving_hub(root) as (_, url):
        whole, alone = find(["owner/whole", "owner/alone"], endpoint=url, home=tmp_path / "home")
        second, main = find(["owner/safe@v2", "owner/safe"], endpoint=url, home=tmp_path / "home", HF_HUB_OFFLINE="1")
    assert whole[0] == ["adapter_config.json", "adapter_model.safetensors"]
    assert second[0] == ["config.json", "model.safetensors"], "the base model, at its revision, is in the cache"
    assert "owner/safe" in main, "no other revision is"
    assert alone.startswith("--model ")
    assert "base_model_name_or_path owner/gone@v2: there is no such folder here and no such repository" in alone


def test_what_the_hub_does_not_give_is_explained(root, tmp_path):
    with serving_hub(root) as (hub, url):
        hub.gated.add("owner/gated")
        names = ["owner/none", "owner/gated", "owner/safe@v9", "owner/gguf"]
        missing, gated, revision, gguf = find(names, endpoint=url, home=tmp_path / "home")
    assert missing.startswith("--model owner/none: there is no such folder here and no such repository on the hub")
    assert "accepted its licence; accept it at https://huggingface.co/owner/gated, and set HF_TOKEN" in gated
    assert "has no revision 'v9'" in revision
    assert "no weights that transformers reads" in gguf
    assert "model.Q4_K_M.gguf" in gguf


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {}])
def test_without_a_hub_the_remedy_is_named_at_once(tmp_path, environment):
    (tmp_path / "home").mkdir()
    [found] = find(["owner/name@v1"], endpoint="http://127.0.0.1:9", home=tmp_path / "home", **environment)
    assert found.startswith(
        "--model owner/name@v1: there is no such folder here, the hub's cache lacks it, and the hub"
    )
    assert "run `phf fetch-models --hub owner/name@v1` on a machine with internet" in found


def test_what_is_a_name_and_what_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_model("EleutherAI/pythia-70m@step3000") == HubModel("EleutherAI/pythia-70m", "step3000")
    for text in ("runs/mle", "./a/b", "../a/b", "/a/b", "a/b/c", "model", "a b/c", "http://a/b", "a/@x"):
        assert hub_model(text) is None, text
    with pytest.raises(ConfigError, match=r"--model runs/mle: no such directory.*or a model of the hub \(owner/name\)"):
        find_checkpoint("runs/mle", option="--model")
    assert name_after_run(tmp_path / "models--tomekkorbak--hungry_saha" / "snapshots" / "0123") == "hungry_saha"
