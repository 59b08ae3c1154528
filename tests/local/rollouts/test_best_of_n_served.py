"""Best of n from a served model: a real HTTP server, keys, refusals, and what a kill leaves; and on Ray."""

import json
import time

import pytest
from best_of_n_runs import SHORT, prompts_of, request_of, samples_in, write_prompts
from evaluation_server import listening
from feedback_files import bytes_of
from served import served_app
from tiny_models import tiny_gpt2, tiny_tokenizer

from jobs.best_of_n import main
from phf_ray.generation.engine import Engine
from phf_ray.http.client import RefusedError
from phf_ray.http.keys import Endpoint
from phf_ray.rollouts.best_of_n.job import best_of_n
from phf_ray.rollouts.by_url import SampledServer, UrlSampler
from phf_ray.rollouts.on_ray.best_of_n import ActorPool, best_of_n_on_ray
from phf_ray.rollouts.sampling import EngineSampler, SamplingSettings, seeds_of

KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def server():
    with listening(served_app(keys=(KEY,))) as url:
        yield url


def test_a_server_gives_the_samples_that_its_model_gives_in_process(server):
    tokenizer = tiny_tokenizer()
    # As `served_app` has it.
    here = EngineSampler(Engine(tiny_gpt2(tokenizer, seed=1), tokenizer), SHORT)
    prompts = prompts_of(3)
    seeds = seeds_of(prompts, num_samples=4, seed=5)
    asked = UrlSampler(SampledServer(Endpoint(server, KEY), "mle"), SHORT).sample(prompts, seeds=seeds)
    wanted = here.sample(prompts, seeds=seeds)
    assert [[one.completion for one in own] for own in asked] == [[one.completion for one in own] for own in wanted]
    assert [[one.finish_reason for one in own] for own in asked] == [
        [one.finish_reason for one in own] for own in wanted
    ]
    assert asked[0][0].completion_ids is None


def test_the_command_samples_from_a_url_with_its_key_and_is_scored_by_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    prompts = write_prompts(tmp_path / "prompts.json", 5)
    score = f"{{url: {{url: '{server}/v1/scores', scorer: pep8, key_env: TEST_KEY}}, name: style}}"
    command = ["--model", f"mle={server},key_env=TEST_KEY", "--prompts", prompts, "--reward", score, "--gold", "pep8"]
    command += ["--template", "plain", "--max-tokens", "16", "--n", "3", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    rows = samples_in(tmp_path / "out")
    assert len(rows) == 15
    assert all(row["reward_style"] == row["gold"] for row in rows)
    assert json.loads((tmp_path / "out" / "best_of_n.json").read_text())[0]["decoder_name_or_path"] == "mle"
    assert KEY not in "".join(map(str, bytes_of(tmp_path / "out").values()))


def test_a_wrong_key_stops_the_run_at_once_and_a_long_prompt_fails_alone(server):
    wrong = UrlSampler(SampledServer(Endpoint(server, "wrong"), "mle"), SHORT)
    with pytest.raises(RefusedError, match="401"):
        wrong.sample(prompts_of(1), seeds=[[1, 2]])
    long = SamplingSettings(max_tokens=90)
    [[one]] = UrlSampler(SampledServer(Endpoint(server, KEY), "mle"), long).sample(prompts_of(1), seeds=[[1]])
    assert one.kind == "prompt_too_long"


def test_a_server_that_is_away_is_a_failure_with_its_reason():
    away = SampledServer(Endpoint("http://127.0.0.1:9"), "mle", patience_s=0.5, max_in_flight=1)
    begin = time.monotonic()
    [answers] = UrlSampler(away, SHORT).sample(prompts_of(1), seeds=[range(50)])
    assert {one.kind for one in answers} == {"unanswered"}
    assert time.monotonic() - begin < 50 * 0.5 / 2, "every request waited for itself"


@pytest.mark.usefixtures("local_ray")
def test_pools_of_actors_write_the_bytes_of_one_process(server, tmp_path, monkeypatch):
    monkeypatch.setattr("phf_ray.rollouts.best_of_n.plan._FEWEST", 8)
    request = request_of(SampledServer(Endpoint(server, KEY), "mle"), num=8, reward="pep8")
    best_of_n(request, str(tmp_path / "here"))
    runner = best_of_n_on_ray(samplers=ActorPool(1, 2), rewarders=ActorPool(1, 2))
    best_of_n(request, str(tmp_path / "there"), runner=runner)
    assert bytes_of(tmp_path / "there") == bytes_of(tmp_path / "here")
