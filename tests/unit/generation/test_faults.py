"""A request that fails, fails alone: the others of its batch get the texts that they get without it."""

import asyncio

import pytest
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_tokenizer

from phf_ray.checkpoint import Control
from phf_ray.errors import DataError
from phf_ray.generation.active import ActiveRequest
from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.requests import GenerationRequest, RequestError
from serve.engines.thread import EngineThread

FATAL = 77
"""A token that the model can't run."""


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(control=True)


@pytest.fixture
def engine(tokenizer):
    return Engine(tiny_gpt2(tokenizer), tokenizer)


def requests(n=4, **fields):
    fields = {"max_tokens": 10, "ignore_eos": True, "logprobs": 1, "echo": True} | fields
    return [GenerationRequest(prompt=(40 + seed, 60, 61), seed=seed, **fields) for seed in range(n)]


def raising(*_):
    raise RuntimeError("the tokenizer stumbled")


@pytest.mark.parametrize("method", ["accept", "prepare_draw", "finish"])
def test_an_error_of_one_row_leaves_the_others_standing(engine, monkeypatch, caplog, method):
    alone = [generate(engine, [request])[0].token_ids for request in requests()]
    running = [engine.prepare(request) for request in requests()]
    for active in running:
        engine.add(active)
    engine.step()
    monkeypatch.setattr(running[1], method, raising)
    while not all(active.is_finished for active in running):
        engine.step()
    with pytest.raises(DataError, match="failed on this request; the log has the reason"):
        running[1].completion()
    assert "RuntimeError: the tokenizer stumbled" in caplog.text
    assert [running[i].completion().token_ids for i in (0, 2, 3)] == [alone[i] for i in (0, 2, 3)]
    assert engine.num_active == 0


def test_an_error_in_the_record_of_a_prompt_is_that_request_s_alone(engine, monkeypatch):
    alone = generate(engine, requests(1))[0]
    record = Engine._record_prompt

    def stumbling(self, active, logits):
        record(self, active, logits) if active.request.seed == 0 else raising()

    monkeypatch.setattr(Engine, "_record_prompt", stumbling)
    first, second = engine.run(requests(2))
    assert first.completion().token_ids == alone.token_ids
    assert second.error is not None


def fail_on_a_token(model):
    forward = model.forward

    def picky(*args, input_ids, **kwargs):
        if bool((input_ids == FATAL).any()):
            raise RuntimeError("a device-side complaint")
        return forward(*args, input_ids=input_ids, **kwargs)

    model.forward = picky


def test_a_prompt_that_the_model_can_not_run_fails_alone_beside_new_and_running_ones(engine, caplog):
    good = requests(6, logit_bias={FATAL: -100.0})
    alone = [generate(engine, [request])[0].token_ids for request in good]
    fail_on_a_token(engine.model)
    running = [engine.prepare(request) for request in good[:3]]
    for active in running:
        engine.add(active)
    engine.step()
    bad = engine.prepare(GenerationRequest(prompt=(FATAL, 60), max_tokens=3))
    running += [engine.prepare(request) for request in good[3:]]
    for active in (*running[3:5], bad, running[5]):
        engine.add(active)
    advanced = engine.step()
    assert bad in advanced
    assert not engine.failed_all
    assert bad.error is not None
    assert "a device-side complaint" in caplog.text
    while not all(active.is_finished for active in running):
        engine.step()
    assert [active.completion().token_ids for active in running] == alone


def test_a_model_that_runs_no_prompt_is_known_as_failing(engine):
    fail_on_a_token(engine.model)
    engine.add(engine.prepare(GenerationRequest(prompt=(FATAL, 60), max_tokens=3)))
    engine.step()
    assert engine.failed_all

    async def ask(thread):
        for _ in range(2):
            with pytest.raises(DataError, match="the log has the reason"):
                await thread.complete([GenerationRequest(prompt=(FATAL, 60), max_tokens=3)])
        failed = thread.num_failed_in_a_row
        await thread.complete(requests(1))
        return failed, thread.num_failed_in_a_row

    thread = EngineThread(engine, max_waiting=8)
    try:
        assert asyncio.run(ask(thread)) == (2, 0)
    finally:
        thread.close()


def test_a_stream_whose_text_can_not_be_told_ends_with_an_error_and_no_other_does(engine, monkeypatch):
    alone = generate(engine, requests(1))[0]
    take = ActiveRequest.take_text

    def stumbling(self):
        return take(self) if self.request.seed == 0 else raising()

    monkeypatch.setattr(ActiveRequest, "take_text", stumbling)
    thread = EngineThread(engine, max_waiting=8)

    async def text_of(request):
        return "".join([piece.text async for pieces in thread.stream([request]) for piece in pieces])

    async def both():
        return await asyncio.gather(*map(text_of, requests(2)), return_exceptions=True)

    try:
        text, error = asyncio.run(both())
        assert text == alone.text
        assert isinstance(error, DataError)
        assert thread.is_alive
    finally:
        thread.close()


def test_a_text_beyond_the_embedding_is_refused_before_the_batch():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer, vocab_size=len(tokenizer))
    tokenizer.add_tokens(["<new>"])
    engine = Engine(model, tokenizer)
    with pytest.raises(
        RequestError, match="encodes '<new>' as the token id 300, which the model does not have"
    ) as caught:
        engine.prepare(GenerationRequest(prompt="def <new>"))
    assert caught.value.param == "prompt"


def test_a_full_context_takes_no_control_token(tokenizer):
    engine = Engine(tiny_gpt2(tokenizer), tokenizer, control=Control(good=GOOD, bad=BAD, policy="retag"))
    full = tuple(40 + i % 50 for i in range(engine.context))
    fields = {"max_tokens": 0, "echo": True, "logprobs": 0}
    with pytest.raises(RequestError, match="control token is one more; shorten the prompt, or set control to none"):
        engine.prepare(GenerationRequest(prompt=full, control="good", **fields))
    [completion] = generate(engine, [GenerationRequest(prompt=full, **fields)])
    assert len(completion.logprobs) == engine.context
    [completion] = generate(engine, [GenerationRequest(prompt=full[:-1], control="bad", **fields)])
    assert len(completion.logprobs) == engine.context - 1


@pytest.mark.parametrize("num_room", [0, 1])
def test_prompts_of_the_whole_context_are_served(engine, num_room):
    prompt = tuple(40 + i % 50 for i in range(engine.context - num_room))
    request = GenerationRequest(prompt=prompt, max_tokens=num_room, echo=True, logprobs=0, ignore_eos=True)
    [completion] = generate(engine, [request])
    assert len(completion.logprobs) == engine.context
    assert (completion.finish_reason, completion.num_completion_tokens) == ("length", num_room)
    with pytest.raises(RequestError, match=f"context is {engine.context} tokens"):
        engine.prepare(GenerationRequest(prompt=prompt, max_tokens=num_room + 1))
