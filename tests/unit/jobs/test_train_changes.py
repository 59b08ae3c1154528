"""What changed since a run began is refused by name, before anything is computed. jobs.train_lm, without Ray."""

import shutil

import pytest
from feedback_runs import make_config, write_feedback, write_task
from tiny_adapters import write_base
from train_runs import arguments, run_folder

from jobs.prepare_feedback import main as prepare_feedback
from jobs.train_lm import main
from phf_ray.blocks.build import build_here
from phf_ray.corpus.overlap import overlaps_here
from phf_ray.errors import ConfigError, DataError
from phf_ray.training.in_process import fit_here
from phf_ray.training.reference import compute_here

METHODS = {
    "dpo": ({"name": "DPO"}, "pairs", None),
    "lora": ({"name": "MLE"}, "examples", {"r": 4}),
    "lora_dpo": ({"name": "DPO"}, "pairs", {"r": 4}),
    "reward": ({"name": "BradleyTerry"}, "pairs", None),
}


@pytest.fixture
def here(monkeypatch):
    """Work that Ray would distribute is done in this process."""
    monkeypatch.setattr("jobs.train_lm.start_ray", lambda: None)
    for name, function in (
        ("blocks.on_ray.build_groups", build_here),
        ("blocks.on_ray.overlaps_on_ray", overlaps_here),
        ("evaluation.on_ray.evaluations_beside", lambda *_, **__: None),
        ("training.on_ray.compute_reference", compute_here),
        ("training.on_ray.fit_on_ray", fit_here),
    ):
        monkeypatch.setattr(f"phf_ray.{name}", function)


@pytest.fixture
def begun(request, here, tmp_path):
    """Task file of a run that has a checkpoint, and is not finished."""
    objective, corpus, lora = METHODS[request.param]
    write_feedback(tmp_path)
    write_base(tmp_path / "base")
    model = {"path_or_name": str(tmp_path / "base"), "from_scratch": False, "model_type": None, "config_kwargs": {}}
    config = make_config(tmp_path, objective=objective, model=model | {"lora": lora}, num_epochs=0.5)
    task = write_task(tmp_path, request.param, config, corpora=[corpus])
    assert main(arguments(task)) == 0
    (run_folder(task) / "summary.json").unlink()
    return task


def forbid(monkeypatch, *names):
    for name in names:
        monkeypatch.setattr(name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


@pytest.mark.parametrize("begun", ["lora"], indirect=True)
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.lora.r=8", r"model\.lora\.r: 4 in the run, 8 now"),
        ("model.lora=null", r"model\.lora\.r: 4 in the run, None now"),
        ("dataset.learn=all", r"dataset\.learn: 'completions' in the run, 'all' now"),
    ],
)
def test_changed_settings_are_refused_before_ray_starts(begun, override, says, monkeypatch):
    forbid(monkeypatch, "jobs.train_lm.start_ray")
    with pytest.raises(ConfigError, match=says):
        main(arguments(begun, override))


@pytest.mark.parametrize("begun", ["dpo", "lora_dpo"], indirect=True)
def test_a_reference_with_other_weights_is_refused_before_it_is_asked(begun, tmp_path, monkeypatch):
    write_base(tmp_path / "base", seed=1)
    forbid(monkeypatch, "phf_ray.training.on_ray.compute_reference")
    with pytest.raises(ConfigError, match=r"weights of the model that the run starts from \(plan\.reference\): 'refer"):
        main(arguments(begun))


@pytest.mark.parametrize("begun", ["dpo", "reward"], indirect=True)
def test_another_start_is_refused(begun, tmp_path, monkeypatch):
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    forbid(monkeypatch, "phf_ray.training.on_ray.compute_reference", "phf_ray.training.on_ray.fit_on_ray")
    with pytest.raises(
        ConfigError, match=r"--checkpoint-path \(plan\.checkpoint_path\): None in the run, '.*other' now"
    ):
        main([*arguments(begun), "--checkpoint-path", str(tmp_path / "other")])


@pytest.mark.parametrize("begun", METHODS, indirect=True)
def test_other_data_at_the_same_place_are_refused(begun, tmp_path, monkeypatch):
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "pairs.jsonl").write_text("".join(lines[:-5]))
    for name, more in (("pairs", []), ("examples", ["--to", "sft"])):
        source, output = str(tmp_path / "pairs.jsonl"), str(tmp_path / name)
        prepare_feedback(["--input", source, "--output", output, "--restart", *more])
    forbid(monkeypatch, "phf_ray.training.on_ray.compute_reference", "phf_ray.training.on_ray.fit_on_ray")
    with pytest.raises(ConfigError, match=r"the training data or its tokens \(plan\.blocks_hash\): '"):
        main(arguments(begun))


@pytest.mark.parametrize("begun", ["lora"], indirect=True)
def test_adapters_of_a_base_model_with_other_weights_are_refused(begun, tmp_path):
    write_base(tmp_path / "base", seed=1)
    with pytest.raises(DataError, match="has other weights than the base model"):
        main(arguments(begun))
