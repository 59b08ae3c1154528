"""A judge behind a URL that counts what it is asked: a small OpenAI-compatible server, as real as a socket makes it."""

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

Reply = tuple[int, dict[str, str], Any]


def verdict(body: dict[str, Any]) -> str:
    """An answer that the prompt alone decides."""
    asked = json.dumps(body.get("messages", body.get("prompt")))
    return "Output (a)" if hashlib.sha256(asked.encode()).digest()[0] % 2 else "Output (b)"


class JudgeServer:
    """Answers after `delay_s`. `script(body, count)` may return another reply, or None; an Exception drops the line."""

    def __init__(self, *, delay_s: float = 0.0):
        self.delay_s = delay_s
        self.answer: Callable[[dict[str, Any]], str] = verdict
        self.script: Callable[[dict[str, Any], int], Reply | Exception | None] = lambda body, count: None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.counts: Counter[str] = Counter()
        """Requests by what they ask."""
        self.in_flight = self.most_in_flight = 0
        self._num_connections = 0
        self.usage = True
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def wait_until_alone(self, patience_s: float = 60.0) -> None:
        """Wait until nobody is connected: of those who were killed, what they had sent has arrived and is answered."""
        deadline = time.monotonic() + patience_s
        while self._num_connections:
            assert time.monotonic() < deadline, f"{self._num_connections} connections are open"
            time.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_connections += 1
        try:
            await self._answer_all(reader, writer)
        finally:
            self._num_connections -= 1

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.headers.append(headers)
                reply = await self._reply(head[0].split(" ")[1], body)
                if isinstance(reply, Exception):
                    break
                status, extra, said = reply
                content = json.dumps(said).encode()
                lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(content)}"]
                lines += [f"{name}: {value}" for name, value in extra.items()]
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                await writer.drain()
        writer.close()

    async def _reply(self, path: str, body: dict[str, Any]) -> Reply | Exception:
        asked = json.dumps(body.get("messages", body.get("prompt")))
        self.asked.append(body)
        self.counts[asked] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self.in_flight -= 1
        scripted = self.script(body, self.counts[asked])
        if scripted is not None:
            return scripted
        text = self.answer(body)
        usage = {"prompt_tokens": len(asked) // 4, "completion_tokens": 3}
        choice = (
            {"message": {"role": "assistant", "content": text}}
            if path.endswith("/chat/completions")
            else {"text": text}
        )
        return 200, {}, {"choices": [{"index": 0, **choice}], **({"usage": usage} if self.usage else {})}


@contextlib.contextmanager
def judge_server(*, delay_s: float = 0.0) -> Iterator[JudgeServer]:
    server = JudgeServer(delay_s=delay_s)
    server.start()
    try:
        yield server
    finally:
        server.stop()
