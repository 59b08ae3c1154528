"""A small server with OpenAI's chat format and phf-ray's scores, as real as a socket makes it."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTROL = {"policy": "ban", "default": "good", "suffixes": [":good", ":bad", ":none"]}
HELD = "HELD"
"""A piece at which a stream waits until `let_go` is set."""


class ChatFakeServer(ThreadingHTTPServer):
    """`pieces(body)` says what is streamed; an Exception among them drops the line there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: list[dict[str, Any]] = [{"id": "tame", "control": CONTROL}, {"id": "wild", "control": None}]
        self.scorers: list[str] = []
        self.pieces: Callable[[dict[str, Any]], list[Any]] = lambda body: [f"{body['model']} ", "hears ", asked(body)]
        self.refusal: tuple[int, str] | None = None
        self.score_refusal: tuple[int, str] | None = None
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.let_go = threading.Event()
        self.held = threading.Semaphore(0)
        self.hung_up = threading.Semaphore(0)
        """Released for each stream whose reader went away."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def asked(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatFakeServer

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, {"object": "list", "data": self.server.models})
        elif self.path == "/v1/scorers" and self.server.scorers:
            self._answer(200, {"object": "list", "data": [{"id": name} for name in self.server.scorers]})
        else:
            self._refuse(404, f"there is no {self.path}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.keys.append(self.headers.get("authorization"))
        if self.path == "/v1/scores":
            self._score(body)
            return
        self.server.bodies.append(body)
        if self.server.refusal is not None:
            self._refuse(*self.server.refusal)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            self._stream(self.server.pieces(body))
        except OSError:
            self.server.hung_up.release()
            self.close_connection = True

    def _stream(self, pieces: list[Any]) -> None:
        for piece in pieces:
            if isinstance(piece, Exception):
                self.close_connection = True
                return
            if piece == HELD:
                self.server.held.release()
                # Empty events tell whether the reader is still there.
                while not self.server.let_go.wait(0.05):
                    self._event({"choices": []})
                continue
            if isinstance(piece, dict):
                self._event(piece)
                continue
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        if pieces and not isinstance(pieces[-1], dict):
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")
        self.wfile.flush()

    def _score(self, body: dict[str, Any]) -> None:
        """Sentences end with a full stop; those that shout are bad."""
        if self.server.score_refusal is not None:
            self._refuse(*self.server.score_refusal)
            return
        segments = [
            {"begin": found.start(), "end": found.end(), "score": 0.9 if found[0].isupper() else 0.1, "error": None}
            for found in re.finditer(r"[^.]+\.?\s*", body["input"])
        ]
        whole = max((one["score"] for one in segments), default=0.0)
        one = {"index": 0, "score": whole, "error": None, "segments": segments}
        self._answer(200, {"scorer": {"name": body["scorer"], "unit": "probability"}, "data": [one]})

    def _refuse(self, status: int, words: str) -> None:
        self._answer(status, {"error": {"message": words, "type": "invalid_request_error"}})

    def _answer(self, status: int, said: Any) -> None:
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def chat_server() -> Iterator[ChatFakeServer]:
    with ChatFakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.let_go.set()
            server.shutdown()
            thread.join()
