"""The tasks of configs/lm_eval, without lm-eval: their data, and the scores they ask a server for."""

import json
import math

import pytest
import yaml
from evaluation_server import Server, listening
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from lm_eval_tasks import FOLDER, load_tasks

from phf_ray.scorers.build import build_scorer


@pytest.fixture
def tasks(monkeypatch):
    for name in ("PHF_SCORES_URL", "PERSPECTIVE_URL", "PHF_SCORES_KEY"):
        monkeypatch.delenv(name, raising=False)
    return load_tasks()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("PHF_SCORES_URL", f"{server.url}/v1")
    yield server
    server.stop()


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_task_finds_its_data_and_its_functions(tasks, path):
    task = yaml.load(path.read_text(), _Loader)
    assert task["task"] == path.stem
    rows = tasks.jsonl(**task["dataset_kwargs"], **task["metadata"])["test"]
    assert len(rows) > 20
    assert {"text", "context"} & set(rows.features)
    for key in ("custom_dataset", "process_results"):
        if key in task:
            assert callable(getattr(tasks, task[key].removeprefix("tasks.")))


def test_of_each_pair_one_line_has_one_violation_and_the_other_none():
    scorer = build_scorer({"class_name": "PEP8Scorer"})
    pairs = [json.loads(line) for line in (FOLDER / "pep8_pairs.jsonl").read_text().splitlines()]
    # lm-eval's hf model takes two requests of one text for one request, wherever their contexts end.
    assert len({pair["context"] + pair[choice] for pair in pairs for choice in ("clean", "violating")}) == 48
    for pair in pairs:
        for choice, expected in (("clean", 0), ("violating", 1)):
            text = pair["context"] + pair[choice]
            (score,) = scorer.score_texts([text])
            assert score * len(text) == pytest.approx(expected), text


def test_scores_of_a_prompt_are_its_mean_and_its_maximum(tasks, server):
    found = tasks.pep8({"text": "xx"}, [["", "yy", "xx"]])
    assert found == {"score_mean": pytest.approx((1 + 0.5 + 1) / 3), "score_max": 1, "flagged": 1, "unscored": 0}
    assert server.num_scored == 3


def test_a_sample_without_a_score_is_in_no_mean_and_spoils_the_maximum(tasks, server):
    server.unscored = lambda text: "odd" if "?" in text else None
    found = tasks.pep8({"text": ""}, [["xy", "x?"]])
    assert (found["score_mean"], found["unscored"]) == (0.5, 0.5)
    assert math.isnan(found["score_max"])
    assert math.isnan(found["flagged"])
    assert all(math.isnan(tasks.pep8({"text": ""}, [["?"]])[name]) for name in ("score_mean", "score_max", "flagged"))


def test_the_key_of_the_environment_is_sent(tasks, server, monkeypatch):
    monkeypatch.setenv("PHF_SCORES_KEY", "secret")
    tasks.scores("pep8", ["x"])
    assert server.keys == {"Bearer secret"}


def test_no_server_and_a_refusal_end_the_evaluation(tasks, monkeypatch):
    with pytest.raises(RuntimeError, match="set PHF_SCORES_URL or PERSPECTIVE_URL"):
        tasks.toxicity({}, [["x"]])
    monkeypatch.setenv("PERSPECTIVE_URL", "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="no server for the scores of 'pep8'; set PHF_SCORES_URL, such as"):
        tasks.pep8({"text": ""}, [["x"]])


def test_a_refused_request_ends_the_evaluation(tasks, server):
    with pytest.raises(RuntimeError, match=r"status 404.*no such scorer: try pep8"):
        tasks.toxicity({}, [["x"]])


def test_perspective_gives_a_score_for_each_text_and_none_for_what_it_cannot_score(tasks, monkeypatch):
    app = FastAPI()
    asked = []

    @app.post("/v1alpha1/comments:analyze")
    async def analyze(request: Request):
        body = await request.json()
        asked.append(body)
        text = body["comment"]["text"]
        if not text or text == "bad request":
            details = [{"errorType": "COMMENT_EMPTY"}] if not text else []
            return JSONResponse({"error": {"code": 400, "message": "no", "details": details}}, status_code=400)
        return {"attributeScores": {"TOXICITY": {"summaryScore": {"value": len(text) / 10, "type": "PROBABILITY"}}}}

    with listening(app) as url:
        monkeypatch.setenv("PERSPECTIVE_URL", url)
        assert tasks.scores("toxicity", ["abc", "", "hello"]) == [0.3, None, 0.5]
        with pytest.raises(Exception, match="400"):
            tasks.scores("toxicity", ["bad request"])
    assert asked[0]["requestedAttributes"] == {"TOXICITY": {}}
    assert asked[0]["doNotStore"] is True
