"""Speed of serving over HTTP, against bare `model.generate`, `transformers serve` and a scorer called in process.

    python -m benchmarks.bench_serve                  # 5 interleaved pairs of everything
    python -m benchmarks.bench_serve --pairs 2 --parts latency throughput

A random GPT-2 of 3 layers x 128 with a vocabulary of 1024: with a model that small, what is measured is the serving.
Each reference is measured in the same run, interleaved with what it is compared to; a ratio is the median over pairs,
with the lowest and the highest pair. `within noise`: the median misses the target, the best pair meets it. The clients
run on the same machine as the servers. A chat and the completion of its tokens: 9 pairs or more; the time to the first
token of a streamed chat: beside 16 other streams, and alone. Scores: batches of 256 texts of 1,000 characters, new ones
every round.
Five pairs take about five minutes on 2 quiet cores.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import httpx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from jobs.serve import free_port
from phf_ray.scorers.build import build_scorer

ROOT = Path(__file__).parents[1]
# What `transformers serve` needs and our environment does not have; see the Makefile.
CLIENTS = Path(sys.prefix) / "clients"
NUM_TOKENS, NUM_CLIENTS = 64, 32
BATCH, TEXT_CHARS = 256, 1000
PROMPT = "def add(first, second):\n"
PARTS = ("latency", "throughput", "chat", "scores", "transformers")
NUM_CHAT_PAIRS, NUM_STREAMS = 9, 16
END_OF_TEXT = "<|endoftext|>"


def make_checkpoint(directory: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = [path.read_text(encoding="utf-8") for path in sorted(Path(sysconfig.get_path("stdlib")).glob("a*.py"))]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sources, trainer)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=1024,
        n_positions=256,
        n_embd=128,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT).save_pretrained(
        directory
    )
    return directory


@contextlib.contextmanager
def server(command: Sequence[str], url: str, *, probe: str, **variables: str) -> Iterator[tuple[str, int]]:
    """A server as a subprocess, with environment variables; yields its URL and process id once `probe` answers 200."""
    # Ray runs its workers at niceness 15: on a busy machine they would lose against references that run at 0.
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
    environment = {**os.environ, **own, **variables}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + 300
            while not _answers(url + probe):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read()[-4000:]}")
                time.sleep(0.5)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(timeout=120)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def our_server(checkpoint: Path) -> contextlib.AbstractContextManager[tuple[str, int]]:
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "jobs.serve", "--model", f"tiny={checkpoint}", "--scorers", "pep8,pii"]
    # Its words are those of the message alone: a chat and a completion of the same text have the same tokens.
    command += ["--chat-template", "plain"]
    return server([*command, "--port", str(port)], f"http://127.0.0.1:{port}", probe="/health")


def transformers_server(checkpoint: Path, *flags: str) -> contextlib.AbstractContextManager[tuple[str, int]]:
    port = free_port("127.0.0.1")
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(checkpoint), "--device", "cpu", "--port", str(port), *flags]
    return server(command, f"http://127.0.0.1:{port}", probe="/health", PYTHONPATH=str(CLIENTS))


def completion(model: str, *, seed: int) -> dict[str, object]:
    # min_tokens and ignore_eos are vLLM's; a server that knows neither gets the same length by its random weights.
    return {"model": model, "prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 1.0, "seed": seed}


async def load(url: str, model: str, *, num_clients: int, num_requests: int, ours: bool) -> float:
    """Generated tokens per second of `num_clients` clients, each sending its requests one after the other."""
    extra = {"ignore_eos": True, "control": "none"} if ours else {}
    limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:

        async def client(number: int) -> int:
            num_tokens = 0
            for turn in range(num_requests):
                body = completion(model, seed=1000 * number + turn) | extra
                answer = await http.post("/v1/completions", json=body)
                answer.raise_for_status()
                num_tokens += answer.json()["usage"]["completion_tokens"]
            return num_tokens

        started = time.perf_counter()
        num_tokens = sum(await asyncio.gather(*map(client, range(num_clients))))
        return num_tokens / (time.perf_counter() - started)


def tokens_per_s(url: str, model: str, *, num_clients: int, ours: bool = True) -> float:
    num_requests = 8 if num_clients == 1 else 3
    return asyncio.run(load(url, model, num_clients=num_clients, num_requests=num_requests, ours=ours))


def request_s(url: str) -> float:
    """Median time of one request with nothing else running."""
    body = completion("tiny", seed=1) | {"ignore_eos": True}
    with httpx.Client(base_url=url, timeout=60) as http:
        return _median_s(lambda: http.post("/v1/completions", json=body).raise_for_status())


def chat_body(*, seed: int, **fields: object) -> dict[str, object]:
    body = completion("tiny", seed=seed) | {"ignore_eos": True, **fields}
    return {name: value for name, value in body.items() if name != "prompt"} | {
        "messages": [{"role": "user", "content": PROMPT}]
    }


def chat_s(url: str) -> float:
    """Median time of one chat with nothing else running."""
    body = chat_body(seed=1)
    with httpx.Client(base_url=url, timeout=60) as http:
        return _median_s(lambda: http.post("/v1/chat/completions", json=body).raise_for_status())


def same_tokens(url: str) -> None:
    """Raise RuntimeError if a chat and a completion have other tokens, or other texts."""
    with httpx.Client(base_url=url, timeout=60) as http:
        chat = http.post("/v1/chat/completions", json=chat_body(seed=1)).raise_for_status().json()
        plain = http.post("/v1/completions", json=completion("tiny", seed=1) | {"ignore_eos": True}).json()
    if (chat["usage"], chat["choices"][0]["message"]["content"]) != (plain["usage"], plain["choices"][0]["text"]):
        raise RuntimeError(f"a chat and a completion of the same text differ: {chat} and {plain}")


async def first_token_s(url: str, *, num_streams: int, repeats: int = 5) -> float:
    """Median time to the first words of a streamed chat while `num_streams` others run without a pause."""
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=100)) as http:

        async def first(body: dict[str, object], running: asyncio.Event | None = None) -> float:
            started, came = time.perf_counter(), 0.0
            async with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if (
                        not came
                        and line.startswith("data: {")
                        and json.loads(line[6:])["choices"][0]["delta"].get("content")
                    ):
                        came = time.perf_counter() - started
                        if running is not None:
                            running.set()
            return came

        async def other(number: int, running: asyncio.Event) -> None:
            for turn in range(10_000):
                await first(chat_body(seed=1000 * number + turn, max_tokens=200), running)

        begun = [asyncio.Event() for _ in range(num_streams)]
        others = [asyncio.create_task(other(number, event)) for number, event in enumerate(begun, start=1)]
        try:
            await asyncio.gather(*(event.wait() for event in begun))
            return statistics.median([await first(chat_body(seed=turn, max_tokens=8)) for turn in range(repeats)])
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


def generate_s(checkpoint: Path) -> Callable[[], float]:
    model = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    ids = PreTrainedTokenizerFast.from_pretrained(checkpoint)(PROMPT, return_tensors="pt").input_ids
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS}
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def once() -> None:
        model.generate(ids, attention_mask=mask, pad_token_id=0, **options)

    return lambda: _median_s(once)


def _median_s(call: Callable[[], object], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


class Batches:
    """Batches of texts, over HTTP and in process: each side gets the same ones, and each of them once."""

    def __init__(self, url: str, name: str, class_name: str, *, num_batches: int):
        self._http = httpx.Client(base_url=url, timeout=300)
        self._name = name
        self._scorer = build_scorer({"class_name": class_name})
        texts = stdlib_texts(BATCH * num_batches, num_chars=TEXT_CHARS)
        batches = [texts[begin : begin + BATCH] for begin in range(0, len(texts), BATCH)]
        self._over_http, self._in_process = iter(batches), iter(batches)

    def over_http(self) -> float:
        """Texts per second."""
        texts = next(self._over_http)
        started = time.perf_counter()
        self._http.post("/v1/scores", json={"scorer": self._name, "input": texts}).raise_for_status()
        return len(texts) / (time.perf_counter() - started)

    def in_process(self) -> float:
        texts = next(self._in_process)
        started = time.perf_counter()
        self._scorer.score_all(texts)
        return len(texts) / (time.perf_counter() - started)


def pairs_of(
    num_pairs: int, measured: Callable[[], float], reference: Callable[[], float]
) -> list[tuple[float, float]]:
    """(measured, reference) pairs, interleaved, after one warm-up of each; the order alternates."""
    measured()
    reference()
    found = []
    for pair in range(num_pairs):
        if pair % 2:
            second = reference()
            found.append((measured(), second))
        else:
            found.append((measured(), reference()))
    return found


def report(
    name: str,
    pairs: Sequence[tuple[float, float]],
    *,
    unit: str,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    line = {
        "bench": name,
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        **_judged(ratios, at_least=at_least, at_most=at_most),
        "measured": round(statistics.median(ours for ours, _ in pairs), 4),
        "reference": round(statistics.median(theirs for _, theirs in pairs), 4),
        "unit": unit,
    }
    print(json.dumps(line), flush=True)


def _judged(ratios: Sequence[float], *, at_least: float | None, at_most: float | None) -> dict[str, str]:
    """Return target and verdict; neither for what is only measured."""
    if at_least is None and at_most is None:
        return {}
    target = f">= {at_least}" if at_least is not None else f"<= {at_most}"
    return {"target": target, "verdict": verdict(ratios, at_least=at_least, at_most=at_most)}


def verdict(ratios: Sequence[float], *, at_least: float | None, at_most: float | None) -> str:
    def is_met(ratio: float) -> bool:
        return (at_least is None or ratio >= at_least) and (at_most is None or ratio <= at_most)

    if is_met(statistics.median(ratios)):
        return "met"
    return "within noise" if any(map(is_met, ratios)) else "missed"


def stdlib_texts(num_texts: int, *, num_chars: int) -> list[str]:
    """Pieces of the standard library, in order."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[b-z]*.py")):
        source = path.read_text(encoding="utf-8")
        texts += [source[begin : begin + num_chars] for begin in range(0, len(source) - num_chars, num_chars)]
        if len(texts) >= num_texts:
            return texts[:num_texts]
    raise ValueError(f"the standard library has {len(texts)} pieces of {num_chars} characters; ask for fewer")


def bench(checkpoint: Path, *, num_pairs: int, parts: Sequence[str]) -> None:
    with our_server(checkpoint) as (url, _):
        if "latency" in parts:
            pairs = pairs_of(num_pairs, lambda: request_s(url), generate_s(checkpoint))
            report("one request / generate", pairs, unit="s", at_most=1.3)
        if "throughput" in parts:
            pairs = pairs_of(
                num_pairs,
                lambda: tokens_per_s(url, "tiny", num_clients=NUM_CLIENTS),
                lambda: tokens_per_s(url, "tiny", num_clients=1),
            )
            report("32 clients / 1 client", pairs, unit="tokens/s", at_least=4)
        if "chat" in parts:
            bench_chat(url, num_pairs=max(NUM_CHAT_PAIRS, num_pairs))
        if "scores" in parts:
            for name, class_name in (("pep8", "PEP8Scorer"), ("pii", "PIIScorer")):
                batches = Batches(url, name, class_name, num_batches=num_pairs + 1)
                pairs = pairs_of(num_pairs, batches.over_http, batches.in_process)
                bench_name = f"/v1/scores {name}, {BATCH} x {TEXT_CHARS:,} characters / in process"
                report(bench_name, pairs, unit="texts/s", at_least=0.85)
        if "transformers" in parts:
            bench_transformers(url, checkpoint, num_pairs=num_pairs)


def bench_chat(url: str, *, num_pairs: int) -> None:
    same_tokens(url)
    pairs = pairs_of(num_pairs, lambda: chat_s(url), lambda: request_s(url))
    report("one chat / one completion of the same tokens", pairs, unit="s", at_most=1.05)
    pairs = pairs_of(
        num_pairs,
        lambda: asyncio.run(first_token_s(url, num_streams=NUM_STREAMS)),
        lambda: asyncio.run(first_token_s(url, num_streams=0)),
    )
    report(f"first token of a streamed chat beside {NUM_STREAMS} streams / alone", pairs, unit="s")


def bench_transformers(url: str, checkpoint: Path, *, num_pairs: int) -> None:
    if not CLIENTS.is_dir():
        print(json.dumps({"bench": "transformers serve", "skipped": "needs accelerate: make clients"}), flush=True)
        return
    for flags, at_least in (((), 2.0), (("--continuous-batching",), 0.8)):
        with transformers_server(checkpoint, *flags) as (theirs, _):
            reference = partial(tokens_per_s, theirs, str(checkpoint), num_clients=NUM_CLIENTS, ours=False)
            pairs = pairs_of(num_pairs, partial(tokens_per_s, url, "tiny", num_clients=NUM_CLIENTS), reference)
        name = f"32 clients / transformers serve {' '.join(flags)}".strip()
        report(name, pairs, unit="tokens/s", at_least=at_least)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench(make_checkpoint(Path(folder) / "tiny"), num_pairs=arguments.pairs, parts=arguments.parts)


if __name__ == "__main__":
    main()
