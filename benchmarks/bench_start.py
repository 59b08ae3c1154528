"""From a command to its first result: small work in the process of the command against the same on a Ray of its own.

    python -m benchmarks.bench_start [--pairs 5]

Scoring: ten files of 40 lines each, from the command to its end. Training: a model of two layers on ten documents, from
the command to the line of its first step, packing included. Help: CPU seconds of `phf COMMAND --help`, without a Ray.
Each pair runs one after the other; the clock is the wall's, except for help. The load is printed, because it decides.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_score import machine

ROOT = Path(__file__).resolve().parents[1]
HELP = ("score-corpus", "train-lm", "evaluate-lm")
BOUNDS_S = {"scoring 10 documents": 4.0, "training to its first step": 20.0}
HELP_BOUND_S = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    print(machine(), flush=True)
    for command in HELP:
        spent = [cpu_seconds(command, "--help") for _ in range(options.pairs)]
        print(f"phf {command} --help: {shown(spent)} CPU s, bound {HELP_BOUND_S:g}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        for what, measure in (("scoring 10 documents", score), ("training to its first step", first_step)):
            print(pair_line(what, measure, folder, pairs=options.pairs), flush=True)
    return 0


def pair_line(what: str, measure: Callable[[Path, bool], float], folder: Path, *, pairs: int) -> str:
    here, on_ray = [], []
    for number in range(pairs):
        on_ray.append(measure(folder / f"{what} {number} on ray", True))
        here.append(measure(folder / f"{what} {number} here", False))
    ratios = [ray_s / here_s for ray_s, here_s in zip(on_ray, here, strict=True)]
    return (
        f"{what}: on Ray {shown(on_ray)} s, in the process {shown(here)} s (bound {BOUNDS_S[what]:g}), "
        f"ratio {shown(ratios)}, load {os.getloadavg()[0]:.1f}"
    )


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def write_inputs(folder: Path) -> None:
    (folder / "files").mkdir()
    for number in range(10):
        (folder / "files" / f"{number}.py").write_text(f"def f(x): return x+{number}\n" * 40, encoding="utf-8")
    task = {
        "dataset": {"datasets": [str(folder / "files")], "seq_length": 32},
        "tokenizer": {"path_or_name": str(ROOT / "tests" / "golden" / "tokenizer")},
        "model": {
            "path_or_name": None,
            "model_type": "gpt2",
            "config_kwargs": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32},
        },
        "training": {"num_tokens": 2000, "effective_batch_size": 8, "precision": "fp32"},
    }
    (folder / "task.yml").write_text(json.dumps(task), encoding="utf-8")


def score(output: Path, on_ray: bool) -> float:
    started = time.monotonic()
    job = start("score-corpus", "--task", "pep8", "--input", output.parent / "files", "--output", output, on_ray=on_ray)
    said = job.communicate()[0]
    if job.returncode != 0:
        raise SystemExit(said)
    return time.monotonic() - started


def first_step(output: Path, on_ray: bool) -> float:
    """Return the seconds to the line of the first step. Each run has a storage, and so blocks, of its own."""
    words = ("--task", output.parent / "task.yml", "--run-name", "run", "--storage-path", output)
    started = time.monotonic()
    job = start("train-lm", *words, on_ray=on_ray)
    assert job.stdout is not None
    seconds, lines = None, []
    for line in job.stdout:
        lines.append(line)
        if seconds is None and "step 1/" in line:
            seconds = time.monotonic() - started
    if job.wait() != 0 or seconds is None:
        raise SystemExit("".join(lines))
    return seconds


def start(command: str, *words: str | Path, on_ray: bool) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-c", "from jobs.cli import main; main()", command, *map(str, words)],
        cwd=ROOT,
        env=environment | ({"RAY_ADDRESS": "local"} if on_ray else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def cpu_seconds(command: str, *words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = start(command, *words, on_ray=False)
    job.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
