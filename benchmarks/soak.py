"""Five minutes at saturation: more clients than the server takes, for longer than anything it keeps could hide.

    python -m benchmarks.soak                    # make soak
    python -m benchmarks.soak --seconds 20

A server on the loopback interface; clients that send completions, streams and scores as fast as they are answered,
together more than its queue holds, and some that leave early. An answer of 429 is taken at its word: wait for
`Retry-After`, then send again. Prints requests, those lost (connection errors, broken streams, wrong answers), errors
other than 429, and the slope of the server's memory over the second half. Exit code 1 if any was lost, failed, or
memory grew.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai

from benchmarks.bench_serve import make_checkpoint, our_server, stdlib_texts

MODEL_CLIENTS, STREAM_CLIENTS, SCORE_CLIENTS, LEAVING_CLIENTS = 24, 12, 4, 4
MAX_PROMPTS = 65
"""40 clients with half as many prompts each are more than the 64 in a batch and the 1,024 that may wait."""
SAMPLE_S = 1.0
SHORTEST_JUDGED_S = 240.0
"""In less, caches still fill: 20 s showed 23 MB per minute."""
MAX_GROWTH_MB_PER_MIN = 2.0
"""Above what allocators and caches that still fill show on a short run; a leak of one request's texts is far above."""

Memory = list[tuple[float, dict[str, float]]]
"""Seconds since the begin, and MB of each process."""


@dataclass
class Tally:
    requests: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Clients:
    def __init__(self, url: str, *, seconds: float):
        self.tally = Tally()
        self._ends = time.monotonic() + seconds
        self._texts = stdlib_texts(64, num_chars=500)
        self._client = openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            timeout=120,
        )
        self._http = httpx.AsyncClient(base_url=url, timeout=120)

    async def run(self) -> None:
        kinds = (
            (self._complete, MODEL_CLIENTS),
            (self._stream, STREAM_CLIENTS),
            (self._score, SCORE_CLIENTS),
            (self._leave, LEAVING_CLIENTS),
        )
        await asyncio.gather(*(self._go_on(send, number) for send, count in kinds for number in range(count)))

    async def _go_on(self, send, number: int) -> None:  # type: ignore[no-untyped-def]  # one of the four below
        draw = random.Random(f"{send.__name__} {number}")
        while time.monotonic() < self._ends:
            try:
                await send(draw)
                self.tally.requests[send.__name__.strip("_")] += 1
            except openai.RateLimitError as error:
                self.tally.refused += 1
                await asyncio.sleep(float(error.response.headers["retry-after"]) * draw.random())
            except openai.APIStatusError as error:
                self.tally.errors.append(f"{send.__name__} {error.status_code}: {error.message}")
            except Exception as error:  # noqa: BLE001  # whatever else ends a request, it is lost
                self.tally.lost.append(f"{send.__name__} {type(error).__name__}: {error}")

    def _fields(self, draw: random.Random) -> dict[str, object]:
        return {
            "model": "tiny",
            "prompt": [draw.choice(self._texts)[: draw.randrange(200)] for _ in range(draw.randrange(1, MAX_PROMPTS))],
            "max_tokens": draw.randrange(1, 100),
            "seed": draw.randrange(2**31),
            "extra_body": {"ignore_eos": True},
        }

    async def _complete(self, draw: random.Random) -> None:
        fields = self._fields(draw)
        answer = await self._client.completions.create(**fields)  # type: ignore[call-overload]  # fields by name
        num_tokens = len(fields["prompt"]) * fields["max_tokens"]  # type: ignore[arg-type, operator]
        assert answer.usage.completion_tokens == num_tokens, "tokens are missing"

    async def _stream(self, draw: random.Random) -> None:
        fields = self._fields(draw)
        finished = 0
        async for piece in await self._client.completions.create(**fields, stream=True):  # type: ignore[call-overload]
            finished += sum(choice.finish_reason is not None for choice in piece.choices)
        assert finished == len(fields["prompt"]), "a stream broke off"  # type: ignore[arg-type]

    async def _score(self, draw: random.Random) -> None:
        texts = draw.sample(self._texts, 16)
        answer = await self._http.post("/v1/scores", json={"scorer": draw.choice(("pep8", "pii")), "input": texts})
        assert answer.status_code == 200, f"scores: {answer.text}"
        assert len(answer.json()["data"]) == 16, "scores are missing"

    async def _leave(self, draw: random.Random) -> None:
        """A client that goes away in the middle of its stream."""
        fields = self._fields(draw) | {"max_tokens": 100}
        stream = await self._client.completions.create(**fields, stream=True)  # type: ignore[call-overload]
        async for _ in stream:
            break
        await stream.close()


def server_memory_mb(root: int) -> dict[str, float]:
    """Resident memory of a process and all that descend from it, by name and id, without the pages that are shared.

    Those are Ray's object store and mapped libraries.
    """
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            resident, shared = map(int, (folder / "statm").read_text().split()[1:3])
            title = (folder / "cmdline").read_text().partition("\0")[0]
            # Of an actor without the method that it is at.
            title = title.partition(".")[0] if title.startswith("ray::") else title.rpartition("/")[2]
            names[pid] = f"{title} {pid}"
            pages[pid] = resident - shared
        except (ValueError, OSError):
            continue  # it has ended, or is no process
    found = {}
    for pid in pages:
        above = pid
        while above in parents and above != root:
            above = parents[above]
        if above == root:
            found[names[pid]] = pages[pid] * 4096 / 2**20
    return found


async def soak(url: str, pid: int, *, seconds: float) -> tuple[Tally, Memory]:
    """What the clients saw, and seconds and MB of the server's processes."""
    clients = Clients(url, seconds=seconds)
    running = asyncio.create_task(clients.run())
    memory: Memory = []
    started = time.monotonic()
    while not running.done():
        memory.append((time.monotonic() - started, await asyncio.to_thread(server_memory_mb, pid)))
        await asyncio.wait([running], timeout=SAMPLE_S)
    await running
    return clients.tally, memory


def growth_mb_per_min(memory: Memory, name: str | None = None) -> float:
    """Slope over the second half, of one process or of all: in the first half caches and pools fill."""
    half = memory[len(memory) // 2 :]
    if len(half) < 2:
        return 0.0
    amounts = [sum(by_process.values()) if name is None else by_process.get(name, 0.0) for _, by_process in half]
    slope, _ = statistics.linear_regression([at for at, _ in half], amounts)
    return 60 * slope


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, our_server(make_checkpoint(Path(folder) / "tiny")) as (url, pid):
        tally, memory = asyncio.run(soak(url, pid, seconds=arguments.seconds))
    growth = growth_mb_per_min(memory)
    by_process = {name: round(growth_mb_per_min(memory, name), 2) for name in memory[-1][1]}
    most = sorted(by_process, key=lambda name: -by_process[name])[:5]
    found = {
        "bench": "soak",
        "seconds": arguments.seconds,
        "requests": dict(tally.requests),
        "refused_429": tally.refused,
        "lost": len(tally.lost),
        "errors_other_than_429": len(tally.errors),
        "memory_mb": [round(sum(memory[0][1].values())), round(sum(memory[-1][1].values()))],
        "memory_growth_mb_per_min": round(growth, 2),
        "growth_of_the_most_growing": {name: by_process[name] for name in most},
    }
    print(json.dumps(found), flush=True)
    for line in (tally.lost + tally.errors)[:10]:
        print(line, file=sys.stderr)
    is_flat = growth <= MAX_GROWTH_MB_PER_MIN or arguments.seconds < SHORTEST_JUDGED_S
    if arguments.seconds < SHORTEST_JUDGED_S:
        print(f"memory is not judged in less than {SHORTEST_JUDGED_S:g} s")
    met = not tally.lost and not tally.errors and is_flat and sum(tally.requests.values()) > 0
    print("met" if met else "missed", flush=True)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
