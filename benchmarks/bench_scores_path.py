"""CPU time on the path of `/v1/scores`, by part, against scoring the same texts in process.

    python -m benchmarks.bench_scores_path
    python -m benchmarks.bench_scores_path --pairs 3 --scorers PEP8Scorer

`bench_serve` measures what a client waits for, which on a busy machine is mostly other programs. This counts the CPU
time of what one request makes the server compute: reading and checking the body, handing the texts to the scorer's own
process, scoring there, writing the scores. Ray Serve's proxy and its call of the replica are left out: they are in
`bench_serve`. Each batch is new to both sides, the order alternates, and a ratio is in process / the path, so that 1
means that the path costs nothing; the median over pairs, with the lowest and the highest.
"""

import argparse
import asyncio
import json
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from phf_ray.scorers.build import build_scorer
from serve.engines.scorer import LocalScorer
from serve.schemas import ScoresRequest
from serve.settings import ServedScorer

BATCH, TEXT_CHARS = 256, 1000
SCORERS = ("PEP8Scorer", "PIIScorer")
AT_LEAST = 0.9


def batches_of_source(num_batches: int) -> list[list[str]]:
    """Return pieces of the standard library, each of them once."""
    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        texts += [source[begin : begin + TEXT_CHARS] for begin in range(0, len(source) - TEXT_CHARS, TEXT_CHARS)]
    if len(texts) < num_batches * BATCH:
        raise ValueError(
            f"the standard library has {len(texts)} pieces; ask for at most {len(texts) // BATCH - 1} pairs"
        )
    return [texts[begin : begin + BATCH] for begin in range(0, num_batches * BATCH, BATCH)]


def cpu_ms(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started)


def child_cpu_ms(pid: int) -> float:
    """CPU time of a process's main thread so far; Linux counts it in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[0]) / 1e6


def on_the_path(served: LocalScorer, body: bytes) -> dict[str, float]:
    """CPU milliseconds of each part for one request."""
    requests: list[ScoresRequest] = []
    reading = cpu_ms(lambda: requests.append(ScoresRequest.model_validate(json.loads(body))))
    before = child_cpu_ms(served.pid)
    replica = cpu_ms(lambda: asyncio.run(served.score(requests[0].texts, segments=False)))
    return {"reading_ms": reading, "replica_ms": replica, "scoring_ms": child_cpu_ms(served.pid) - before}


def bench(class_name: str, *, num_pairs: int) -> dict[str, object]:
    warm_up, *batches = batches_of_source(num_pairs + 1)
    scorer = build_scorer({"class_name": class_name})
    served = LocalScorer(ServedScorer(scorer={"class_name": class_name}))
    try:
        scorer.score_all(warm_up)
        on_the_path(served, _body(warm_up))
        in_process: list[float] = []
        parts: list[dict[str, float]] = []
        for pair, texts in enumerate(batches):
            steps: list[Callable[[], None]] = [
                lambda texts=texts: in_process.append(cpu_ms(lambda: scorer.score_all(texts))),  # type: ignore[misc]
                lambda texts=texts: parts.append(on_the_path(served, _body(texts))),  # type: ignore[misc]
            ]
            for step in reversed(steps) if pair % 2 else steps:
                step()
    finally:
        served.close()
    ratios = sorted(ours / sum(path.values()) for ours, path in zip(in_process, parts, strict=True))
    return {
        "bench": f"/v1/scores {class_name}, {BATCH} x {TEXT_CHARS:,} characters: CPU in process / on the path",
        "ratio": round(statistics.median(ratios), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "target": f">= {AT_LEAST}",
        "verdict": "met" if statistics.median(ratios) >= AT_LEAST else "missed",
        "in_process_ms": round(statistics.median(in_process), 1),
        **{name: round(statistics.median(path[name] for path in parts), 1) for name in parts[0]},
    }


def _body(texts: list[str]) -> bytes:
    return json.dumps({"scorer": "any", "input": texts}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--scorers", nargs="+", default=SCORERS)
    arguments = parser.parse_args()
    for class_name in arguments.scorers:
        print(json.dumps(bench(class_name, num_pairs=arguments.pairs)), flush=True)


if __name__ == "__main__":
    main()
