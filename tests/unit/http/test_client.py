"""The JSON client against a real server that is busy, refuses, or is away."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from phf_ray.errors import ConfigError, ServiceError
from phf_ray.http.client import Client, RefusedError


class ScriptedServer(ThreadingHTTPServer):
    """Gives the answers of `script`, one after the other, and then only the last."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[tuple[int, dict[str, str], str]] = []
        self.asked_at: list[float] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked_at.append(time.monotonic())
        script = self.server.script
        status, headers, body = script.pop(0) if len(script) > 1 else script[0]
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


OK = (200, {}, json.dumps({"answer": 1}))


def busy(status: int, **headers: str) -> tuple[int, dict[str, str], str]:
    return status, headers, json.dumps({"error": {"message": "come back later"}})


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_an_answer_that_may_change_is_asked_for_again(server, status):
    server.script = [busy(status), busy(status), OK]
    assert Client(server.url).post("/x", {}) == {"answer": 1}
    assert len(server.asked_at) == 3


def test_the_server_says_when_to_come_back(server):
    server.script = [busy(429, **{"retry-after": "0.7"}), OK]
    Client(server.url).post("/x", {})
    first, second = server.asked_at
    assert second - first >= 0.7


def test_patience_ends_before_a_wait_that_would_exceed_it(server):
    server.script = [busy(503, **{"retry-after": "30"})]
    with pytest.raises(
        ServiceError, match=r"/x did not answer within 2 s \(status 503: come back later\); is the server"
    ):
        Client(server.url, patience_s=2).post("/x", {})
    assert len(server.asked_at) == 1


def test_a_server_that_is_away_is_named_after_several_tries():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    since = time.monotonic()
    with pytest.raises(ServiceError, match=rf"127\.0\.0\.1:{port}/x did not answer within 1 s \(ConnectError"):
        Client(f"http://127.0.0.1:{port}", patience_s=1).post("/x", {})
    assert time.monotonic() - since > 0.1, "asked once only"


@pytest.mark.parametrize(("status", "remedy"), [(400, ""), (401, "set a key that the server accepts"), (404, "")])
def test_a_refusal_is_not_asked_for_again(server, status, remedy):
    server.script = [busy(status)]
    with pytest.raises(RefusedError, match=f"status {status}: come back later.*{remedy}") as refused:
        Client(server.url).post("/x", {})
    assert refused.value.status == status
    assert len(server.asked_at) == 1


def test_something_else_than_json_is_refused(server):
    server.script = [(200, {}, "<html>")]
    with pytest.raises(RefusedError, match="is this the right server"):
        Client(server.url).post("/x", {})


def test_what_is_no_url_is_said():
    with pytest.raises(ConfigError, match="write http://host:port"):
        Client("http://[::1").post("/x", {})
