"""Texts, blanks and offsets of single tokens, with a byte-level tokenizer and one like SentencePiece's."""

import pytest
import torch
from tiny_models import TEXTS, tiny_gpt2, tiny_sentencepiece, tiny_tokenizer
from tokenizers import processors

from phf_ray.generation.active import ActiveRequest
from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.requests import GenerationRequest
from phf_ray.generation.tokens import TokenStrings, _begins


def trimming():
    """As GPT-2's own tokenizer: the span of a word does not hold the blank before it."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


TOKENIZERS = {"bytes": tiny_tokenizer, "trimming": trimming, "sentencepiece": tiny_sentencepiece}


@pytest.fixture(scope="module", params=TOKENIZERS)
def engine(request):
    tokenizer = TOKENIZERS[request.param]()
    return Engine(tiny_gpt2(tokenizer), tokenizer)


def one(engine, prompt, **fields):
    return generate(engine, [GenerationRequest(prompt=prompt, ignore_eos=True, **fields)])[0]


@pytest.mark.parametrize("text", ["def add (first)", *TEXTS, " two  blanks", "caf\u00e9 \U0001f600 x"])
def test_tokens_of_a_text_join_to_it_with_their_blanks(engine, text):
    echoed = one(engine, text, max_tokens=0, echo=True, logprobs=0).logprobs
    own, offsets = [record.token for record in echoed], [record.text_offset for record in echoed]
    if "\ufffd" not in "".join(own):
        assert "".join(own) in (text, f" {text}")
    for at, token in zip(offsets[1:], own[1:], strict=True):
        if "\ufffd" not in token:
            assert text.startswith(token, at)


@pytest.mark.parametrize("text", ["def add (first)", *TEXTS, "caf\u00e9 \U0001f600 x"])
def test_a_text_and_its_ids_have_the_same_offsets(engine, text):
    ids, _ = engine.strings.encode(text)
    assert engine.strings.decode(ids) == text
    by_text, by_ids = (one(engine, prompt, max_tokens=0, echo=True, logprobs=0) for prompt in (text, tuple(ids)))
    assert by_text.logprobs == by_ids.logprobs
    begins = [record.text_offset for record in by_text.logprobs]
    assert begins == sorted(begins)
    assert len(set(begins)) > 5


def test_offsets_of_a_text_that_the_tokenizer_changes_are_its_own():
    """Blanks that the span of a word leaves out belong to it."""
    assert _begins([(0, 0), (0, 3), (4, 7), (7, 8), (7, 8), (9, 9), (0, 0)]) == [0, 0, 3, 7, 7, 8, 9]


def test_offsets_of_a_generated_text_are_those_of_its_echo(engine):
    for seed in range(12):
        made = one(engine, "def add", max_tokens=24, seed=seed, temperature=1.5, echo=True, logprobs=0)
        ids = (*engine.strings.encode("def add")[0], *made.token_ids)
        echoed = one(engine, ids, max_tokens=0, echo=True, logprobs=0)
        assert echoed.text == made.text
        assert [(r.token, r.text_offset) for r in echoed.logprobs] == [(r.token, r.text_offset) for r in made.logprobs]


def test_there_are_as_many_alternatives_as_the_request_asks_for(engine):
    made = one(engine, "def add", max_tokens=40, seed=1, temperature=1.5, logprobs=5)
    ids = [*engine.strings.encode("def add")[0], *made.token_ids]
    with torch.inference_mode():
        expected = engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for at, record in enumerate(made.logprobs, start=len(ids) - 40):
        best = expected[at - 1].topk(5)
        is_among = ids[at] in best.indices.tolist()
        assert len(record.top) == (5 if is_among else 6)
        assert sorted(record.top.values())[-5:] == pytest.approx(sorted(best.values.tolist()), abs=1e-3)
        assert record.top[record.token] == record.logprob


def test_tokens_with_the_same_text_have_different_keys():
    tokenizer = tiny_sentencepiece()
    strings = TokenStrings(tokenizer, num_logits=len(tokenizer), control=None, starts_with_eos=False)
    active = ActiveRequest(GenerationRequest(prompt="def", logprobs=4), strings, context=96)
    letter, as_byte, *parts = tokenizer.convert_tokens_to_ids(["a", "<0x61>", "<0xC3>", "<0xE2>"])
    best = [(as_byte, -1.0), (letter, -1.5), (parts[0], -2.0), (parts[1], -2.5)]
    record = active._describe((letter, -1.5, best), 0)
    assert record.token == "a"
    assert record.top == {f"token_id:{as_byte}": -1.0, "a": -1.5, "\ufffd": -2.0, f"token_id:{parts[1]}": -2.5}


def test_a_stop_string_ends_the_text_at_the_byte_that_completes_it():
    tokenizer = tiny_sentencepiece()
    engine = Engine(tiny_gpt2(tokenizer), tokenizer)
    bias = {tokenizer.convert_tokens_to_ids("<0x7E>"): 100.0}
    full = one(engine, "def", max_tokens=6, logit_bias=bias)
    assert full.text == "~~~~~~"
    stopped = one(engine, "def", max_tokens=6, logit_bias=bias, stop=("~~~",))
    assert (stopped.text, stopped.num_completion_tokens, stopped.finish_reason) == ("", 3, "stop")
