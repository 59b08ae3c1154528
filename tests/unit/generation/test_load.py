"""Architectures that the engine refuses when it loads them, and what it reads from a model's configuration."""

import pytest
import torch
from tiny_models import tiny_tokenizer, write_checkpoint
from transformers import AutoModelForCausalLM, MambaConfig, Qwen2MoeConfig

from phf_ray.checkpoint import CheckpointInfo, write_info
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.load import load_engine, load_strings
from phf_ray.generation.requests import EngineSettings


def written_like(directory, config):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def test_a_model_without_attention_is_refused_with_the_reason(tmp_path):
    config = MambaConfig(vocab_size=316, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(ConfigError, match=r"Mamba.*running state in place of keys and values.*choose a model with"):
        load_engine(written_like(tmp_path, config))


@pytest.mark.parametrize(("compat", "begins"), [(None, True), ("korbak2023", True), ("trl", False)])
def test_prompts_begin_as_the_rows_of_the_training_did(tmp_path, compat, begins):
    folder = write_checkpoint(tmp_path)
    write_info(folder, CheckpointInfo(compat=compat))
    assert load_strings(folder)[0].starts_with_eos == begins
    assert load_engine(folder).strings.starts_with_eos == begins


def test_a_window_of_zero_is_no_window(tmp_path):
    config = Qwen2MoeConfig(
        vocab_size=316,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        max_position_embeddings=96,
    )
    assert config.sliding_window == 0
    assert load_engine(written_like(tmp_path, config)).context == 96


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_overflow_in_the_chosen_precision_are_refused(tmp_path, dtype):
    folder = write_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = 1e30
        model.lm_head.weight[:, 0] = 0.0  # so that it decides nothing
    model.save_pretrained(folder)
    if dtype == "float16":
        with pytest.raises(DataError, match=r"ln_f\.weight has values that are NaN or infinite"):
            load_engine(folder, settings=EngineSettings(dtype=dtype))
    else:
        load_engine(folder, settings=EngineSettings(dtype=dtype))
