"""Models whose attention changes with length: their texts in any batch are those of a plain pass, or are refused."""

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from phf_ray.errors import ConfigError
from phf_ray.generation import reach
from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.requests import EngineSettings, GenerationRequest, RequestError

LIKE_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "initializer_range": 0.3,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
LLAMA4 = {
    **LIKE_LLAMA,
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "attention_chunk_size": 16,
    "no_rope_layers": [1, 0],
    "initializer_range": 0.1,
}
GPT_NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 16,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [8.0] * 8,
    "original_max_position_embeddings": 40,
    "rope_theta": 10000.0,
}
PHI3 = {
    **{key: value for key, value in LIKE_LLAMA.items() if key != "head_dim"},
    "original_max_position_embeddings": 40,
    "rope_parameters": LONGROPE,
}
WHOLE = {
    "gpt_neo": GPT_NEO,
    "mistral": {**LIKE_LLAMA, "sliding_window": 16},
    "qwen3": {**LIKE_LLAMA, **MIXED, "use_sliding_window": True},
    "gemma3_text": {**LIKE_LLAMA, **MIXED},
    "gpt_oss": {**LIKE_LLAMA, **MIXED, "num_local_experts": 2, "num_experts_per_tok": 1},
    "llama4_text": LLAMA4,
}
"""Architectures that are served up to their last position."""


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def build(model_type, fields, tokenizer):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, **{"vocab_size": len(tokenizer), "eos_token_id": 0, "bos_token_id": 0, **fields}
    )
    return AutoModelForCausalLM.from_config(config).eval()


def mixed_batch(context):
    """Prompts on both sides of every length at which something changes, a long one among them."""
    lengths = [3, context - 12, 14, 15, 16, 17, 31, 33, 2, context - 30]
    return [
        GenerationRequest(
            prompt=tuple(5 + (7 * k + length) % 250 for k in range(length)),
            max_tokens=12,
            temperature=0,
            ignore_eos=True,
            logprobs=0,
        )
        for length in lengths
        if 0 < length <= context - 12
    ]


def assert_plain(engine):
    requests = mixed_batch(engine.context)
    for request, completion in zip(requests, generate(engine, requests), strict=True):
        ids = [*request.prompt, *completion.token_ids]
        with torch.inference_mode():
            expected = engine.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
        for at, record in enumerate(completion.logprobs, start=len(request.prompt)):
            assert record.logprob == pytest.approx(float(expected[at - 1, ids[at]]), abs=1e-3), (len(ids), at)


@pytest.mark.parametrize("model_type", WHOLE)
def test_a_text_beyond_the_window_is_that_of_a_plain_pass_in_any_batch(tokenizer, model_type):
    engine = Engine(build(model_type, WHOLE[model_type], tokenizer), tokenizer)
    assert engine.context == 96
    assert_plain(engine)


@pytest.mark.parametrize(
    ("model_type", "fields", "context", "reason"),
    [
        ("phi3", PHI3, 40, "longrope factors change"),
        ("llama4_text", {**LLAMA4, "floor_scale": 48}, 47, "floor_scale makes texts depend on their batch"),
    ],
)
def test_a_text_is_not_longer_than_the_batch_allows(tokenizer, caplog, model_type, fields, context, reason):
    engine = Engine(build(model_type, fields, tokenizer), tokenizer)
    assert engine.context == context
    assert reason in caplog.text
    assert_plain(engine)
    with pytest.raises(RequestError, match=f"context is {context} tokens"):
        engine.prepare(GenerationRequest(prompt=(5,) * context, max_tokens=1))


def test_where_a_trial_would_take_too_long_a_text_stays_within_the_window(tokenizer, monkeypatch, caplog):
    model = build("mistral", WHOLE["mistral"], tokenizer)
    monkeypatch.setattr(reach, "MAX_FLOPS", {"cpu": 1})
    assert Engine(model, tokenizer).context == 16
    assert "sliding_window changes attention there" in caplog.text


def test_a_feature_with_another_name_is_found_by_trial(tokenizer, caplog):
    """A model that looks ahead once a text has 30 tokens, as a window of its own would."""
    model = tiny_gpt2(tokenizer)
    model.config.strange_window = 30
    forward = model.forward

    def changed(*args, position_ids=None, **kwargs):
        output = forward(*args, position_ids=position_ids, **kwargs)
        if position_ids is not None and int(position_ids.max()) >= 30:
            output.logits = output.logits.flip(-1)
        return output

    model.forward = changed
    assert Engine(model, tokenizer).context == 30
    assert "strange_window makes texts depend on their batch" in caplog.text


def test_a_lower_limit_needs_no_trial_beyond_it(tokenizer):
    engine = Engine(build("phi3", PHI3, tokenizer), tokenizer, settings=EngineSettings(max_context=20))
    assert engine.context == 20
    assert_plain(engine)


def test_a_model_that_can_not_be_batched_is_refused_with_the_reason(tokenizer):
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.3}
    with pytest.raises(ConfigError, match=r"MambaForCausalLM can't be served .*keeps no keys and values"):
        Engine(build("mamba", fields, tokenizer), tokenizer)
    model = tiny_gpt2(tokenizer)

    def broken(*_, **__):
        raise NotImplementedError("there is no kernel for it")

    model.forward = broken
    with pytest.raises(ConfigError, match=r"can't be served .*NotImplementedError: there is no kernel for it"):
        Engine(model, tokenizer)


def test_a_limit_by_another_name_counts(tokenizer):
    fields = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64, "eos_token_id": 0}
    assert Engine(build("mpt", fields, tokenizer), tokenizer).context == 64
