"""Applications on a Ray that runs already: limits, keys, and what it serves beside ours."""

import contextlib
import gc
import time

import httpx
import openai
import pytest
import ray
from server_process import START_TIMEOUT_S
from tiny_models import write_checkpoint

from jobs.serve import running, serving
from phf_ray.errors import ServiceError
from serve.settings import parse_args

pytestmark = pytest.mark.timeout(2 * START_TIMEOUT_S + 120)
KEY = "right-key-of-the-gateway"


def test_a_stream_over_the_time_limit_ends_in_an_error_of_openai_client_and_leaves_the_engine(local_ray, tmp_path):
    model = {"name": "mle", "path": str(write_checkpoint(tmp_path / "mle", seed=1)), "num_cpus": 0.25}
    # Far more than 3 s of work. Where the first piece takes longer than that, all of it takes far more than 24 s.
    for limit_s in (3, 24):
        pieces = pieces_until_the_limit(model, limit_s)
        if pieces:
            break
    assert pieces
    assert not all(piece.choices[0].finish_reason for piece in pieces)


def pieces_until_the_limit(model, limit_s):
    """What a server with this limit sends of a long stream. Then it answers others."""
    from ray import serve

    args = parse_args({"models": [model], "limits": {"request_timeout_s": limit_s}})
    fields = {"model": "mle", "prompt": ["def"] * 2000, "max_tokens": 90, "seed": 1, "extra_body": {"ignore_eos": True}}
    quick = {"model": "mle", "prompt": "def", "max_tokens": 2, "seed": 1}
    pieces = []
    try:
        with running(args, host="127.0.0.1", port=0) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
            with pytest.raises(openai.APIError, match=f"the request took more than {limit_s} s"):
                pieces.extend(client.completions.create(**fields, stream=True))
            deadline = time.monotonic() + START_TIMEOUT_S
            # 429 while they are in the engine.
            while httpx.post(f"{url}/v1/completions", json=quick, timeout=60).status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        serve.shutdown()
    return pieces


def test_without_the_keys_of_who_starts_it_a_server_on_a_ray_that_runs_does_not_start(local_ray, monkeypatch):
    from ray import serve

    # Ray's processes were started before, and do not have it.
    monkeypatch.setenv("PHF_API_KEYS", KEY)
    try:
        with pytest.raises(ServiceError, match="give --keys-file FILE on storage that all nodes see") as caught:
            serving({}, [{"class_name": "PEP8Scorer"}]).__enter__()
    finally:
        serve.shutdown()
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_what_a_cluster_serves_already_goes_on_beside_and_after_us(local_ray):
    from ray import serve

    def score(url: str, name: str) -> float:
        body = {"scorer": name, "input": "x=1\n"}
        return httpx.post(f"{url}/v1/scores", json=body, timeout=60).json()["data"][0]["score"]

    def scorer(name: str) -> dict[str, str]:
        return {"class_name": "PEP8Scorer", "name": name}

    first, second, third = contextlib.ExitStack(), contextlib.ExitStack(), contextlib.ExitStack()
    try:
        root = first.enter_context(serving({}, [scorer("one")]))
        beside = second.enter_context(serving({}, [scorer("two")]))
        assert beside.startswith(f"{root}/phf-")
        assert score(root, "one") == score(beside, "two") == 0.25
        assert httpx.get(f"{beside}/health", timeout=60).status_code == 200
        assert httpx.get(f"{beside}/v1alpha1/none").json()["error"]["status"] == "NOT_FOUND"
        second.close()
        assert score(root, "one") == 0.25
        assert set(serve.status().applications) == {"phf"}
        beside = third.enter_context(serving({}, [scorer("three")]))
        first.close()
        assert score(beside, "three") == 0.25
    finally:
        for stack in (first, second, third):
            stack.close()
        serve.shutdown()


def test_a_model_of_a_job_gets_half_of_the_cpus(local_ray, tmp_path):
    """Two of four, and so two threads."""

    def num_free():
        return ray.available_resources().get("CPU", 0.0)

    def wait_for(condition):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)
            # Ray Data's actors keep their CPUs after an error until the collector frees what knows them.
            gc.collect()

    wait_for(lambda: num_free() == 4)
    with serving({"mle": str(write_checkpoint(tmp_path / "mle", seed=1))}):
        # The ingress has a tenth of one.
        wait_for(lambda: num_free() <= 1.95)
        assert num_free() > 1.5
