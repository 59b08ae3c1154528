"""What the training loop costs: plain torch, our loop, and our loop under Ray Train, on the same blocks and model.

    python -m benchmarks.bench_train [--rounds 5] [--threads 2]

The demo's size: GPT-2 of 3 layers x 128, vocabulary 1024, context 128, batch 32, in fp32 on the CPU. They take turns;
tokens/s of a turn is over its steps after the first 20. A ratio is the median over rounds, with the lowest and highest
one; `within noise`: the median misses the target, the best round meets it. Prints a table and one line of JSON.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config, parse_config
from phf_ray.models.build import build_model
from phf_ray.objectives.build import build_objective
from phf_ray.training.batches import DataShare, prefetched, step_batches
from phf_ray.training.events import MetricsRow
from phf_ray.training.loop import LoopSettings, train
from phf_ray.training.schedule import Schedule
from phf_ray.training.state import TrainState, build_optimizer
from phf_ray.training.step import StepSettings

VOCABULARY, LENGTH, BATCH, NUM_STEPS, WARMUP_STEPS = 1024, 128, 32, 100, 20
RAY_TO_LOOP, WAITING = 0.97, 0.02
"""Targets: tokens/s under Ray over those without, at least; share of the time that the loop waits for data, at most."""


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    median: float
    lowest: float
    highest: float
    target: str
    verdict: str


def judge(
    name: str, values: Sequence[float], *, at_least: float | None = None, at_most: float | None = None
) -> Verdict:
    """Exactly one of the limits; the best round decides between `missed` and `within noise`."""
    assert (at_least is None) != (at_most is None)
    sign, limit = (1.0, at_least) if at_least is not None else (-1.0, at_most)
    assert limit is not None
    median = statistics.median(values)
    if sign * median >= sign * limit:
        verdict = "met"
    else:
        verdict = "within noise" if max(sign * value for value in values) >= sign * limit else "missed"
    words = f"at {'least' if sign > 0 else 'most'} {limit:g}"
    return Verdict(name, median, min(values), max(values), words, verdict)


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print a line for each, as soon as they are known: some benchmarks take minutes."""
    width = max((len(each.name) for each in verdicts), default=0)
    for each in verdicts:
        spread = f"{each.median:10.4f} [{each.lowest:.4f}, {each.highest:.4f}]"
        print(f"{each.name:{width}} {spread}  target {each.target:14} {each.verdict}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_train", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without-ray", action="store_true", help="plain torch and our loop only")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        measured, waiting = _measure(Path(folder), arguments)
    medians = {name: statistics.median(values) for name, values in measured.items()}
    verdicts = []
    if not arguments.without_ray:
        ratios = [ray / loop for ray, loop in zip(measured["ray"], measured["loop"], strict=True)]
        verdicts = [
            judge("tokens/s under Ray / without", ratios, at_least=RAY_TO_LOOP),
            judge("share of time waiting for data", waiting, at_most=WAITING),
        ]
    for name, values in measured.items():
        print(f"{name:32} {medians[name]:10,.0f} tokens/s [{min(values):,.0f}, {max(values):,.0f}]")
    print_verdicts(verdicts)
    print(
        json.dumps(
            {
                "bench": "train",
                "config": {"model": "gpt2 3 x 128", "vocabulary": VOCABULARY, "context": LENGTH, "batch": BATCH},
                "hardware": {"machine": platform.processor() or platform.machine(), "threads": arguments.threads},
                "commit": _commit(),
                "metrics": {
                    f"{name}_tokens_per_s": {
                        "median": round(medians[name]),
                        "min": round(min(values)),
                        "max": round(max(values)),
                    }
                    for name, values in measured.items()
                },
                "ratios": {f"{name}_to_plain": round(median / medians["plain"], 3) for name, median in medians.items()},
                "verdicts": [asdict(each) for each in verdicts],
            }
        )
    )
    return 0


def _measure(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, list[float]], list[float]]:
    """tokens/s of each round by name, and the share of time that the loop under Ray waited for data."""
    from phf_ray.blocks.build import build_here, ensure_blocks

    config = _inputs(folder, threads=arguments.threads)
    corpora = list(config.dataset.datasets)
    blocks = ensure_blocks(config, corpora=corpora, output_root=str(folder / "blocks"), builder=build_here).root
    measured: dict[str, list[float]] = {"plain": [], "loop": []}
    waiting: list[float] = []
    if not arguments.without_ray:
        measured["ray"] = []
    for number in range(arguments.rounds):
        measured["plain"].append(_plain(config, blocks))
        measured["loop"].append(_loop(config, blocks))
        if not arguments.without_ray:
            rows = _under_ray(config, blocks, run=folder / f"run-{number}")
            measured["ray"].append(_mean_speed([row["train/tokens_per_s"] for row in rows]))
            waiting.append(statistics.fmean(row["train/data_wait_fraction"] for row in rows[2:]))
    return measured, waiting


def _inputs(folder: Path, *, threads: int) -> Config:
    """Corpus and tokenizer of the standard library's modules; the configuration of the demo's model."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in modules]
    rows = [
        {
            "id": path.name,
            "texts": [text],
            "scores": [0.0],
            "avg_score": 0.0,
            "num_sents": 1,
            "errors": [None],
            "meta": "{}",
        }
        for path, text in zip(modules, texts, strict=True)
        if text
    ]
    (folder / "scored").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "scored" / "part-00000.parquet")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder / "tokenizer")
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return parse_config(
        {
            "dataset": {"datasets": [str(folder / "scored")], "seq_length": LENGTH},
            "tokenizer": {"path_or_name": str(folder / "tokenizer")},
            "model": {
                "path_or_name": None,
                "model_type": "gpt2",
                "config_kwargs": {"n_layer": 3, "n_head": 4, "n_embd": 128, "n_positions": LENGTH} | dropout,
            },
            "training": {
                "num_tokens": NUM_STEPS * BATCH * LENGTH,
                "count_tokens": "all",
                "effective_batch_size": BATCH,
                "per_device_train_batch_size": BATCH,
                "learning_rate": 1e-3,
                "precision": "fp32",
                "logging_steps": WARMUP_STEPS,
                "resources_per_worker": {"CPU": threads},
            },
        }
    )


def _reader(config: Config, blocks: str) -> BlockReader:
    return BlockReader(blocks, order=BlockOrder(read_block_manifest(blocks), seed=config.training.seed))


def _model(config: Config) -> Any:
    return build_model(config.model, tokenizer=load_tokenizer(config.tokenizer), seed=config.training.seed)


def _plain(config: Config, blocks: str) -> float:
    """What one writes without any framework: transformers' own loss, torch's clipping and AdamW."""
    reader = _reader(config, blocks)
    model = _model(config).backbone.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    since = 0.0
    for number in range(NUM_STEPS):
        if number == WARMUP_STEPS:
            since = time.perf_counter()
        ids = torch.from_numpy(reader.read(number * BATCH, (number + 1) * BATCH).input_ids).long()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (NUM_STEPS - WARMUP_STEPS) * BATCH * LENGTH / (time.perf_counter() - since)


def _loop(config: Config, blocks: str) -> float:
    reader = _reader(config, blocks)
    model = _model(config)
    optimizer = build_optimizer(model, weight_decay=0.1, betas=(0.9, 0.999), epsilon=1e-8)
    settings = LoopSettings(Schedule(NUM_STEPS, 1e-3), StepSettings(), logging_steps=WARMUP_STEPS)
    share = DataShare(batch_size=BATCH, micro_batch_size=BATCH)
    events = train(
        TrainState(model, optimizer),
        prefetched(step_batches(reader.read, share, steps=range(NUM_STEPS))),
        objective=build_objective({"name": "MLE"}),
        settings=settings,
    )
    rows = [event.metrics for event in events if isinstance(event, MetricsRow)]
    return _mean_speed([row["train/tokens_per_s"] for row in rows])


def _mean_speed(speeds: Sequence[float]) -> float:
    """Rows after the warm-up have equally many steps each: the harmonic mean is tokens over time."""
    return statistics.harmonic_mean(speeds[2:])


def _under_ray(config: Config, blocks: str, *, run: Path) -> list[dict[str, Any]]:
    from jobs.cli import start_ray
    from phf_ray.runs.directory import RunDirectory
    from phf_ray.training.driver import Helpers, Tracking, run_training
    from phf_ray.training.on_ray import fit_on_ray
    from phf_ray.training.plan import plan_training

    start_ray()
    plan = plan_training(config, manifest=read_block_manifest(blocks), objective_threshold=None, checkpoint_path=None)
    directory = RunDirectory(run)
    helpers = Helpers(fit=fit_on_ray)
    run_training(
        config, plan=plan, run=directory, blocks_path=blocks, task="bench", tracking=Tracking(), helpers=helpers
    )
    return [row for row in directory.read_metrics() if "train/loss" in row]


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parents[1]), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
