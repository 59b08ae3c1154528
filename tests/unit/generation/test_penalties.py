"""Penalties against transformers' own, and against their definition computed token by token."""

from collections import Counter

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_tokenizer

from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.requests import GenerationRequest, RequestError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer):
    return Engine(tiny_gpt2(tokenizer, vocab_size=len(tokenizer)), tokenizer)


def greedy(prompt, **fields):
    return GenerationRequest(prompt=prompt, max_tokens=30, temperature=0, ignore_eos=True, **fields)


@pytest.mark.parametrize("penalty", [1.3, 0.7, 4.0])
def test_repetition_penalty_is_that_of_transformers(engine, tokenizer, penalty):
    prompts = [tuple(tokenizer(text).input_ids) for text in ("def add", "import os\n\nclass", "T")]
    requests = [greedy(prompt, repetition_penalty=penalty) for prompt in prompts]
    found = generate(engine, [*requests, greedy(prompts[0])])
    for prompt, completion in zip(prompts, found, strict=False):
        expected = engine.model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=None,
            repetition_penalty=penalty,
        )
        assert list(completion.token_ids) == expected[0, len(prompt) :].tolist()
    assert found[0].token_ids != found[3].token_ids


@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 1.5), (-1.0, 0.5), (1.0, 2.0)])
def test_presence_and_frequency_count_the_output_alone(engine, tokenizer, presence, frequency):
    prompt = tuple(tokenizer("def add(first, second)").input_ids)
    request = greedy(prompt, presence_penalty=presence, frequency_penalty=frequency)
    [completion] = generate(engine, [request])
    output: list[int] = []
    for _ in range(30):
        with torch.no_grad():
            logits = engine.model(torch.tensor([[*prompt, *output]])).logits[0, -1]
        for id_, count in Counter(output).items():
            logits[id_] -= presence + frequency * count
        output.append(int(logits.argmax()))
    assert list(completion.token_ids) == output
    assert output != list(generate(engine, [greedy(prompt)])[0].token_ids)


def test_penalties_of_a_row_leave_the_others_alone_and_the_reported_logprobs(engine):
    plain = GenerationRequest(prompt="def", max_tokens=20, seed=3, logprobs=2, ignore_eos=True)
    penalized = GenerationRequest(
        prompt="def", max_tokens=20, seed=3, logprobs=2, repetition_penalty=2.0, presence_penalty=1.0, ignore_eos=True
    )
    alone = [generate(engine, [request])[0] for request in (plain, penalized)]
    together = [completion.token_ids for completion in generate(engine, [plain, penalized, plain])]
    assert together == [alone[0].token_ids, alone[1].token_ids, alone[0].token_ids]
    assert together[0] != together[1]
    ids = [*engine.strings.encode("def")[0], *alone[1].token_ids]
    with torch.no_grad():
        expected = engine.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for i, record in enumerate(alone[1].logprobs, start=len(ids) - 20):
        assert record.logprob == pytest.approx(float(expected[i - 1, ids[i]]), abs=1e-4)


@pytest.mark.parametrize("penalty", [1e-300, 1e300])
def test_an_extreme_penalty_still_gives_text(engine, penalty):
    [completion] = generate(engine, [greedy("def", repetition_penalty=penalty)])
    assert completion.num_completion_tokens == 30


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
    ],
)
def test_penalties_out_of_range_are_refused(fields, param):
    with pytest.raises(RequestError, match=f"{param} is .*it must be") as caught:
        GenerationRequest(prompt="def", **fields)
    assert caught.value.param == param
