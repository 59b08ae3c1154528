"""Project time and cost of scoring 1 TB of text and training on 3.3 B tokens, from costs measured on this machine.

    python -m benchmarks.scale [--nodes 1 8 64] [--cpus-per-node 16] [--gpus-per-node 8] [--actors 1 2 4]

Scoring: seconds per document and per character are fitted on two corpora of extreme shapes, one process, no Ray; a
third corpus, scored by Ray Data with 1, 2 and 4 actors, checks the fit and gives the efficiency. Training: operations
per token times what a processor was measured, or is assumed, to do. Every assumption is printed.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phf_ray.config import parse_config
from phf_ray.scoring.executor import InProcessScoring, ScoringExecutor
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.on_ray import RayScoring
from phf_ray.scoring.progress import ScoreProgress
from phf_ray.scoring.request import ScoringRequest

CORPUS_BYTES = 1e12
NUM_TOKENS = 3.3e9
GPT2_SMALL = {"num_parameters": 124e6, "num_layers": 12, "width": 768, "context": 1024}
SCORER = {"class_name": "PEP8Scorer"}


@dataclass(frozen=True, slots=True)
class ScoringCost:
    """CPU seconds, start-up left out."""

    per_document_s: float
    per_character_s: float

    def of(self, *, documents: float, characters: float) -> float:
        return documents * self.per_document_s + characters * self.per_character_s


@dataclass(frozen=True, slots=True)
class Rate:
    """What was done between the first and the last part of a run."""

    documents: int
    characters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Projection:
    hours: float
    cost: float


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    if arguments.files is not None:
        from benchmarks.scale_storage import report

        report(num_files=arguments.files, delay_s=arguments.delay_ms / 1e3)
        return 0
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; scorer {SCORER['class_name']}")
    with tempfile.TemporaryDirectory() as folder:
        cost, efficiency, mean_characters = _measure_scoring(Path(folder), arguments.actors)
    flops = measure_flops()
    print(f"training: {flops / 1e9:.1f} GFLOP/s of one core, measured on a GPT-2 of 4 layers x 256, fp32")
    print("\nAssumptions")
    for line in _assumptions(arguments, efficiency=efficiency, mean_characters=mean_characters):
        print(f"  - {line}")
    print(f"\n{'nodes':>6}{'score 1 TB':>14}{'cost':>12}{'train, GPUs':>16}{'cost':>12}{'train, CPUs':>16}{'cost':>12}")
    per_token = flops_per_token(**GPT2_SMALL)
    for nodes in arguments.nodes:
        scoring = project_scoring(
            cost,
            mean_characters=mean_characters,
            cpus=nodes * arguments.cpus_per_node,
            efficiency=efficiency,
            price=arguments.cpu_price,
        )
        gpus = nodes * arguments.gpus_per_node
        per_gpu = arguments.gpu_flops * arguments.gpu_utilization
        on_gpus = project_training(per_token, processors=gpus, flops=per_gpu, price=arguments.gpu_price)
        cpus = nodes * arguments.cpus_per_node
        on_cpus = project_training(per_token, processors=cpus, flops=flops, price=arguments.cpu_price)
        cells = (_shown(scoring), _shown(on_gpus), _shown(on_cpus))
        print(f"{nodes:>6}{cells[0]:>26}{cells[1]:>28}{cells[2]:>28}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 8, 64], metavar="N")
    parser.add_argument("--cpus-per-node", type=int, default=16, metavar="N")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="that check the fit")
    parser.add_argument("--cpu-price", type=float, default=0.05, metavar="X", help="of an hour of one CPU")
    parser.add_argument("--gpu-price", type=float, default=3.0, metavar="X", help="of an hour of one GPU")
    parser.add_argument("--gpu-flops", type=float, default=989e12, metavar="X", help="peak of one GPU in bf16 (H100)")
    parser.add_argument("--gpu-utilization", type=float, default=0.3, metavar="X", help="share of the peak that is had")
    parser.add_argument("--files", type=int, metavar="N", help="instead: requests and seconds of each stage on N files")
    parser.add_argument("--delay-ms", type=float, default=20.0, metavar="X", help="of every answer of their store")
    return parser


def _shown(projection: Projection) -> str:
    hours = f"{projection.hours:,.1f}" if projection.hours >= 1 else f"{projection.hours:.2g}"
    return f"{hours} h  {projection.cost:,.0f}"


def _assumptions(arguments: argparse.Namespace, *, efficiency: float, mean_characters: float) -> list[str]:
    return [
        f"1 TB is {CORPUS_BYTES:.0e} characters in documents of {mean_characters:,.0f}, as those of the third corpus",
        f"every CPU is like a core here and scores {efficiency:.2f} of what it does alone, as the most actors here did",
        "storage keeps up, shards are many more than actors, and nothing is lost; start-up (minutes) is left out",
        f"GPT-2 small, {NUM_TOKENS:.1e} tokens; per token 6 operations for each parameter, and attention",
        f"a GPU does {arguments.gpu_utilization:.0%} of {arguments.gpu_flops / 1e12:.0f} TFLOP/s: ASSUMED, not "
        "measured here; take the tokens per second of a short run of yours",
        "data-parallel training scales linearly; a step waits for nothing",
        f"{arguments.cpus_per_node} CPUs and {arguments.gpus_per_node} GPUs per node; an hour costs "
        f"{arguments.cpu_price:g} per CPU, {arguments.gpu_price:g} per GPU",
    ]


# --- Arithmetic -------------------------------------------------------------------------------------------------------


def fit(first: Rate, second: Rate) -> ScoringCost:
    """The two costs that explain both rates. Raises ValueError for corpora of the same shape."""
    determinant = first.documents * second.characters - second.documents * first.characters
    if determinant == 0:
        raise ValueError("the corpora have equally long documents; give two of different shapes")
    per_document = (first.seconds * second.characters - second.seconds * first.characters) / determinant
    per_character = (first.documents * second.seconds - second.documents * first.seconds) / determinant
    return ScoringCost(max(0.0, per_document), max(0.0, per_character))


def predict(cost: ScoringCost, rate: Rate, *, actors: int, cores: int) -> float:
    """Seconds for what `rate` did, if actors share the work evenly and nothing else is in the way."""
    return cost.of(documents=rate.documents, characters=rate.characters) / min(actors, cores)


def project_scoring(
    cost: ScoringCost, *, mean_characters: float, cpus: int, efficiency: float, price: float
) -> Projection:
    seconds = cost.of(documents=CORPUS_BYTES / mean_characters, characters=CORPUS_BYTES)
    hours = seconds / 3600 / (cpus * efficiency)
    return Projection(hours, hours * cpus * price)


def flops_per_token(*, num_parameters: float, num_layers: float, width: float, context: float) -> float:
    """Forward and backward; the second term is attention over the context."""
    return 6 * num_parameters + 12 * num_layers * width * context


def project_training(per_token: float, *, processors: int, flops: float, price: float) -> Projection:
    if processors == 0:
        return Projection(float("inf"), 0.0)
    hours = NUM_TOKENS * per_token / (processors * flops) / 3600
    return Projection(hours, hours * processors * price)


# --- Measuring --------------------------------------------------------------------------------------------------------


def _measure_scoring(folder: Path, actors: Sequence[int]) -> tuple[ScoringCost, float, float]:
    """Cost, efficiency with the most actors that have a core each, and characters per document."""
    import ray

    small = scoring_rate(write_corpus(folder / "small", documents=3000, lines=5), executor=InProcessScoring)
    large = scoring_rate(write_corpus(folder / "large", documents=30, lines=2000), executor=InProcessScoring)
    cost = fit(small, large)
    print(
        f"scoring: {cost.per_document_s * 1e3:.3f} ms per document, {cost.per_character_s * 1e6:.3f} us per character"
    )
    mixed = write_corpus(folder / "mixed", documents=600, lines=200)
    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=max(actors) + 2, include_dashboard=False, log_to_driver=False)
    efficiencies = {}
    for number in actors:
        rate = scoring_rate(mixed, executor=RayScoring, actors=number)
        expected = predict(cost, rate, actors=number, cores=cores)
        efficiencies[number] = min(1.0, expected / rate.seconds)
        print(
            f"  {number} actor(s) on {cores} cores: {rate.characters / rate.seconds / 1e6:.3f} M characters/s; "
            f"predicted {expected:.2f} s, measured {rate.seconds:.2f} s, ratio {expected / rate.seconds:.2f}"
        )
    ray.shutdown()
    most = max((number for number in actors if number <= cores), default=min(actors))
    return cost, efficiencies[most], rate.characters / rate.documents


def write_corpus(folder: Path, *, documents: int, lines: int) -> Path:
    folder.mkdir(parents=True)
    line = "value = function(first, second)  # of the two\n"
    for index in range(documents):
        (folder / f"{index}.py").write_text(f"number = {index}\n" + line * lines, encoding="utf-8")
    return folder


def scoring_rate(source: Path, *, executor: Callable[[], ScoringExecutor], actors: int = 1) -> Rate:
    pools = {"cpu": {"min": actors, "max": actors}}
    config = parse_config({"scoring": {"scorers": [SCORER], "segmenter": "lines", "pools": pools}})
    size = sum(path.stat().st_size for path in source.iterdir())
    seen: list[Rate] = []

    def note(progress: ScoreProgress) -> None:
        # At once: the statistics go on counting.
        if progress.shards_done > 0:
            seen.append(Rate(progress.stats.documents, progress.stats.characters, progress.elapsed_s))

    with tempfile.TemporaryDirectory() as output:
        request = ScoringRequest(config, inputs=[str(source)], shard_bytes=max(1, size // 40))
        run_scoring(request, f"{output}/scored", progress=note, executor=executor())
    first, last = seen[0], seen[-1]
    return Rate(
        documents=last.documents - first.documents,
        characters=last.characters - first.characters,
        seconds=last.seconds - first.seconds,
    )


def measure_flops() -> float:
    """Operations per second of one core in a training step; bench_train has what the loop and Ray add."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    shape = {"num_layers": 4, "width": 256, "context": 256}
    model: Any = GPT2LMHeadModel(
        GPT2Config(n_layer=4, n_embd=256, n_head=4, n_positions=256, vocab_size=4096, bos_token_id=0, eos_token_id=0)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 4096, (4, 256))
    num_parameters = sum(parameter.numel() for parameter in model.parameters()) - 256 * 256
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - begin)
    return ids.numel() * flops_per_token(num_parameters=num_parameters, **shape) / statistics.median(times[1:])


if __name__ == "__main__":
    sys.exit(main())
