"""Web pages of other origins: what a browser needs to let them read the answers."""

import asyncio
import json

import httpx
import pytest
from ray.serve.handle import DeploymentHandle
from served import sender, served_app

from jobs import serve as job
from phf_ray.errors import ConfigError
from serve.deployments import Ingress
from serve.keys import warnings_without_keys
from serve.settings import Limits, parse_args

PAGE = "https://app.example.com"
SCORERS = [{"scorer": {"class_name": "PEP8Scorer"}}]


@pytest.fixture(scope="module")
def send():
    return sender(served_app(keys=("secret",), allow_origins=(PAGE, "http://localhost:3000")))


def preflight(send, origin, *, method="POST", path="/v1/completions"):
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization,content-type"}
    return send("OPTIONS", path, headers={"Origin": origin, **asked})


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/scores", "/analyze", "/health", "/nothing"])
def test_a_preflight_is_answered_without_a_key(send, path):
    answer = preflight(send, PAGE, path=path)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert {"GET", "POST", "HEAD"} <= set(answer.headers["access-control-allow-methods"].split(", "))
    assert "Origin" in answer.headers["vary"]


def test_a_preflight_of_another_origin_is_refused_with_what_to_do(send):
    answer = preflight(send, "http://localhost:5173")
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    assert "start it with --allow-origin http://localhost:5173" in answer.json()["error"]["message"]


def test_a_preflight_to_a_private_network_is_answered(send):
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Private-Network": "true"}
    assert send("OPTIONS", "/v1/models", headers=headers).headers["access-control-allow-private-network"] == "true"


COMPLETION = {"model": "mle", "prompt": "def", "seed": 1, "max_tokens": 2}
KEY = {"Authorization": "Bearer secret"}


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/v1/models", {"headers": KEY}, 200),
        ("HEAD", "/health", {}, 200),
        ("POST", "/v1/completions", {"headers": KEY, "json": COMPLETION}, 200),
        ("POST", "/v1/completions", {"headers": KEY, "json": {**COMPLETION, "stream": True}}, 200),
        ("POST", "/v1/completions", {"headers": KEY, "json": {}}, 400),
        ("GET", "/v1/models", {}, 401),
        ("GET", "/nothing", {"headers": KEY}, 404),
        ("GET", "/v1/completions", {"headers": KEY}, 405),
        ("POST", "/v1/scores", {"headers": KEY, "content": b"x" * 5000}, 413),
    ],
)
def test_every_answer_may_be_read_by_the_page(method, path, options, status):
    send = sender(served_app(keys=("secret",), allow_origins=(PAGE,), limits=Limits(body_bytes=4096)))
    answer = send(method, path, **{**options, "headers": {**options.get("headers", {}), "Origin": PAGE}})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {"x-request-id", "retry-after", "allow"} <= set(exposed)
    other = send(method, path, **{**options, "headers": {**options.get("headers", {}), "Origin": "https://other"}})
    assert "access-control-allow-origin" not in other.headers


def test_internal_errors_may_be_read_too():
    app = served_app(allow_origins=("*",))

    @app.get("/broken")
    async def broken():
        raise RuntimeError("broken")

    answer = sender(app)("GET", "/broken", headers={"Origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, "*")


def test_a_star_allows_every_page():
    send = sender(served_app(allow_origins=("*",)))
    assert preflight(send, "https://any.example").headers["access-control-allow-origin"] == "*"
    assert send("GET", "/v1/models", headers={"Origin": "null"}).headers["access-control-allow-origin"] == "*"


def test_without_allowed_origins_nothing_is_said():
    send = sender(served_app(keys=("secret",)))
    assert preflight(send, PAGE).status_code == 401
    assert "access-control-allow-origin" not in send("GET", "/health", headers={"Origin": PAGE}).headers


def test_origins_of_a_serve_file_reach_the_application():
    settings = parse_args({"scorers": SCORERS, "allow_origins": [PAGE]}).model_dump(mode="json")
    # Without what Serve wraps around it.
    ingress = Ingress.func_or_class.__mro__[1](settings, dict[str, DeploymentHandle](), {})
    app = ingress.__serve_build_asgi_app__()

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.get("/v1/models", headers={"Origin": PAGE})

    assert asyncio.run(ask()).headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    "origin",
    ["*", "null", PAGE, "http://localhost:3000", "http://[::1]:8080", "chrome-extension://abcdef", "http://10.0.0.1"],
)
def test_origins_as_browsers_send_them_are_accepted(origin):
    assert parse_args({"scorers": SCORERS, "allow_origins": [origin]}).allow_origins == (origin,)


@pytest.mark.parametrize(
    ("origin", "match"),
    [
        ("", "'' is not an origin; write scheme, host and port"),
        ("localhost:3000", "'localhost:3000' is not an origin"),
        ("https://*.example.com", "is not an origin"),
        ("http://a.example,http://b.example", "is not an origin"),
        ("https://user@example.com", "is not an origin"),
        ("http://localhost:3000/", "as http://localhost:3000; write that"),
        ("https://app.example.com/index.html", "as https://app.example.com; write that"),
        ("HTTPS://App.Example.com", "as https://app.example.com; write that"),
        ("https://app.example.com:443", "as https://app.example.com; write that"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin, match):
    with pytest.raises(ConfigError, match="allow_origins") as caught:
        parse_args({"scorers": SCORERS, "allow_origins": ["*", origin]})
    assert match in str(caught.value)


def test_the_command_takes_several_origins(capsys):
    command = ["--scorers", "pep8", "--port", "0", "--allow-origin", PAGE, "--allow-origin", "http://localhost:3000"]
    assert job.main([*command, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["allow_origins"] == [PAGE, "http://localhost:3000"]
    with pytest.raises(ConfigError, match="write that"):
        job.main([*command, "--allow-origin", f"{PAGE}/"])


def test_a_star_without_keys_is_warned_of():
    def warnings(origins):
        found = warnings_without_keys(parse_args({"scorers": SCORERS, "allow_origins": origins}))
        return [text for text in found if "any web page" in text]

    assert (len(warnings(["*"])), warnings([PAGE])) == (1, [])
