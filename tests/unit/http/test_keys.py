"""Which key goes to which server, and what the SDK sends to it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from phf_ray.errors import ConfigError, ServiceError
from phf_ray.http import keys
from phf_ray.http.client import Client, RefusedError
from phf_ray.http.keys import Endpoint, is_openai, parse_endpoint, with_key_env
from phf_ray.http.openai_client import OpenAIClient


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "PHF_API_KEY", "OPENAI_ORG", "OPENAI_ORG_ID", "OPENAI_PROJECT", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def endpoint(text, **options):
    return parse_endpoint(text, option="--model x", **options)


def test_the_key_of_openai_goes_to_openai_alone(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert endpoint("https://api.openai.com/v1").key == endpoint("https://eu.api.openai.com").key == "sk-1"
    for url in (
        "https://api.openai.com.evil.example",
        "https://openai.com",
        "http://127.0.0.1:8000",
        "https://a.example",
    ):
        assert endpoint(url).key is None, url
    assert endpoint("https://a.example,key_env=OPENAI_API_KEY").key == "sk-1"


def test_our_servers_get_their_own_key_and_any_server_the_one_that_it_names(monkeypatch):
    monkeypatch.setenv("PHF_API_KEY", " ours ")
    monkeypatch.setenv("TOGETHER_KEY", "theirs")
    assert endpoint("https://models.example:8443") == Endpoint("https://models.example:8443", "ours")
    assert endpoint("https://a.example/v1,key_env=TOGETHER_KEY") == Endpoint("https://a.example/v1", "theirs")
    assert "ours" not in repr(endpoint("https://models.example"))


@pytest.mark.parametrize("url", ["http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"])
def test_no_key_travels_unencrypted_to_another_machine(monkeypatch, url):
    monkeypatch.setenv("PHF_API_KEY", "ours")
    assert endpoint(url).key == "ours"
    for other in (
        "http://10.0.0.7:8000",
        "http://127.0.0.1.example.com",
        "http://127.example.com",
        "http://localhost.a",
    ):
        with pytest.raises(ConfigError, match=r"key in PHF_API_KEY would travel unencrypted.*--allow-plain-http"):
            endpoint(other)
    assert endpoint("http://10.0.0.7:8000", allow_plain_http=True).key == "ours"
    monkeypatch.delenv("PHF_API_KEY")
    assert endpoint("http://10.0.0.7:8000").key is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "https://a.example,key_env=NOT_SET",
            "variable NOT_SET holds no key for https://a.example; set it",
        ),
        ("https://api.openai.com", "the environment variable OPENAI_API_KEY holds no key"),
        ("https://a.example,key_env=", "write http://host:port"),
        ("https://a.example,key=abc", "write http://host:port"),
        ("a.example", "write http://host:port"),
    ],
)
def test_a_key_that_is_missing_is_named_before_anything_starts(text, said):
    with pytest.raises(ConfigError, match=f"^--model x .*{said}"):
        endpoint(text)


class Recorder(ThreadingHTTPServer):
    """Answers with `status`, and keeps the requests' methods, paths, headers and bodies."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.answer, self.asked = 200, {"answer": 1}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append(
            (self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        )
        content = json.dumps(self.server.answer).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def server():
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_the_sdk_asks_any_path_and_sends_only_this_servers_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    client = OpenAIClient(f"{server.url}/v1", key="theirs")
    assert client.post("/v1/completions", {"model": "m", "min_tokens": 3}) == {"answer": 1}
    assert client.get("/v1/models") == {"answer": 1}
    OpenAIClient(server.url).post("/tokenize", {"prompt": "x"})
    assert [(method, path) for method, path, _, _ in server.asked] == [
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("POST", "/tokenize"),
    ]
    assert json.loads(server.asked[0][3]) == {"model": "m", "min_tokens": 3}
    assert server.asked[0][2]["authorization"] == "Bearer theirs"
    names = {name for _, _, headers, _ in server.asked for name in headers}
    assert not names & {"openai-organization", "openai-project"}
    assert "authorization" not in server.asked[2][2]
    assert server.asked[0][2]["user-agent"].startswith("OpenAI/")


@pytest.mark.parametrize("name", ["OPENAI_ORG", "OPENAI_ORG_ID"])
def test_openai_learns_of_organisation_and_project(server, monkeypatch, name):
    monkeypatch.setattr(keys, "_OPENAI_HOST", "127.0.0.1")
    assert is_openai(server.url)
    monkeypatch.setenv(name, "org-1")
    monkeypatch.setenv("OPENAI_PROJECT", "proj-1")
    OpenAIClient(server.url, key="sk-1").get("/v1/models")
    headers = server.asked[0][2]
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")
    assert headers["authorization"] == "Bearer sk-1"


def test_errors_are_those_of_the_other_client(server):
    server.status, server.answer = 401, {"error": {"message": "no such key"}}
    for kind in (Client, OpenAIClient):
        with pytest.raises(RefusedError, match=r"answered with status 401: .*no such key.*; set a key") as caught:
            kind(server.url).post("/v1/completions", {})
        assert caught.value.status == 401
    server.status = 503
    for kind in (Client, OpenAIClient):
        since = len(server.asked)
        with pytest.raises(ServiceError, match=r"did not answer within 0\.5 s \(status 503"):
            kind(server.url, patience_s=0.5).post("/v1/completions", {})
        assert len(server.asked) > since + 1, "asked again"
    with pytest.raises(ServiceError, match="is the server running"):
        OpenAIClient("http://127.0.0.1:9", patience_s=0.3).get("/v1/models")
    server.status, server.answer = 200, [1]
    with pytest.raises(RefusedError, match="something other than a JSON object"):
        OpenAIClient(server.url).get("/v1/models")


@pytest.mark.parametrize("kind", [Client, OpenAIClient])
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch, kind):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert kind(server.url, patience_s=0.3).get("/v1/models") == {"answer": 1}


def test_a_task_names_the_variable_of_a_server_for_that_very_url():
    named = {"https://a.example/v1": "THEIRS"}
    assert with_key_env("gpt=https://a.example", named) == "gpt=https://a.example,key_env=THEIRS"
    assert with_key_env("https://a.example/v1/", named) == "https://a.example/v1/,key_env=THEIRS"
    for other in (
        "gpt=https://a.example,key_env=MINE",
        "http://a.example",
        "https://a.example.evil",
        "https://a.example:8443",
        "https://a.example/v1/other",
        "runs/mle",
    ):
        assert with_key_env(other, named) == other
