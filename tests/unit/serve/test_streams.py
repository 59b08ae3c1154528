"""Random streams join to the whole answers: text, tokens, offsets and usage."""

import asyncio
import random

import pytest
from tiny_models import tiny_gpt2, tiny_sentencepiece, tiny_tokenizer

from phf_ray.generation.engine import Engine
from serve.engines.local import LocalModel
from serve.schemas import CompletionRequest

NUM_STREAMS = 75


@pytest.fixture(scope="module", params=[tiny_tokenizer, tiny_sentencepiece], ids=["byte-level", "byte-fallback"])
def model(request):
    tokenizer = request.param()
    made = LocalModel(Engine(tiny_gpt2(tokenizer), tokenizer))
    yield made
    made.thread.close()


def random_request(rng):
    max_tokens = rng.randint(1, 40)
    return CompletionRequest(
        model="m",
        prompt=rng.choice(["def add", "caf\u00e9 \u65e5", "x", "import os\n\n", "\U0001f600"]),
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, 0, rng.randint(0, max_tokens)]),
        temperature=rng.choice([0.0, 0.7, 1.3, 2.0]),
        top_k=rng.choice([0, 20]),
        seed=rng.randint(0, 2**40),
        echo=rng.random() < 0.3,
        logprobs=rng.choice([None, 0, 3, 5]),
        ignore_eos=rng.random() < 0.5,
        repetition_penalty=rng.choice([None, 1.4]),
        presence_penalty=rng.choice([None, 1.0]),
        frequency_penalty=rng.choice([None, -0.5, 1.0]),
        stop_token_ids=rng.sample(range(3, 300), 12),
    )


async def streamed(model, request):
    """Return text, logprobs as rows, finish reason and usage of a stream of one choice, and the number of pieces."""
    text, rows, reason, usage, num_pieces = "", [], None, None, 0
    async for piece in model.stream(request):
        usage = piece.usage
        for choice in piece.choices:
            assert reason is None, "a piece after the last"
            num_pieces += 1
            text += choice.text
            reason = choice.finish_reason
            rows += rows_of(choice)
    return (text, rows, reason, usage), num_pieces


def rows_of(choice):
    found = choice.logprobs
    if found is None:
        return []
    return list(zip(found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset, strict=True))


async def whole(model, request):
    completed = await model.complete(request)
    [choice] = completed.choices
    return choice.text, rows_of(choice), choice.finish_reason, completed.usage


def with_stops(request, text, rng):
    """Add a stop string of some characters from inside the text, which tokens share, and one that never comes."""
    begin = rng.randrange(len(text))
    inside = text[begin : begin + rng.randint(1, 6)]
    return request.model_copy(update={"stop": [inside, "\x00never\x00" * 3]})


def test_random_streams_equal_whole_answers(model):
    async def compare():
        reasons, num_pieces, num_stopped = set(), 0, 0
        for number in range(NUM_STREAMS):
            rng = random.Random(number)
            request = random_request(rng)
            expected = await whole(model, request)
            if number % 2 and len(expected[0]) > 4:
                request = with_stops(request, expected[0], rng)
                shorter = await whole(model, request)
                num_stopped += len(shorter[0]) < len(expected[0])
                expected = shorter
            found, pieces = await streamed(model, request)
            assert found == expected, request
            reasons.add(expected[2])
            num_pieces += pieces
        return reasons, num_pieces, num_stopped

    reasons, num_pieces, num_stopped = asyncio.run(compare())
    # Nothing of this was vacuous.
    assert reasons == {"stop", "length"}
    assert num_pieces > 4 * NUM_STREAMS
    assert num_stopped > 15
