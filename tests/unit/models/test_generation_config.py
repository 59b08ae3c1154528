"""What a generation_config.json may hold that transformers reads but would not write."""

import json

import pytest
from model_kinds import pretrained
from tiny_models import tiny_tokenizer, write_checkpoint
from transformers import GenerationConfig

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.errors import ConfigError
from phf_ray.models.build import build_model
from phf_ray.models.saving import rehearse_save, save_checkpoint

SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "max_length", "length_penalty", "output_scores")


def folder_with(directory, values):
    write_checkpoint(directory)
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return directory


@pytest.mark.parametrize(
    ("values", "saved"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),
        ({"do_sample": False, "top_k": 20}, {"top_k": 20, "do_sample": True}),
        ({"do_sample": True, "temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"max_length": 77}, {"max_length": 77}),
        ({"length_penalty": 2.0}, {}),
        ({"output_scores": True}, {}),
        ({"pad_token_id": -1}, {}),
    ],
)
def test_a_model_is_saved_whatever_its_generation_config_says(tmp_path, values, saved):
    tokenizer = tiny_tokenizer()
    source = folder_with(tmp_path / "source", values)
    model = build_model(pretrained(source), tokenizer=tokenizer, seed=0)
    save_checkpoint(tmp_path / "saved", model, tokenizer, CheckpointInfo())
    found = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {name: found[name] for name in SAMPLING if name in found} == saved
    assert (found["bos_token_id"], found["eos_token_id"], found["pad_token_id"]) == (0, 0, 0)
    GenerationConfig.from_pretrained(tmp_path / "saved").validate(strict=True)


def test_what_can_not_be_saved_is_named_by_the_rehearsal(tmp_path):
    tokenizer = tiny_tokenizer()
    model = build_model(pretrained(write_checkpoint(tmp_path / "source")), tokenizer=tokenizer, seed=0)
    rehearse_save(tmp_path, model, tokenizer, CheckpointInfo())
    assert not list(tmp_path.glob("*.safetensors"))
    model.backbone.generation_config.top_p = 0.5
    with pytest.raises(ConfigError, match=r"its generation_config\.json can't be: .*top_p"):
        rehearse_save(tmp_path, model, tokenizer, CheckpointInfo())
    model.backbone.generation_config.top_p = None
    tokenizer.init_kwargs["unsavable"] = object()
    with pytest.raises(ConfigError, match="its tokenizer can't be"):
        rehearse_save(tmp_path, model, tokenizer, CheckpointInfo())
