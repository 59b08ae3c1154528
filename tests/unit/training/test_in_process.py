"""Training by one worker in this process, without Ray: the same plan, the same run directory, the same exact resume."""

import dataclasses
import json
import sys

import pytest
from train_here import prepared_run, stopped_after, train_here
from train_runs import checkpoint_names, losses, write_inputs

from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import load_config
from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.models.saving import save_checkpoint
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.start import initial_model


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Configuration, plan and blocks of a tiny run."""
    folder = tmp_path_factory.mktemp("in process")
    config = load_config(str(write_inputs(folder)))
    return prepared_run(config, corpus=str(folder / "scored"), folder=str(folder))


def test_a_run_that_was_stopped_resumes_bit_for_bit(prepared, tmp_path):
    whole, parts = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parts")
    summary = train_here(prepared, whole)
    assert summary["status"] == "finished"
    assert losses(whole.path).keys() == set(range(1, prepared[1].num_steps + 1))

    with stopped_after(num_rows=3), pytest.raises(IncompleteError):
        train_here(prepared, parts)
    assert 0 < parts.latest_step() < prepared[1].num_steps
    train_here(prepared, parts)
    assert losses(parts.path) == losses(whole.path)
    assert checkpoint_names(parts.path)[-1] == checkpoint_names(whole.path)[-1]
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.fixture
def started_from(prepared, tmp_path):
    """A run that starts from the weights of a folder whose generation_config.json is that of the early Llama 2."""
    config, plan, blocks = prepared
    source = tmp_path / "base"
    model = initial_model(config, checkpoint_path=None, tokenizer=load_tokenizer(config.tokenizer))
    save_checkpoint(source, model, load_tokenizer(config.tokenizer), CheckpointInfo())
    end = model.backbone.config.eos_token_id
    values = {"bos_token_id": end, "eos_token_id": end, "temperature": 0.9, "top_p": 0.6}
    (source / "generation_config.json").write_text(json.dumps(values))
    return config, dataclasses.replace(plan, checkpoint_path=str(source)), blocks


def test_a_base_model_that_samples_without_do_sample_is_trained_and_saved(started_from, tmp_path):
    run = RunDirectory(tmp_path / "run")
    assert train_here(started_from, run)["status"] == "finished"
    saved = json.loads((run.latest_checkpoint() / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.9, 0.6, True)


def test_what_can_not_be_saved_is_refused_before_the_first_step(started_from, tmp_path, monkeypatch):
    monkeypatch.setattr("phf_ray.models.build.savable_generation_config", lambda config: config)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no checkpoint of this model could be saved.*generation_config\.json"):
        train_here(started_from, run)
    assert run.read_metrics() == []
    assert list(run.checkpoints.iterdir()) == []
