"""The tokens that end a text: those that the model's files name, and those of the request."""

import json

import pytest
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_llama, tiny_tokenizer, write_checkpoint

from phf_ray.checkpoint import Control
from phf_ray.generation.engine import Engine, generate
from phf_ray.generation.load import load_engine
from phf_ray.generation.requests import GenerationRequest, RequestError


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(control=True)


@pytest.fixture(scope="module")
def plain(tokenizer):
    return Engine(tiny_gpt2(tokenizer), tokenizer)


def one(engine, **fields):
    return generate(engine, [GenerationRequest(**{"prompt": "def", "max_tokens": 12, "seed": 1, **fields})])[0]


def edit(path, **fields):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


@pytest.mark.parametrize(
    ("file", "named"),
    [("generation_config.json", [0, 40, 41]), ("generation_config.json", 40), ("config.json", [40])],
)
def test_every_end_that_a_file_names_ends_the_text(tmp_path, file, named):
    directory = write_checkpoint(tmp_path / "chat", ours=False)
    edit(directory / file, eos_token_id=named)
    engine = load_engine(directory)
    for id_ in (0, 40):
        completion = one(engine, logit_bias={id_: 100.0})
        assert (completion.finish_reason, completion.token_ids, completion.text) == ("stop", (id_,), "")
        full = one(engine, logit_bias={id_: 100.0}, ignore_eos=True)
        assert full.token_ids == (id_,) * 12
        later = one(engine, logit_bias={id_: 100.0}, min_tokens=5)
        assert later.num_completion_tokens == 6
        assert not set(later.token_ids[:5]) & {0, 40}


def test_ends_of_a_model_in_memory_count_and_control_tokens_are_none(tokenizer):
    model = tiny_llama(tokenizer)
    bad = tokenizer.convert_tokens_to_ids(BAD)
    model.config.eos_token_id = [50, bad]
    model.generation_config.eos_token_id = [51, 10**6]
    engine = Engine(model, tokenizer, control=Control(good=GOOD, bad=BAD, policy="ban"))
    assert engine.strings.end_ids == {tokenizer.eos_token_id, 50, 51}


def test_stop_token_ids_end_the_text_as_in_vllm(plain):
    full = one(plain, ignore_eos=True, logprobs=0)
    at = next(i for i, id_ in enumerate(full.token_ids) if i > 3 and id_ not in full.token_ids[:i])
    stop_id = full.token_ids[at]
    completion = one(plain, ignore_eos=True, logprobs=0, stop_token_ids=(stop_id,))
    assert completion.finish_reason == "stop"
    assert completion.token_ids == full.token_ids[: at + 1]
    assert completion.text == one(plain, ignore_eos=True, max_tokens=at).text
    assert completion.logprobs == full.logprobs[: at + 1]


def test_min_tokens_bans_stop_token_ids_at_first(plain):
    completion = one(plain, ignore_eos=True, min_tokens=4, stop_token_ids=(40,), logit_bias={40: 100.0})
    assert completion.num_completion_tokens == 5
    assert completion.token_ids.index(40) == 4


def test_stop_token_ids_that_can_not_occur_are_refused(plain, tokenizer):
    with pytest.raises(RequestError, match="stop_token_ids names the token id 100000, which") as caught:
        one(plain, stop_token_ids=(10**5,))
    assert caught.value.param == "stop_token_ids"
    controlled = Engine(plain.model, tokenizer, control=Control(good=GOOD, bad=BAD, policy="retag"))
    with pytest.raises(RequestError, match=r"control token .* leave it out"):
        one(controlled, stop_token_ids=(tokenizer.convert_tokens_to_ids(BAD),))
