"""One translation of a completion body: the server's and the one for models in the same process."""

import pytest

from phf_ray.generation.bodies import requests_from_body
from phf_ray.generation.requests import GenerationRequest, RequestError
from serve.schemas import CompletionRequest


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1, 2], [3]], [(1, 2), (3,)]), ([], [])],
)
def test_every_prompt_has_n_choices_one_after_the_other(prompt, prompts):
    requests = requests_from_body({"prompt": prompt, "n": 2})
    assert [request.prompt for request in requests] == [one for one in prompts for _ in range(2)]
    assert [request.choice for request in requests] == list(range(2 * len(prompts)))


def test_a_field_that_is_null_takes_the_default_of_the_server_or_else_of_the_request():
    body = {"prompt": "a", "max_tokens": None, "temperature": 0.5, "top_p": None}
    [request] = requests_from_body(body, defaults={"max_tokens": 7, "temperature": 0.1, "top_k": 3})
    assert request == GenerationRequest(prompt="a", max_tokens=7, temperature=0.5, top_k=3)


def test_every_field_of_the_schema_reaches_the_request():
    body = {
        "prompt": "a", "max_tokens": 9, "min_tokens": 2, "temperature": 0.3, "top_p": 0.4, "top_k": -1, "seed": 5,
        "stop": "x", "logit_bias": {3: 1.5}, "ignore_eos": True, "logprobs": 2, "echo": True, "control": "bad",
        "control_policy": "retag",
        "stop_token_ids": [4, 5], "repetition_penalty": 1.5, "presence_penalty": -1, "frequency_penalty": 0.5,
    }  # fmt: skip
    expected = GenerationRequest(
        prompt="a", max_tokens=9, min_tokens=2, temperature=0.3, top_p=0.4, top_k=0, seed=5, stop=("x",),
        logit_bias={3: 1.5}, ignore_eos=True, logprobs=2, echo=True, control="bad", policy="retag",
        stop_token_ids=(4, 5), repetition_penalty=1.5, presence_penalty=-1, frequency_penalty=0.5,
    )  # fmt: skip
    assert requests_from_body(body) == [expected]
    assert requests_from_body(vars(CompletionRequest(model="m", **body))) == [expected]


def test_a_value_that_can_not_be_served_is_named():
    with pytest.raises(RequestError, match="max_tokens is 0"):
        requests_from_body({"prompt": "a", "max_tokens": 0})
