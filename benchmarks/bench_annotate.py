"""Judging beside bare loops: requests against a bare asyncio client, and answers from the cache against bare reads.

    python -m benchmarks.bench_annotate [--rounds 5] [--parts http cache rule memory]

http: a server that answers after 500 ms, 64 requests in flight, ours and a bare asyncio client in turns; a ratio is of
requests per second. cache: 50,000 rows whose answers are stored; the bare loop renders each prompt, hashes it and
reads the answer from SQLite, both by CPU time. Start-up is left out of both: what counts is the difference between two
sizes. rule: a judge that computes 5 ms for a row, on two actors of Ray and on one, without the first and last parts.
memory: the peak of the process that plans and drives, for ten times the rows. Prints a table and one line of JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.bench_train import Verdict, judge, print_verdicts
from phf_ray.judging import Judge
from phf_ray.judging.annotate import annotate, judge_here
from phf_ray.judging.annotate_plan import AnnotateRequest
from phf_ray.judging.annotators import AskedAnnotator
from phf_ray.judging.desk import DeskSettings, StoreDesk, endpoints_of
from phf_ray.judging.pairs import Pair
from phf_ray.judging.pool import load_pool
from phf_ray.judging.question import Answer
from phf_ray.judging.sources import JudgingSource
from phf_ray.judging.store import keep_answer

PARTS = ("http", "cache", "rule", "memory")
IN_FLIGHT, DELAY_S = 64, 0.5
POOL = {
    "annotators": [
        {
            "name": "asked",
            "judge": {"chat": {"model": "m", "max_in_flight": IN_FLIGHT}},
            "prompt": "configs/annotators/prompts/guideline_1.txt",
            "parser": {"regex": {1: r"Output \(a\)", 2: r"Output \(b\)"}},
            "decoding": {"temperature": 0.0, "max_tokens": 50},
        }
    ]
}
RULE = {"annotators": [{"name": "slow", "judge": {"class_name": "benchmarks.bench_annotate:SlowJudge"}}]}


class SlowJudge(Judge):
    """Computes 5 ms for a pair."""

    def prefer(self, pairs: Sequence[Pair]) -> list[float]:
        said = []
        for pair in pairs:
            end = time.process_time() + 0.005
            while time.process_time() < end:
                pass
            said.append(1.0 + (len(pair.output_2) > len(pair.output_1)))
        return said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_annotate", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--requests", type=int, default=1280)
    parser.add_argument("--rows", type=int, default=50_000, help="rows that are answered from the cache")
    parser.add_argument("--rule-rows", type=int, default=6_000)
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.peak_of is not None:
            print(_peak_here(folder, arguments.peak_of))
            return 0
        verdicts = list(_verdicts(folder, arguments))
    print_verdicts(verdicts)
    sizes = {"requests": arguments.requests, "rows": arguments.rows, "cores": os.cpu_count()}
    report = {"bench": "annotate", "machine": platform.machine(), **sizes}
    print(json.dumps(report | {"verdicts": [asdict(each) for each in verdicts]}))
    return 0


def _verdicts(folder: Path, arguments: argparse.Namespace) -> Iterator[Verdict]:
    rounds = range(arguments.rounds)
    if "http" in arguments.parts:
        ratios = [_http_ratio(folder / f"http-{number}", arguments.requests) for number in rounds]
        yield judge("requests/s / bare asyncio client", ratios, at_least=0.9)
    if "cache" in arguments.parts:
        ratios = _cache_ratios(folder / "cached", arguments.rows, arguments.rounds)
        yield judge("rows/s from the cache / bare reads", ratios, at_least=0.5)
    if "rule" in arguments.parts:
        yield judge("rows/s of two actors / one", [_actors_ratio(folder, arguments.rule_rows)], at_least=1.5)
    if "memory" in arguments.parts:
        small, large = (_peak(rows) for rows in (arguments.rows // 10, arguments.rows))
        yield judge("peak of the driver, 10 x the rows", [large / small], at_most=1.25)


def pair_rows(num: int) -> list[dict[str, str]]:
    """Answers of about 600 characters."""
    text = "An answer of some words, which differ from those of the other one. " * 9
    return [
        {"instruction": f"Write about {number}", "output_1": f"{text}{number}", "output_2": f"{number} {text}"}
        for number in range(num)
    ]


def request_of(folder: Path, rows: Sequence[Mapping[str, str]], pool: Mapping[str, Any], url: str) -> AnnotateRequest:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"pairs-{len(rows)}.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    over = {"url": url} if pool is POOL else {}
    return AnnotateRequest(JudgingSource(pairs=str(file)), load_pool(pool, over=over))


# http


def _http_ratio(folder: Path, num: int) -> float:
    with _server() as url:
        rows = pair_rows(num)
        request = request_of(folder, rows, POOL, url)
        bare = num / asyncio.run(_bare_requests(request, url, rows))
        since = time.perf_counter()
        desk = DeskSettings(str(folder / "cache"), endpoints_of(request.pool))
        annotate(request, str(folder / "out"), desk=desk)
        return num / (time.perf_counter() - since) / bare


async def _bare_requests(request: AnnotateRequest, url: str, rows: Sequence[Mapping[str, str]]) -> float:
    """Return how long an asyncio client takes for the same bodies, over as many connections."""
    annotator = request.pool.build_asked()["asked"]
    assert isinstance(annotator, AskedAnnotator)
    bodies = []
    for row in rows:
        question = annotator.question([Pair(row["instruction"], "", row["output_1"], row["output_2"])])
        messages = [{"role": one.role, "content": one.content} for one in question.messages or ()]
        bodies.append(json.dumps({"model": "bare", "messages": messages, **question.decoding}).encode())
    host, _, port = url.removeprefix("http://").partition(":")
    waiting = iter(bodies)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for body in waiting:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(answer.partition("content-length: ")[2].partition("\r\n")[0])
            json.loads(await reader.readexactly(length))
        writer.close()

    since = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - since


class _server:  # noqa: N801  used like a function
    """A judge in a process of its own, so that it takes nothing from the loop that is measured."""

    def __enter__(self) -> str:
        code = (
            "import sys; sys.path.insert(0, 'tests/support'); from judge_server import JudgeServer; "
            f"server = JudgeServer(delay_s={DELAY_S}); print(server.url, flush=True); server._loop.run_forever()"
        )
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


# cache


def _cache_ratios(folder: Path, num: int, rounds: int) -> list[float]:
    url = "http://127.0.0.1:9"  # nobody is asked
    rows = pair_rows(num)
    requests = [request_of(folder, some, POOL, url) for some in (rows[: num // 10], rows)]
    desk = DeskSettings(str(folder / "cache"), endpoints_of(requests[0].pool))
    opened = StoreDesk(desk)
    annotator = requests[0].pool.build_asked()["asked"]
    assert isinstance(annotator, AskedAnnotator)
    answer = Answer("Output (a)", None, 300, 5, None, 0.5)
    for begin in range(0, num, 1000):
        questions = [
            annotator.question([shown])
            for row in rows[begin : begin + 1000]
            for pair in [Pair(row["instruction"], "", row["output_1"], row["output_2"])]
            for shown in (pair, pair.swapped())
        ]
        opened.store.submit(lambda db, some=questions: [keep_answer(db, one.key, one, answer) for one in some]).result()

    def bare(some: Sequence[Mapping[str, str]]) -> float:
        since = time.process_time()
        for row in some:
            pair = Pair(row["instruction"], "", row["output_1"], row["output_2"])
            assert opened.store.find(annotator.question([pair]).key) is not None
        return time.process_time() - since

    def ours(request: AnnotateRequest, name: str) -> float:
        since = time.process_time()
        annotate(request, str(folder / name), desk=desk)
        return time.process_time() - since

    ratios = []
    for number in range(rounds):
        expected = bare(rows) - bare(rows[: num // 10])
        taken = ours(requests[1], f"all-{number}") - ours(requests[0], f"some-{number}")
        ratios.append(expected / taken)
    opened.store.close()
    return ratios


# rule, memory


def _actors_ratio(folder: Path, num: int) -> float:
    import ray

    from jobs import cli
    from phf_ray.judging.on_ray import judge_on_ray

    cli.start_ray()
    request = request_of(folder / "rule", pair_rows(num), RULE, "")
    desk = DeskSettings(str(folder / "rule-cache"), {})
    speeds = []
    for actors in (1, 2):
        timed = _Timed(judge_on_ray(max_actors=actors))
        annotate(request, str(folder / f"rule-{actors}"), desk=desk, runner=timed)
        speeds.append(timed.rows_per_s)
    ray.shutdown()
    return speeds[1] / speeds[0]


class _Timed:
    """A runner that measures its steady state: the middle of the outcomes, without the first and last fourth."""

    def __init__(self, runner: Callable[..., Iterator[Mapping[str, Any]]]):
        self._runner = runner
        self._seen: list[tuple[float, int]] = []

    def __call__(self, work: Any, shards: Any, desk: Any) -> Iterator[Mapping[str, Any]]:
        for outcome in self._runner(work, shards, desk):
            self._seen.append((time.perf_counter(), json.loads(outcome["stats"])["rows"]["rows"]))
            yield outcome

    @property
    def rows_per_s(self) -> float:
        middle = self._seen[len(self._seen) // 4 : -(len(self._seen) // 4) or None]
        return sum(rows for _, rows in middle[1:]) / (middle[-1][0] - middle[0][0])


def _peak(rows: int) -> float:
    command = [sys.executable, "-m", "benchmarks.bench_annotate", "--peak-of", str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _peak_here(folder: Path, rows: int) -> int:
    """Return the peak of this process, which plans and drives, while others would judge."""
    pool = {"annotators": [{"name": "longer", "judge": {"rule": "longer"}}]}
    file = folder / "pairs.jsonl"
    with file.open("a", encoding="utf-8") as lines:
        for begin in range(0, rows, 1000):
            for row in pair_rows(min(1000, rows - begin)):
                lines.write(json.dumps({**row, "instruction": f"{begin} {row['instruction']}"}) + "\n")
    request = AnnotateRequest(JudgingSource(pairs=str(file)), load_pool(pool))
    annotate(request, str(folder / "out"), desk=DeskSettings(str(folder / "cache"), {}), runner=judge_here)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
