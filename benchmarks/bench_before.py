"""What a step costs now and at an earlier commit: both sides in turns, each in a process of its own.

    python -m benchmarks.bench_before [--before COMMIT] [--pairs 15]

Objectives that know their weights before the log-probabilities are computed (MLE, unlikelihood, RWR) on GPT-2 of 4
layers x 256, vocabulary 8192, context 256, batch 8, in fp32 with one thread. The earlier commit is checked out into a
folder that is removed afterwards. A ratio is of CPU time, the median over pairs with lowest and highest. Prints a table
and one line of JSON; without git or the commit, says so and exits with 2.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.bench_train import judge, print_verdicts

BEFORE = "631397c"
"""The last commit whose objectives could not read log-probabilities."""
AT_MOST = 1.03
HERE = Path(__file__).parent.parent
OBJECTIVES = {
    "MLE": {"name": "MLE"},
    "Unlikelihood": {"name": "Unlikelihood", "score_threshold": 0.5, "alpha": 1.0},
    "RWR": {"name": "RWR", "beta": 1.0},
}
# Runs in both trees, so it uses only what both have. Answers each line, the name of an objective, with CPU seconds.
STEPPER = """
import json, sys, time
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.build import build_objective
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import TrainState, build_optimizer
from phf_ray.training.step import StepSettings, train_step

torch.set_num_threads(1)
torch.manual_seed(0)
sizes = dict(n_embd=256, n_layer=4, n_head=4, n_positions=256, vocab_size=8192, bos_token_id=0, eos_token_id=0)
model = LanguageModel(GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))).train()
state = TrainState(model, build_optimizer(model, weight_decay=0.1, betas=(0.9, 0.999), epsilon=1e-8))
ids, scores = torch.randint(8192, (8, 256)), torch.rand(8, 256)
batch = MicroBatch(ids, scores, torch.zeros(8, 256, dtype=torch.uint8), 0)
objectives = {name: build_objective(config) for name, config in json.loads(sys.argv[1]).items()}
for line in sys.stdin:
    since = time.process_time()
    train_step(
        state, [batch], objective=objectives[line.strip()], learning_rate=1e-4, settings=StepSettings()
    ).read()
    print(time.process_time() - since, flush=True)
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_before", description=__doc__.split("\n")[0])
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args(argv)
    try:
        with checked_out(arguments.before) as earlier:
            ratios = compare(earlier, num_pairs=arguments.pairs)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"git can't check out {arguments.before} here ({error}); a clone with history can", file=sys.stderr)
        return 2
    verdicts = [judge(f"{name}: CPU seconds / before", each, at_most=AT_MOST) for name, each in ratios.items()]
    print_verdicts(verdicts)
    report = {"bench": "before", "before": arguments.before, "verdicts": [asdict(each) for each in verdicts]}
    print(json.dumps(report))
    return 0


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The package as it was at this commit, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(HERE), "archive", commit, "phf_ray"], check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive)
        yield Path(folder)


def compare(earlier: Path, *, num_pairs: int) -> dict[str, list[float]]:
    sides = [_stepper(tree) for tree in (HERE, earlier)]
    ratios: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    try:
        for number in range(num_pairs + 1):
            for name, values in ratios.items():
                # Who goes first changes, so that neither always follows the other's use of the caches.
                seconds = {side: _seconds(side, name) for side in (sides if number % 2 else sides[::-1])}
                values.append(seconds[sides[0]] / seconds[sides[1]])
    finally:
        for side in sides:
            side.kill()
            side.wait()
    # The first step of each is a warm-up.
    return {name: values[1:] for name, values in ratios.items()}


def _stepper(tree: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STEPPER, json.dumps(OBJECTIVES)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment
    )


def _seconds(side: subprocess.Popen[str], name: str) -> float:
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write(f"{name}\n")
    side.stdin.flush()
    return float(side.stdout.readline())


if __name__ == "__main__":
    raise SystemExit(main())
