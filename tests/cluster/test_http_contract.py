"""The server against clients that know only its description: schemathesis reads the OpenAPI document, googleapiclient
the discovery document of Perspective."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
import torch
from places import ROOT, TESTS
from server_process import Server
from tiny_models import write_checkpoint, write_detoxify

from phf_ray.corpus.segments import build_segmenter
from phf_ray.scorers.build import SHORT_NAMES, build_scorer

FOLDER = TESTS / "cluster"
CLIENTS = Path(sys.prefix) / "clients"

pytestmark = pytest.mark.timeout(600)
needs_googleapiclient = pytest.mark.skipif(
    not (CLIENTS / ".installed").is_file(),
    reason="googleapiclient is not installed; `make clients` does, where a package registry can be reached",
)


@pytest.fixture(scope="module")
def toxicity_model(tmp_path_factory) -> Path:
    return write_detoxify(tmp_path_factory.mktemp("models") / "unbiased")


@pytest.fixture(scope="module")
def server(tmp_path_factory, toxicity_model):
    model = f"cond={write_checkpoint(tmp_path_factory.mktemp('contract') / 'cond', control='retag')}"
    arguments = ("--model", model, "--scorers", "pep8,pii,toxicity", "--port", "0")
    server = Server(*arguments, PHF_MODELS=str(toxicity_model.parent))
    yield server
    assert server.stop() == 0


def test_no_request_that_the_openapi_document_allows_ends_in_a_server_error(server, tmp_path):
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--checks", checks, "--phases", "coverage,fuzzing", "--max-examples", "15", "--seed", "1"),
            *("--generation-database", "none", "--request-timeout", "120", "--continue-on-failure", "--no-color"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(FOLDER),
            "SCHEMATHESIS_HOOKS": "openapi_hooks",
            "PHF_FUZZ_MODEL": "cond",
            "PHF_FUZZ_SCORER": "pep8",
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    tested = int(re.search(r"Tested: (\d+)", done.stdout)[1])
    assert tested == len(operations(httpx.get(f"{server.url}/openapi.json").json())) > 15
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 500
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"


def operations(document: dict) -> list[str]:
    return [f"{method} {path}" for path, methods in document["paths"].items() for method in methods]


# What a user of Perspective has (garak, say): only the address is new.
ONE_BY_ONE = """
import json, sys
from googleapiclient import discovery

client = discovery.build(
    "commentanalyzer",
    "v1alpha1",
    developerKey="any",
    discoveryServiceUrl=sys.argv[1] + "/$discovery/rest?version=v1alpha1",
    static_discovery=False,
)

def request(text):
    body = {"comment": {"text": text}, "requestedAttributes": {"TOXICITY": {}, "INSULT": {}}, "languages": ["en"]}
    return client.comments().analyze(body=body)

texts = json.loads(sys.argv[2])
"""
# HELM's way: the text itself is the id of its request.
IN_A_BATCH = """
found = {}

def keep(request_id, response, error):
    found[request_id] = response if error is None else {"status": error.resp.status}

batch = client.new_batch_http_request()
for text in texts:
    batch.add(request(text), request_id=text, callback=keep)
batch.execute()
print(json.dumps([found[text] for text in texts]))
"""
TEXTS = ["a quick brown fox", "caf\u00e9 \u65e5\u672c " * 40, "two\r\nlines + a plus"]


@needs_googleapiclient
@pytest.mark.parametrize(
    ("rest", "texts"),
    [("print(json.dumps([request(text).execute() for text in texts]))", TEXTS), (IN_A_BATCH, [*TEXTS, " "])],
    ids=["one by one", "in a batch"],
)
def test_googleapiclient_builds_its_client_from_our_discovery_document(server, rest, texts):
    done = subprocess.run(
        [sys.executable, "-c", ONE_BY_ONE + rest, server.url, json.dumps(texts)],
        env={**os.environ, "PYTHONPATH": str(CLIENTS)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = [answer["attributeScores"] for answer in json.loads(done.stdout)]
    body = {"scorer": "toxicity", "input": texts}
    expected = [entry["score"] for entry in httpx.post(f"{server.url}/v1/scores", json=body).json()["data"]]
    assert [scores["TOXICITY"]["summaryScore"]["value"] for scores in found] == pytest.approx(expected, abs=1e-6)
    assert all(0 < scores["INSULT"]["summaryScore"]["value"] < 1 for scores in found)


@needs_googleapiclient
def test_a_program_with_googles_address_in_its_code_is_led_here_as_the_page_says(server, tmp_path):
    page = (ROOT / "docs" / "coming_from_perspective.md").read_text(encoding="utf-8")
    (launcher,) = re.findall(r"^```python\n(.*?perspective_here.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "perspective_here.py").write_text(launcher.rpartition("```python\n")[2])
    # The call is garak's and HELM's, word for word.
    googles = ONE_BY_ONE.replace('sys.argv[1] + "', '"https://commentanalyzer.googleapis.com')
    assert "commentanalyzer.googleapis.com/$discovery" in googles
    (tmp_path / "their_program.py").write_text(googles + "print(request(texts[0]).execute()['languages'])")
    done = subprocess.run(
        [sys.executable, "-m", "perspective_here", "their_program", "-", json.dumps(TEXTS)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CLIENTS), "PERSPECTIVE_URL": server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "['en']"), done.stderr


def test_discovery_document_leads_to_the_scores_over_plain_http(server):
    document = httpx.get(f"{server.url}/$discovery/rest", params={"version": "v1alpha1"}).json()
    method = document["resources"]["comments"]["methods"]["analyze"]
    url = document["rootUrl"] + document["servicePath"] + method["path"]
    request = {"comment": {"text": "a quick brown fox"}, "requestedAttributes": {"TOXICITY": {}}}
    assert set(request) <= set(document["schemas"][method["request"]["$ref"]]["properties"])
    answer = httpx.request(method["httpMethod"], url, params={"key": "any"}, json=request).json()
    assert set(answer) <= set(document["schemas"][method["response"]["$ref"]]["properties"])
    assert 0 < answer["attributeScores"]["TOXICITY"]["summaryScore"]["value"] < 1


@pytest.fixture
def one_thread():
    """As in a replica: the order in which sums are made decides the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "segmenter"), [("pep8", "lines"), ("pii", "sentences"), ("toxicity", "sentences")])
def test_scores_and_those_of_segments_are_those_of_the_scorer_offline_bit_for_bit(
    server, toxicity_model, one_thread, name, segmenter
):
    sources = [path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    texts = [*sources, *TEXTS, "", " ", "x=1", "Write to ann@example.com today. Or call 555-123-4567."]
    body = {"scorer": name, "input": texts, "segments": True}
    answer = httpx.post(f"{server.url}/v1/scores", json=body, timeout=60).json()
    weights = {"path": str(toxicity_model)} if name == "toxicity" else {}
    scorer, cut = build_scorer({"class_name": SHORT_NAMES[name], **weights}), build_segmenter(segmenter)
    assert answer["scorer"] == json.loads(json.dumps(scorer.identity().to_json()))
    # In one call each, as the server does: what is in a batch with a text can move the last bit of a model's score.
    expected = scorer.score_all(texts)
    assert [(item["score"], item["error"]) for item in answer["data"]] == [(one.score, one.error) for one in expected]
    for text, item in zip(texts, answer["data"], strict=True):
        parts = cut(text)
        assert [text[part["begin"] : part["end"]] for part in item["segments"]] == parts
        scored = [(one.score, one.error) for one in scorer.score_segments(parts)]
        assert [(part["score"], part["error"]) for part in item["segments"]] == scored
    assert len({one.score for one in expected}) > 2
    assert sum(len(item["segments"]) for item in answer["data"]) > 3 * len(texts)


def test_openai_client_moderates_by_our_scores(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
    results = client.moderations.create(model="omni-moderation-latest", input=TEXTS).results
    body = {"scorer": "toxicity", "input": TEXTS}
    expected = [entry["score"] for entry in httpx.post(f"{server.url}/v1/scores", json=body).json()["data"]]
    scores = [result.category_scores.model_dump() for result in results]
    assert [one["toxicity"] for one in scores] == pytest.approx(expected, abs=1e-6)
    assert [one["harassment"] for one in scores] == [one["insult"] for one in scores]
    for result, one in zip(results, scores, strict=True):
        judged = [value for value in one.values() if value is not None]
        assert result.flagged == (max(judged) >= 0.5)
        assert result.categories.self_harm is None


def test_presidio_finds_what_the_pii_scorer_finds(server):
    text = "Write to ann.smith@example.com today."
    (found,) = httpx.post(f"{server.url}/analyze", json={"text": text, "language": "en"}, timeout=60).json()
    assert (found["entity_type"], text[found["start"] : found["end"]]) == ("EMAIL_ADDRESS", "ann.smith@example.com")
    assert found["entity_type"] in httpx.get(f"{server.url}/supportedentities", params={"language": "en"}).json()
