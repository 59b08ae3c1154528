"""HEAD, and what a path says when it is asked with a method that it does not have."""

import pytest
from served import sender, served_app


@pytest.fixture(scope="module")
def app():
    return served_app()


def test_head_answers_like_get_on_every_path_that_has_get(app):
    send = sender(app)
    document = send("GET", "/openapi.json").json()
    paths = [path.replace("{model_id}", "mle") for path, methods in document["paths"].items() if "get" in methods]
    assert {"/health", "/metrics", "/v1/models", "/v1/models/mle", "/tokenizer_info"} <= set(paths)
    for path in [*paths, "/docs", "/openapi.json", "/v1/models/unknown"]:
        head, get = send("HEAD", path), send("GET", path)
        assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"]), path
        assert head.content == b""


def test_a_probe_by_head_needs_no_key():
    send = sender(served_app(keys=("secret",)))
    assert send("HEAD", "/health").status_code == 200
    assert send("HEAD", "/v1/models").status_code == 401


def test_head_is_not_in_the_openapi_document(app):
    document = sender(app)("GET", "/openapi.json").json()
    assert [path for path, methods in document["paths"].items() if "head" in methods] == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/v1/models/mle", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
        ("GET", "/v1/completions", "POST"),
        ("HEAD", "/tokenize", "POST"),
        ("PUT", "/batch", "POST"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
def test_a_refused_method_says_which_ones_there_are(app, method, path, allowed):
    answer = sender(app)(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert answer.json()["error"]["message"] == f"{method} can't be used on {path}; use {allowed}"


def test_two_routes_of_one_path_are_listed_together():
    app = served_app()
    app.add_api_route("/health", lambda: None, methods=["PUT"])
    assert sender(app)("POST", "/health").headers["allow"] == "GET, HEAD, PUT"


def test_other_answers_have_no_allow(app):
    assert "allow" not in sender(app)("GET", "/nothing").headers
