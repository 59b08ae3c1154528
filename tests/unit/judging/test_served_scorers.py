"""Judges that are scorers or reward models behind URLs: our own server over a socket, and one that fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation_server import listening
from judge_server import JudgeServer, judge_server
from judging_files import pair_rows, write_rows
from tiny_rewards import write_reward_model

from jobs.annotate import main
from phf_ray.errors import ConfigError, IncompleteError, ServiceError
from phf_ray.feedback import read_feedback
from phf_ray.http.client import RefusedError
from phf_ray.judging import PairwiseAutoAnnotator, load_pool
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.served_scorers import identified
from phf_ray.judging.store import Store
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.scorer import LocalScorer
from serve.keys import KeyRing
from serve.schemas import HealthResponse
from serve.settings import ServedScorer

IDENTITY = {"name": "length", "class_name": "Length", "unit": "", "versions": {}, "weights_hash": None, "settings": {}}
KEY = "secret"


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> str:
    return str(write_reward_model(tmp_path_factory.mktemp("reward"), template="plain"))


@pytest.fixture(scope="module")
def served(reward) -> Iterator[str]:
    scorers = {
        "pep8": LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}, max_text_chars=100)),
        "reward": LocalScorer(
            ServedScorer(scorer={"class_name": "RewardModelScorer", "path": reward, "device": "cpu"})
        ),
    }

    async def health() -> HealthResponse:
        return HealthResponse(status="ok", deployments={})

    backend = Backend({}, scorers, health, reward="reward")
    with listening(build_app(backend, keys=KeyRing(frozenset({KEY})), access_log=False)) as url:
        yield url
    for one in scorers.values():
        one.close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("PHF_API_KEY", KEY)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as started:
        started.script = scored
        yield started


def scored(body: dict[str, Any], count: int, *, identity: dict[str, Any] = IDENTITY) -> Any:
    """The score of a text is its length."""
    if "query" in body:
        return 200, {}, {"rewards": [float(-len(text)) for text in body["query"]]}
    data = [{"index": place, "score": len(text), "error": None} for place, text in enumerate(body["input"])]
    return 200, {}, {"scorer": identity, "data": data}


def pool_of(judge: dict[str, Any], **annotator: Any) -> dict[str, Any]:
    return {"annotators": [{"name": "served", "judge": judge, **annotator}]}


def judged(judge: dict[str, Any], rows: list[dict[str, Any]], cache: Path | None = None) -> list[dict[str, Any]]:
    return PairwiseAutoAnnotator(pool_of(judge), caching_path=cache).annotate_pairs(rows)


def preferences(judge: dict[str, Any], rows: list[dict[str, Any]]) -> list[float | None]:
    return [row["preference"] for row in judged(judge, rows)]


GOOD, BAD = ["y = 2\nz=3;w=4\n" + "# a\n" * number for number in range(20)], ["x=1\n" * number for number in range(20)]
CODE = [
    {
        "instruction": f"Write {number}",
        "output_1": (GOOD, BAD)[number % 2][number],
        "output_2": (BAD, GOOD)[number % 2][number],
    }
    for number in range(1, 20)
]


def test_a_served_scorer_prefers_what_the_scorer_prefers(served):
    wanted = preferences({"scorer": {"class_name": "PEP8Scorer"}}, CODE)
    assert {1.0, 2.0} <= set(wanted)
    assert preferences({"scorer": {"url": served, "name": "pep8"}}, CODE) == wanted
    biases = {"length_weight": -2.0, "ignore": ["white_space"]}
    biased = preferences({"biased_scorer": {"scorer": {"class_name": "PEP8Scorer"}, **biases}}, CODE)
    assert biased != wanted
    assert preferences({"biased_scorer": {"scorer": {"url": served, "name": "pep8"}, **biases}}, CODE) == biased


def test_a_served_reward_model_prefers_the_higher_reward_for_the_instruction(served, reward):
    rows = [{**row, "input": row["input"] or ""} for row in pair_rows(20)]
    wanted = preferences({"reward_model": reward}, rows)
    assert {1.0, 2.0} <= set(wanted)
    assert preferences({"reward_model": {"url": f"{served}/get_reward"}}, rows) == wanted
    assert preferences({"scorer": {"url": served, "name": "reward", "prompts": True}}, rows) == wanted
    alone = preferences({"scorer": {"url": served, "name": "reward"}}, rows)
    assert alone != wanted, "without prompts, the model sees the answers alone"


def test_a_text_that_can_not_be_scored_is_a_failure_with_the_server_s_reason(served):
    rows = [*CODE, {"instruction": "i", "output_1": "x" * 101, "output_2": "y = 1\n"}]
    *others, last = judged({"scorer": {"url": served, "name": "pep8"}}, rows)
    assert last["preference"] is None
    assert last["error"].startswith("unscored: answer ")
    assert "has 101 characters, the limit is 100" in last["error"]
    assert all(row["preference"] is not None for row in others)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ({"scorer": {"name": "style"}}, "there is no scorer 'style'; served scorers: pep8, reward"),
        ({"scorer": {"name": "pep8", "prompts": True}}, "judges texts without prompts; leave prompts out"),
        ({"scorer": {"name": "pep8", "key_env": "WRONG_KEY"}}, "status 401"),
    ],
)
def test_what_the_server_refuses_is_said_before_anything_is_judged(served, judge, words, monkeypatch):
    monkeypatch.setenv("WRONG_KEY", "wrong")
    with pytest.raises(RefusedError, match=words):
        judged({"scorer": {"url": served, **judge["scorer"]}}, CODE)


def test_scores_are_asked_for_in_batches_and_kept(server, tmp_path):
    rows = pair_rows(50)
    judge = {"scorer": {"url": server.url, "name": "length", "texts_at_once": 20}}
    first = judged(judge, rows, tmp_path)
    sizes = [len(body["input"]) for body in server.asked[1:]]
    assert (sum(sizes), max(sizes)) == (100, 20)
    assert len(sizes) <= 8
    for row in first:
        said = json.loads(row["raw"])
        shown = [len(row[name]) for name in ("output_1", "output_2")]
        assert said == (shown if row["order"] == "12" else shown[::-1])
        assert row["preference"] == (1.0 if shown[0] < shown[1] else 2.0 if shown[1] < shown[0] else 1.5)
    begin = len(server.asked)
    assert [row["preference"] for row in judged(judge, rows, tmp_path)] == [row["preference"] for row in first]
    assert len(server.asked) == begin + 1, "once more who it is, and nothing else"
    store = Store(tmp_path)
    assert Ledger(store).count() == {}
    store.close()


def test_another_scorer_at_the_same_url_is_another_judge(server, tmp_path):
    rows = pair_rows(10)
    judge = {"scorer": {"url": server.url, "name": "length"}}
    judged(judge, rows, tmp_path)
    other = {**IDENTITY, "versions": {"length": "2"}}
    server.script = lambda body, count: scored(body, count, identity=other)
    begin = len(server.asked)
    judged(judge, rows, tmp_path)
    assert sum(len(body["input"]) for body in server.asked[begin + 1 :]) == 20
    # Replaced under way: no verdicts of two scorers in one call.
    server.script = lambda body, count: scored(body, count, identity=IDENTITY if len(body["input"]) == 1 else other)
    with pytest.raises(ServiceError, match="another scorer than when this call began"):
        judged(judge, pair_rows(10, begin=50), tmp_path)


def test_a_server_that_is_busy_is_asked_again_and_one_text_that_it_refuses_takes_no_other_with_it(server):
    def script(body: dict[str, Any], count: int) -> Any:
        if count in (2, 3):
            return 503, {"retry-after": "0.01"}, {"error": {"message": "busy"}}
        if any("7" in text for text in body["input"]):
            return 413, {}, {"error": {"message": "too large"}}
        return scored(body, count)

    server.script = script
    rows = pair_rows(20)
    found = judged({"scorer": {"url": server.url, "name": "length"}}, rows)
    assert [row["output_1"][-2:] for row in found if row["preference"] is None] == [" 7", "17"]
    assert all(
        "refused: answer" in row["error"] and "too large" in row["error"] for row in found if row["error"] is not None
    )


@pytest.mark.parametrize(
    "said",
    [
        {"rewards": [1.0]},
        {"rewards": "none"},
        {"reward": [1.0, 2.0]},
        {"rewards": [[1.0, 2.0], [2.0]]},
        {"rewards": [float("nan"), 1.0]},
        {"rewards": [True, False]},
        {"rewards": [10**400, 1.0]},
    ],
)
def test_what_is_no_score_is_no_verdict(server, said):
    server.script = lambda body, count: scored(body, count) if count == 1 else (200, {}, said)
    with pytest.raises(IncompleteError, match="malformed: answer 1 as shown: the server answered with"):
        judged({"reward_model": {"url": server.url}}, [{"instruction": "i", "output_1": "a", "output_2": "bb"}])


def test_a_server_of_something_else_is_found_at_once(server):
    server.script = lambda body, count: (200, {}, {"choices": []})
    with pytest.raises(ServiceError, match="which are no scores; is this the right server"):
        judged({"scorer": {"url": server.url, "name": "x"}}, CODE)


def test_a_server_that_is_away_ends_the_call_after_its_patience():
    judge = {"scorer": {"url": "http://127.0.0.1:9", "name": "x", "patience_s": 0.2}}
    with pytest.raises(ServiceError, match="did not answer within"):
        judged(judge, CODE)


def test_a_reward_model_of_openrlhf_is_shown_the_text_that_the_pool_gives(server):
    words = "User: {instruction}\nAssistant: {answer}</s>"
    judge = {"reward_model": {"url": server.url, "text": words}}
    rows = [{"instruction": "{answer}?", "input": "", "output_1": "a {instruction}", "output_2": "bb"}]
    (row,) = judged(judge, rows)
    assert row["preference"] == 2.0
    assert "prompts" not in server.asked[-1]
    assert sorted(server.asked[-1]["query"]) == [
        "User: {answer}?\nAssistant: a {instruction}</s>",
        "User: {answer}?\nAssistant: bb</s>",
    ]
    with pytest.raises(ConfigError, match=r"has no place \{answer\}"):
        load_pool(pool_of({"reward_model": {"url": server.url, "text": "{instruction}"}}))


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"scorer": {"url": "http://localhost:1"}}, r"judge\.scorer\.name: field required"),
        ({"scorer": {"url": "http://localhost:1", "name": "a", "prompt": True}}, "did you mean 'prompts'"),
        (
            {"reward_model": {"urll": "http://localhost:1"}},
            r"judge\.reward_model\.urll: unknown key; did you mean 'url'",
        ),
        ({"biased_scorer": {"scorer": {"url": "http://localhost:1"}}}, r"biased_scorer\.scorer\.name: field required"),
    ],
)
def test_a_pool_with_a_mistyped_server_is_refused(judge, message):
    with pytest.raises(ConfigError, match=message):
        load_pool(pool_of(judge))


def test_a_number_that_is_none_takes_no_other_text_with_it_and_the_whole_url_is_understood(server):
    def script(body: dict[str, Any], count: int) -> Any:
        status, headers, said = scored(body, count)
        data = [{**one, "score": float("nan") if one["score"] == 7 else one["score"]} for one in said["data"]]
        return status, headers, {**said, "data": data}

    server.script = script
    rows = [{"instruction": "i", "output_1": "a" * size, "output_2": "b"} for size in range(2, 30)]
    found = judged({"scorer": {"url": f"{server.url}/v1/scores", "name": "length"}}, rows)
    assert [len(row["output_1"]) for row in found if row["preference"] is None] == [7]


def test_a_key_does_not_travel_unencrypted():
    pool = load_pool(pool_of({"scorer": {"url": "http://example.com", "name": "a"}}))
    with pytest.raises(ConfigError, match="would travel unencrypted"):
        identified(pool)


def test_a_job_keeps_to_the_scorer_that_it_began_with(server, tmp_path, capsys):
    (tmp_path / "pool.yml").write_text(
        f"annotators:\n  - {{name: served, judge: {{scorer: {{url: '{server.url}', name: length}}}}}}\n"
    )
    pairs = write_rows(tmp_path / "pairs.json", pair_rows(30))
    arguments = ["--pairs", pairs, "--annotators", str(tmp_path / "pool.yml"), "--cache", str(tmp_path / "cache")]
    arguments += ["--output", str(tmp_path / "out")]
    main([*arguments, "--dry-run"])
    assert not server.asked, "a dry run asks nobody"
    assert "30 of them go to judges that cost nothing" in capsys.readouterr().out
    # One row too many fails: nothing is committed, and the plan stays.
    server.script = lambda body, count: scored(body, count) if count == 1 else (400, {}, {"error": {"message": "no"}})
    with pytest.raises(IncompleteError, match=r"served: \d+ refused"):
        main([*arguments, "--max-failed-fraction", "0"])
    other = {**IDENTITY, "versions": {"length": "2"}}
    server.script = lambda body, count: scored(body, count, identity=other)
    with pytest.raises(ConfigError, match="begun with another scorer behind the URL"):
        main(arguments)
    server.script = scored
    main(arguments)
    rows = list(read_feedback(str(tmp_path / "out")))
    assert len(rows) == 30
    assert all(row.preference is not None for row in rows)
    asked = len(server.asked)
    main(arguments)
    assert len(server.asked) == asked, "what is done asks nobody"
