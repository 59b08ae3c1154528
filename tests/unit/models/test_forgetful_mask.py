"""Forgetful causal masking: what is hidden, what never is, and that the model computes exactly that."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from phf_ray.errors import ConfigError
from phf_ray.models.forgetful_mask import ForgetfulMask, as_additive, visible
from phf_ray.models.language_model import LanguageModel, document_positions
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind

SIZES = {"vocab_size": 40, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
KINDS = torch.tensor([[1, 5, 5, 5, 1, 5, 5, 3], [5, 5, 1, 5, 5, 5, 5, 5]], dtype=torch.uint8)
"""Two documents and padding; a document that goes on, and a second one."""
IDS = torch.arange(16).view(2, 8)


def model_of(family, attention="sdpa"):
    torch.manual_seed(0)
    if family == "gpt2":
        backbone = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_layer=2, n_embd=16, n_head=2, n_positions=32))
    else:
        backbone = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32, max_position_embeddings=32))
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model = LanguageModel(backbone)
    model.use_attention(attention)
    return model


def seen(mask, positions=None, **options):
    positions = document_positions(KINDS) if positions is None else positions
    return mask.additive(positions, **{"first_block": 0, "by_document": True, "dtype": torch.float32, **options}) == 0


def test_first_keys_of_documents_and_the_token_itself_are_never_hidden():
    positions = document_positions(KINDS)
    for place in range(20):
        found = seen(ForgetfulMask(1.0, 1.0, seed=1), first_block=place)[:, 0]
        for row, query in ((0, 3), (0, 6), (1, 1), (1, 6)):
            first = query - int(positions[row, query])
            assert found[row, query].nonzero().squeeze(1).tolist() == [first, query]


def test_the_original_keeps_only_the_first_key_of_a_row():
    theirs = ForgetfulMask(1.0, 1.0, seed=1, keeps_itself=False)
    found = seen(theirs, by_document=False)[:, 0]
    assert (found.nonzero()[:, 2] == 0).all()
    assert found[:, :, 0].all()
    # Where documents are hidden from each other, each keeps its own first key: a token has to see something.
    assert seen(theirs)[:, 0].any(-1).all()


def test_ratios_are_drawn_by_sequence_within_their_range():
    positions = torch.arange(64)[None].expand(200, -1)
    hidden = ~seen(ForgetfulMask(0.1, 0.3, seed=3), positions, by_document=False)[:, 0]
    can = visible(positions, by_document=False) & ~torch.eye(64, dtype=torch.bool)
    can[:, :, 0] = False
    shares = (hidden & can).sum((1, 2)) / can.sum((1, 2))
    assert 0.19 < float(shares.mean()) < 0.21
    assert 0.05 < float(shares.min()) < 0.15
    assert 0.25 < float(shares.max()) < 0.35


def test_the_place_in_the_order_decides_whatever_batch_it_comes_in():
    positions = torch.arange(16)[None].expand(6, -1)
    mask = ForgetfulMask(0.2, 0.5, seed=3)
    whole = seen(mask, positions, first_block=10)
    parts = [seen(mask, positions[:2], first_block=10), seen(mask, positions[:4], first_block=12)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, seen(ForgetfulMask(0.2, 0.5, seed=4), positions, first_block=10))


def outcome(model, first_block):
    objective = build_objective({"name": "MLE"}, examples=True)
    model.zero_grad()
    out = model(IDS, torch.zeros(2, 8), KINDS, objective, None, first_block)
    out.loss.backward()
    return out.loss.detach(), model.head()[0].grad.clone()


@pytest.mark.parametrize("by_document", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_eager_and_sdpa_compute_the_same_as_attention_by_hand(family, by_document):
    found = []
    for attention in ("eager", "sdpa"):
        model = model_of(family, attention)
        if by_document:
            model.mask_documents()
        plain = outcome(model, 0)
        model.forget(ForgetfulMask(0.5, 0.5, seed=1))
        hidden = outcome(model, 0)
        assert not torch.allclose(hidden[0], plain[0], atol=1e-6)
        assert torch.equal(outcome(model, None)[0], plain[0]), "measuring hides nothing"
        assert torch.equal(outcome(model, -1)[0], plain[0])
        found.append(hidden)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_that_hides_nothing_changes_nothing(attention):
    model = model_of("llama", attention)
    model.mask_documents()
    positions = document_positions(KINDS)
    mask = as_additive(visible(positions, by_document=True), dtype=torch.float32)
    with torch.no_grad():
        plain = model.hidden_states(IDS, position_ids_BS=positions)
        masked = model.hidden_states(IDS, attention_mask=mask, position_ids_BS=positions)
    kept = int(TokenKind.PAD) != KINDS
    assert torch.allclose(plain[kept], masked[kept], atol=1e-6)


def test_hidden_tokens_are_hidden():
    model = model_of("gpt2")
    model.forget(ForgetfulMask(1.0, 1.0, seed=1))
    kinds = torch.full((1, 8), int(TokenKind.PLAIN), dtype=torch.uint8)
    other = IDS[:1].clone()
    other[0, 3] += 20
    with torch.no_grad():
        states = [model._trained_states(ids, kinds, 0) for ids in (IDS[:1], other)]
    assert torch.allclose(states[0][:, 4:], states[1][:, 4:], atol=1e-6)
    assert not torch.allclose(states[0][:, 3], states[1][:, 3], atol=1e-3)


def test_models_that_can_not_take_the_mask_are_refused():
    windowed = LanguageModel(
        MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, intermediate_size=32, sliding_window=4))
    )
    with pytest.raises(ConfigError, match="see only a part"):
        windowed.forget(ForgetfulMask(0.0, 0.15, seed=0))
    flash = model_of("llama")
    flash.backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="attn_implementation: sdpa"):
        flash.forget(ForgetfulMask(0.0, 0.15, seed=0))
