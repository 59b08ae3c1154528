"""A served reward model: /v1/scores with prompts, and OpenRLHF's /get_reward; no Ray."""

import httpx
import pytest
from evaluation_server import listening
from test_serve_api import app_of, caller, refused
from tiny_rewards import write_reward_model

from jobs.serve import main as serve
from phf_ray.errors import ConfigError
from phf_ray.scorers.build import build_scorer
from serve.engines.scorer import LocalScorer
from serve.settings import ServeArgs, ServedScorer

ANSWERS = [("Name a fox.", "Reynard"), ("Name a dog.", "Rex"), ("", "import os")]
PROMPTS, TEXTS = [prompt for prompt, _ in ANSWERS], [text for _, text in ANSWERS]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = write_reward_model(tmp_path_factory.mktemp("reward"), template="plain")
    return {"class_name": "RewardModelScorer", "path": str(folder), "device": "cpu"}


@pytest.fixture(scope="module")
def scorer(settings):
    return build_scorer(settings)


@pytest.fixture(scope="module")
def served(settings):
    reward = LocalScorer(ServedScorer(scorer=settings, max_text_chars=40))
    pep8 = LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}))
    yield {"reward": reward, "pep8": pep8}
    reward.close()
    pep8.close()


@pytest.fixture(scope="module")
def call(served):
    return caller({}, served, reward="reward")


def numbers(scored):
    return [one.score for one in scored]


def test_scores_of_answers_to_prompts(call, scorer):
    wanted = numbers(scorer.score_answers(ANSWERS))
    assert wanted != pytest.approx(numbers(scorer.score_all(TEXTS)), abs=1e-3)
    data = call("/v1/scores", {"scorer": "reward", "input": TEXTS, "prompts": PROMPTS}).json()["data"]
    assert [item["score"] for item in data] == pytest.approx(wanted, abs=1e-5)
    one = call("/v1/scores", {"scorer": "reward", "input": TEXTS[0], "prompts": PROMPTS[0]}).json()["data"]
    assert one[0]["score"] == pytest.approx(wanted[0], abs=1e-5)


def test_prompts_that_can_not_be_are_refused(call):
    body = {"scorer": "reward", "input": TEXTS, "prompts": PROMPTS[:2]}
    assert "2 prompts for 3 texts" in refused(call("/v1/scores", body), 400)["message"]
    body = {"scorer": "pep8", "input": "x=1\n", "prompts": "a"}
    assert "without prompts" in refused(call("/v1/scores", body), 400)["message"]
    body = {"scorer": "reward", "input": "a", "prompts": "a", "segments": True}
    assert "without a prompt" in refused(call("/v1/scores", body), 400)["message"]


def test_a_reward_is_minus_the_score(call, scorer):
    wanted = [-score for score in numbers(scorer.score_answers(ANSWERS[:2]))]
    answer = call("/get_reward", {"query": TEXTS[:2], "prompts": PROMPTS[:2], "joined": False}).json()
    assert answer["rewards"] == pytest.approx(wanted, abs=1e-5)
    assert answer["scores"] == answer["rewards"]
    assert answer["errors"] == [None, None]
    assert answer["extra_logs"] == {}


def test_a_query_is_a_whole_text_whatever_it_begins_with_unless_the_request_says_otherwise(call, scorer):
    """OpenRLHF sends prompt and answer joined, in the words of its template, and the prompt again beside them."""
    whole = ["Name a fox. Reynard", "Name a dog. Rex"]
    wanted = [-score for score in numbers(scorer.score_all(whole))]
    assert call("/get_reward", {"query": whole}).json()["rewards"] == pytest.approx(wanted, abs=1e-5)
    # The last one begins with a special token, as OpenRLHF's texts may.
    queries = [*whole, "<|endoftext|>Name a dog. Rex"]
    wanted.append(-scorer.score_all(queries[2:])[0].score)
    body = {"query": queries, "prompts": ["Name a fox.", "Name a dog.", "Name a dog."], "labels": ["", "", ""]}
    assert call("/get_reward", body).json()["rewards"] == pytest.approx(wanted, abs=1e-5)
    # An answer may repeat its prompt.
    answers = [("Name a fox.", "Name a fox. Reynard"), ("", "import os")]
    body = {"query": [text for _, text in answers], "prompts": [prompt for prompt, _ in answers], "joined": False}
    said = call("/get_reward", body).json()["rewards"]
    assert said == pytest.approx([-score for score in numbers(scorer.score_answers(answers))], abs=1e-5)
    assert "give prompts" in refused(call("/get_reward", {"query": "a", "joined": False}), 400)["message"]
    assert call("/get_reward", {"query": whole[0]}).json()["rewards"] == pytest.approx(wanted[:1], abs=1e-5)


def test_a_client_over_tcp_gets_rewards_and_scores(served, scorer):
    wanted = numbers(scorer.score_answers(ANSWERS))
    with listening(app_of({}, served, reward="reward")) as url:
        body = {"query": TEXTS[:2], "prompts": PROMPTS[:2], "labels": [None, None], "joined": False}
        rewards = httpx.post(f"{url}/get_reward", json=body, timeout=60).json()["rewards"]
        body = {"scorer": "reward", "input": TEXTS, "prompts": PROMPTS}
        data = httpx.post(f"{url}/v1/scores", json=body, timeout=60).json()["data"]
    assert rewards == pytest.approx([-score for score in wanted[:2]], abs=1e-5)
    assert [item["score"] for item in data] == pytest.approx(wanted, abs=1e-5)


def test_what_can_not_be_judged_has_no_reward_but_a_reason(call):
    answer = call("/get_reward", {"query": ["fine", "", "x" * 41]}).json()
    assert answer["rewards"][0] is not None
    assert answer["rewards"][1:] == [None, None]
    assert [error and error.partition(":")[0] for error in answer["errors"]] == [None, "empty", "too_long"]
    long = call("/get_reward", {"query": ["fine", "x"], "prompts": ["y" * 40, "z"], "joined": False}).json()
    assert [error and error.partition(":")[0] for error in long["errors"]] == ["too_long", None]
    assert (
        "1 prompts for 2 texts" in refused(call("/get_reward", {"query": ["a", "b"], "prompts": ["a"]}), 400)["message"]
    )


def test_without_a_reward_model_there_is_no_reward(settings):
    plain = caller({}, {})
    assert refused(plain("/get_reward", {"query": ["a"]}), 404)["code"] == "scorer_not_found"


@pytest.mark.parametrize("names", ["reward", "RewardModelScorer"])
def test_a_reward_model_without_its_folder_is_refused_before_ray_starts(names, monkeypatch):
    monkeypatch.setattr("jobs.serve.start_ray", lambda *_, **__: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=rf"--scorers {names}: name the folder of its model, {names}=DIR"):
        serve(["--scorers", names])
    with pytest.raises(ConfigError, match=r"--scorers reward= /nowhere: no such directory"):
        serve(["--scorers", "reward=/nowhere"])


def test_the_first_reward_model_gives_rewards(settings):
    from phf_ray.scorers.base import ReadsPrompts

    args = ServeArgs(scorers=[ServedScorer(scorer={"class_name": "PEP8Scorer"}), ServedScorer(scorer=settings)])
    assert args.first_of("reward", able=ReadsPrompts).name == "reward"
