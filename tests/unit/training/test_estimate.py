"""What a run will need, told before it starts."""

import pytest
import torch
from model_kinds import GPT2, LLAMA_LIKE, VALUE_HEAD, config_for, pretrained, save
from tiny_models import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from phf_ray.blocks.manifest import CorpusTokens
from phf_ray.blocks.mixture import Mixture
from phf_ray.blocks.plan import BlockPlan
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.models.build import build_model
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.shape import planned_shape, shape_of
from phf_ray.training.estimate import describe_run
from phf_ray.training.memory import memory_per_device
from phf_ray.training.speed import measured_tokens_per_s, tried_speed
from phf_ray.training.token_count import TokenCount


@pytest.mark.parametrize(
    "config",
    [
        config_for(),
        config_for(model_kwargs=VALUE_HEAD, pad_vocab_to_multiple_of=64),
        config_for("llama", config_kwargs={**LLAMA_LIKE, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        config_for("gpt_neox"),
    ],
)
def test_the_planned_shape_is_that_of_the_model_which_is_built(config):
    tokenizer = tiny_tokenizer()
    model = build_model(config, tokenizer=tokenizer, seed=0)
    assert planned_shape(config, tokenizer=tokenizer) == shape_of(model)


def test_rows_that_are_added_to_a_checkpoint_are_planned(tmp_path):
    _, tokenizer = save(tmp_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    config = pretrained(tmp_path, num_additional_tokens=2)
    assert planned_shape(config, tokenizer=tokenizer) == shape_of(build_model(config, tokenizer=tokenizer, seed=0))


def test_arithmetic_of_a_token_is_that_of_palm_s_appendix():
    """GPT-2 small as nanoGPT counts it: 6 x 123.65 M (positions are looked up) + 12 x 12 x 768 x 1024."""
    with torch.device("meta"):
        backbone = GPT2LMHeadModel(GPT2Config())
    shape = shape_of(LanguageModel(backbone, is_probed=False))
    assert shape.num_parameters == 124_439_808
    assert shape.num_multiplied == 124_439_808 - 1024 * 768
    assert shape.flops_per_token(1024) == 6 * 123_653_376 + 12 * 12 * 768 * 1024


def settings(**training):
    return parse_config(
        {
            "dataset": {"seq_length": 8},
            "model": {"path_or_name": None, "model_type": "gpt2", "config_kwargs": GPT2},
            "training": {"per_device_train_batch_size": 2, "precision": "fp32", **training},
        }
    )


def shape():
    return planned_shape(config_for(), tokenizer=tiny_tokenizer())


def test_memory_of_a_device():
    """2 x 8 tokens, 2 layers of width 32: 17 values of 4 bytes each."""
    memory = memory_per_device(settings(), shape(), has_gpu=False)
    assert memory.weights == memory.gradients == 4 * shape().num_parameters
    assert memory.optimizer == 8 * shape().num_parameters
    assert memory.activations == 2 * 16 * 32 * 17 * 4
    assert memory.head == 4 * shape().num_rows * 32 + 2**27


def test_fsdp_divides_the_state_and_checkpointing_keeps_one_layer():
    base = memory_per_device(settings(num_workers=4), shape(), has_gpu=False)
    sharded = memory_per_device(settings(num_workers=4, parallelism="fsdp2"), shape(), has_gpu=False)
    assert (sharded.weights, sharded.optimizer) == (base.weights / 4, base.optimizer / 4)
    assert sharded.activations == base.activations
    checkpointed = memory_per_device(settings(gradient_checkpointing=True), shape(), has_gpu=False)
    assert checkpointed.activations == 16 * 32 * (2 * 4 + 17 * 4)
    assert memory_per_device(settings(precision="bf16"), shape(), has_gpu=False).activations == base.activations / 2


def plan():
    return BlockPlan(
        root="blocks",
        fingerprint="0",
        sequence_length=8,
        packing=None,
        held_out_fraction=0.0,
        thresholds={"filter": 0.5},
        tokenizer={},
        corpora=(),
        groups=(),
    )


def corpus_of(num_blocks: int, num_content_tokens: int, num_tokens: int) -> CorpusTokens:
    return CorpusTokens(
        num_blocks=num_blocks,
        num_content_tokens=num_content_tokens,
        num_tokens=num_tokens,
        num_scored_tokens=0,
        score_mean=None,
        score_std=None,
    )


def counted(num_blocks: int, num_content_tokens: int, num_tokens: int, *, is_exact: bool) -> TokenCount:
    whole = corpus_of(num_blocks, num_content_tokens, num_tokens)
    return TokenCount(Mixture.from_counts([whole], None), is_exact=is_exact)


def lines_of(config, *, tokens, speed=(100.0, "as given")):
    lines = describe_run(config, plan=plan(), tokens=tokens, shape=shape(), speed=speed)
    return {key: text.strip() for key, _, text in (line.partition(" ") for line in lines)}


def test_steps_epochs_disk_and_time_follow_from_the_counted_tokens():
    config = settings(num_tokens=1200, effective_batch_size=4, save_steps=10, save_total_limit=3)
    lines = lines_of(config, tokens=counted(100, 600, 700, is_exact=True))
    assert lines["steps"] == "50 of 4 x 8 tokens"
    assert lines["tokens"].endswith("100 blocks with 600 content tokens, 700 in all: 2.00 epochs")
    assert lines["time"] == "about 16 seconds at 100 tokens/s, as given"
    assert lines["disk"].endswith("3 kept")
    assert "(9 bytes a token)" in lines["disk"]
    assert "thresholds" in lines
    everything = lines_of(
        settings(num_tokens=1400, effective_batch_size=4, count_tokens="all"),
        tokens=counted(100, 600, 700, is_exact=True),
    )
    assert everything["steps"] == "50 of 4 x 8 tokens"


def test_with_weights_steps_and_epochs_are_those_of_the_mixture():
    corpora = [corpus_of(100, 600, 700), corpus_of(20, 60, 100)]
    config = settings(num_tokens=1200, effective_batch_size=4)
    lines = lines_of(config, tokens=TokenCount(Mixture.from_counts(corpora, [0, 1]), is_exact=True))
    assert lines["steps"] == "100 of 4 x 8 tokens", "3 tokens a block"
    assert lines["tokens"].endswith("120 blocks with 660 content tokens, 800 in all: 20.00 epochs")
    half = lines_of(config, tokens=TokenCount(Mixture.from_counts(corpora, [1, 1]), is_exact=True))
    assert half["steps"] == "66 of 4 x 8 tokens", "4.5 tokens a block"


def test_what_was_counted_on_a_part_only_is_marked():
    lines = lines_of(settings(num_tokens=1200, effective_batch_size=4), tokens=counted(100, 600, 700, is_exact=False))
    assert lines["steps"].startswith("about 50 ")


def test_without_a_speed_the_time_is_unknown():
    tokens = counted(100, 600, 700, is_exact=True)
    lines = lines_of(settings(num_tokens=1200, effective_batch_size=4), tokens=tokens, speed="no GPU")
    assert lines["time"] == "unknown: no GPU; give --tokens-per-s"


def test_a_model_that_does_not_fit_is_not_tried(monkeypatch):
    """The estimate of the whole model counts, whatever fsdp2 leaves each of eight workers."""
    needed = memory_per_device(settings(), shape(), has_gpu=True).total
    config = settings(parallelism="fsdp2", num_workers=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(needed) - 1, 80 * 10**9))
    reason = tried_speed(config, shape=shape(), build=lambda: pytest.fail("built"))
    assert reason == "a trial on one GPU needs about 1 GB, but only 1 GB are free here"


def test_a_trial_that_runs_out_of_memory_leaves_the_time_unknown(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("phf_ray.training.speed.measured_tokens_per_s", fails)
    assert tried_speed(settings(), shape=shape(), build=lambda: None) == "a trial on one GPU ran out of memory"


def test_a_trial_trains_with_the_layers_of_the_run(monkeypatch):
    model = build_model(config_for(), tokenizer=tiny_tokenizer(), seed=0)
    monkeypatch.setattr("phf_ray.training.speed.PROBE_S", 0.0)
    config = settings(document_mask=True, gradient_checkpointing=True, num_workers=2)
    speed, origin = tried_speed(config, shape=shape(), build=lambda: model)
    assert speed > 0
    assert origin == "measured on this machine as one of 2 worker(s)"
    assert model.has_document_mask
    assert model.backbone.is_gradient_checkpointing


def test_workers_that_compute_padding_are_told_and_do_not_count_as_speed(monkeypatch):
    """64 sequences in micro-batches of 16 are work for four of eight workers; of 8, for all."""
    monkeypatch.setattr("phf_ray.training.speed.measured_tokens_per_s", lambda *_: 100.0)
    tokens = counted(100, 600, 700, is_exact=True)
    sizes = {"num_tokens": 12000, "effective_batch_size": 64, "num_workers": 8}
    half = settings(**sizes, per_device_train_batch_size=16)
    assert tried_speed(half, shape=shape(), build=lambda: None) == (
        400,
        "measured on this machine as one of 8 worker(s)",
    )
    told = lines_of(half, tokens=tokens)["idle"]
    assert "8 workers do the work of 4" in told
    assert "training.per_device_train_batch_size: 8 keeps 8 busy" in told
    assert "training.num_workers: 4 is as fast" in told
    full = settings(**sizes, per_device_train_batch_size=8)
    assert tried_speed(full, shape=shape(), build=lambda: None)[0] == 800
    assert "idle" not in lines_of(full, tokens=tokens)
    # Three micro-batches of two: the second round has work for one of the two workers, and room for another two.
    odd = settings(num_tokens=1200, effective_batch_size=6, per_device_train_batch_size=2, num_workers=2)
    told = lines_of(odd, tokens=tokens)["idle"]
    assert "2 workers do the work of 1.5" in told
    assert told.endswith("; training.effective_batch_size: 8 costs no more time")


def test_nothing_to_train_on_and_too_small_a_budget_are_refused():
    with pytest.raises(DataError, match="no document is left"):
        lines_of(settings(), tokens=counted(0, 0, 0, is_exact=True))
    with pytest.raises(ConfigError, match=r"raise training\.num_tokens"):
        lines_of(settings(num_tokens=1), tokens=counted(100, 600, 700, is_exact=True))


def test_a_short_trial_measures_a_speed():
    model = build_model(config_for(), tokenizer=tiny_tokenizer(), seed=0)
    assert measured_tokens_per_s(settings(), model) > 0
