"""Throughput of the scoring job: Ray Data on two actors against one process, and its cost as the corpus grows.

    python -m benchmarks.bench_pipeline                       # 5 interleaved pairs on the standard library
    python -m benchmarks.bench_pipeline --parts scale         # 1x, 4x and 16x of a small corpus

The reference is the scorer called in a loop on texts in memory: no reading, no writing, no Ray. Steady state is the
middle 70% of the time between the first and the last part; reference and job are measured in the same run, in turn.
What two processes reach with that loop, each on all texts, is what the machine has to give.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from phf_ray.config import parse_config
from phf_ray.corpus.segments import build_segmenter
from phf_ray.scorers.build import build_scorer
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.on_ray import RayScoring
from phf_ray.scoring.progress import ScoreProgress
from phf_ray.scoring.request import ScoringRequest

SCORER = {"class_name": "PEP8Scorer"}
TARGETS = {"steady state": 1.8, "first to last part": 1.6}
NUM_ACTORS = 2
FLAT = 1.15
"""Most that a further document may cost between 4x and 16x over what it costs between 1x and 4x."""
DRIVER_GROWTH_MB = 50
"""Most that the driver's peak memory may grow by on 16x the corpus: noise of its allocator."""


def standard_library(*, max_characters: int | None = None) -> dict[str, str]:
    """Relative path -> text of Python's own modules, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    texts: dict[str, str] = {}
    size = 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if {"test", "tests", "site-packages", "idlelib", "__pycache__"} & set(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        texts[str(name)] = text
        size += len(text)
        if max_characters is not None and size >= max_characters:
            break
    return texts


def write_copies(texts: dict[str, str], folder: Path, *, copies: int) -> None:
    for copy in range(copies):
        for name, text in texts.items():
            path = folder / str(copy) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def one_process(texts: dict[str, str]) -> float:
    """Characters per second of the scorer alone."""
    scorer, segment = build_scorer(SCORER), build_segmenter("lines")
    begin = time.perf_counter()
    for text in texts.values():
        scorer.score_segments(segment(text))
    return sum(map(len, texts.values())) / (time.perf_counter() - begin)


def side_by_side(texts: dict[str, str]) -> float:
    """Characters per second of as many such processes as there are actors, together."""
    with ProcessPoolExecutor(NUM_ACTORS, mp_context=multiprocessing.get_context("spawn")) as pool:
        # So that none of them is still being started.
        list(pool.map(one_process, [dict(itertools.islice(texts.items(), 1))] * NUM_ACTORS))
        return sum(pool.map(one_process, [texts] * NUM_ACTORS))


def on_ray(folder: Path, output: Path) -> dict[str, float]:
    """Characters per second of the job on the Ray that runs, over three stretches of time."""
    pools = {"cpu": {"min": NUM_ACTORS, "max": NUM_ACTORS}}
    config = parse_config({"scoring": {"scorers": [SCORER], "segmenter": "lines", "pools": pools}})
    points: list[tuple[float, int]] = []

    def note(progress: ScoreProgress) -> None:
        points.append((progress.elapsed_s, progress.stats.characters))

    begin = time.perf_counter()
    manifest = run_scoring(
        ScoringRequest(config, inputs=[str(folder)]), str(output), progress=note, executor=RayScoring()
    )
    whole = time.perf_counter() - begin
    times, characters = np.array(points[1:], dtype=np.float64).T
    edges = np.interp([0.15, 0.85], [0, 1], [times[0], times[-1]])
    low, high = np.interp(edges, times, characters)
    return {
        "steady state": float((high - low) / (edges[1] - edges[0])),
        "first to last part": float((characters[-1] - characters[0]) / (times[-1] - times[0])),
        "with start and end": manifest.characters / whole,
    }


def start_ray() -> None:
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)


def bench_pairs(*, pairs: int, copies: int) -> dict[str, Any]:
    texts = standard_library()
    start_ray()
    alone: list[float] = []
    most: list[float] = []
    together: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "in")
        write_copies(texts, folder, copies=copies)
        for pair in range(pairs):
            alone.append(one_process(texts))
            most.append(side_by_side(texts) / alone[-1])
            together.append(on_ray(folder, Path(scratch, f"out{pair}")))
            print(f"pair {pair + 1}: {alone[-1]:,.0f} -> {together[-1]}", file=sys.stderr, flush=True)
    rows = []
    for name in together[0]:
        ratios = [both[name] / one for both, one in zip(together, alone, strict=True)]
        target = TARGETS.get(name)
        rows.append(
            {
                "name": name,
                "characters_per_s": statistics.median(both[name] for both in together),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "target": target,
                "verdict": verdict(ratios, target),
            }
        )
    return {
        "reference_characters_per_s": statistics.median(alone),
        "plain_processes_side_by_side": [statistics.median(most), min(most), max(most)],
        "rows": rows,
    }


def verdict(ratios: Sequence[float], target: float | None) -> str:
    if target is None:
        return ""
    if statistics.median(ratios) >= target:
        return "met"
    return "within noise" if max(ratios) >= target else "missed"


def bench_scale(*, base_characters: int) -> dict[str, Any]:
    """Each size in a process of its own: a process's peak memory never falls."""
    rows = []
    for copies in (1, 4, 16):
        command = [sys.executable, "-m", "benchmarks.bench_pipeline", "--one-size", str(copies), str(base_characters)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr, flush=True)
    one, four, sixteen = rows
    # Differences: what it takes to start and to end is the same for every size.
    early = (four["seconds"] - one["seconds"]) / (four["documents"] - one["documents"])
    late = (sixteen["seconds"] - four["seconds"]) / (sixteen["documents"] - four["documents"])
    growth_mb = sixteen["driver_peak_mb"] - one["driver_peak_mb"]
    return {
        "rows": rows,
        "ms_per_document": {"1x to 4x": 1000 * early, "4x to 16x": 1000 * late},
        "cost_ratio": late / early,
        "flat_cost": "met" if late <= FLAT * early else "missed",
        "driver_growth_mb": growth_mb,
        "driver_memory": "met" if growth_mb <= DRIVER_GROWTH_MB else "missed",
    }


def one_size(copies: int, base_characters: int) -> dict[str, Any]:
    texts = standard_library(max_characters=base_characters)
    start_ray()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "in")
        write_copies(texts, folder, copies=copies)
        speed = on_ray(folder, Path(scratch, "out"))
    return {
        "copies": copies,
        "documents": len(texts) * copies,
        "seconds": sum(map(len, texts.values())) * copies / speed["with start and end"],
        "driver_peak_mb": peak_mb(),
    }


def peak_mb() -> float:
    """Most memory that this process held; `getrusage` would count that of the process which started it, too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def report(name: str, config: dict[str, Any], metrics: dict[str, Any]) -> None:
    hardware = {"machine": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    line = {"bench": name, "config": config, "hardware": hardware, "commit": commit.strip(), "metrics": metrics}
    print(json.dumps(line))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_pipeline", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("pairs", "scale"), default=["pairs", "scale"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--copies", type=int, default=3, help="of the standard library, for the job")
    parser.add_argument("--base-characters", type=int, default=6_000_000, help="of the 1x corpus")
    parser.add_argument("--one-size", nargs=2, type=int, metavar=("COPIES", "CHARACTERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one_size:
        print(json.dumps(one_size(*arguments.one_size)))
        return 0
    if "pairs" in arguments.parts:
        config = {"pairs": arguments.pairs, "copies": arguments.copies, "actors": NUM_ACTORS}
        report("pipeline_pairs", config, bench_pairs(pairs=arguments.pairs, copies=arguments.copies))
    if "scale" in arguments.parts:
        config = {"base_characters": arguments.base_characters}
        report("pipeline_scale", config, bench_scale(base_characters=arguments.base_characters))
    return 0


if __name__ == "__main__":
    sys.exit(main())
