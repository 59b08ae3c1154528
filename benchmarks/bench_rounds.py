"""Rounds of RLOO beside TRL's RLOOTrainer, and beside the sum of their own parts.

    pip install trl==1.16.0
    python -m benchmarks.bench_rounds [--pairs 9] [--rounds 4] [--threads 2] [--parts trl sum]

GPT-2 of 2 layers x 128 with a vocabulary of 1,024 and random weights, 16 prompts x 4 answers a round, answers of at
most 64 tokens, two optimizer steps a round, KL price .05 (so both sides hold a reference), reward: minus the length,
fp32 on the CPU, in this process. trl: answers per second of wall time, from the first round to the last; start-up is
left out of both. sum: the time of the rounds over that of what they are made of (answers, rewards, log-probabilities,
steps), each timed where it runs; the rest is files, weighing, metrics and checkpoints. Pairs are run in turns. Prints a
table and one line of JSON.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_train import Verdict, judge, print_verdicts
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.rollouts.driver import prepare_rollouts, run_rollouts
from phf_ray.rollouts.in_process import fit_rollouts_here
from phf_ray.rollouts.round_maker import RoundMaker
from phf_ray.rollouts.sampling_places import Workers
from phf_ray.runs.directory import RunDirectory
from phf_ray.training import loop
from phf_ray.training.driver import Helpers, Tracking

PROMPTS, ANSWERS, TOKENS = 16, 4, 64
WIDTH, LAYERS, HEADS, VOCABULARY = 128, 2, 4, 1024
PARTS = ("trl", "sum")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_rounds", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args(argv)
    if "trl" in arguments.parts:
        try:
            import trl  # noqa: F401
        except ImportError:
            print("TRL is not installed; pip install trl==1.16.0, or --parts sum", file=sys.stderr)
            return 2
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        verdicts = list(_verdicts(Path(name), arguments))
    print_verdicts(verdicts)
    sizes = {"prompts": PROMPTS, "answers": ANSWERS, "tokens": TOKENS, "rounds": arguments.rounds}
    report = {"bench": "rounds", "machine": platform.machine(), "threads": arguments.threads, **sizes}
    print(json.dumps(report | {"verdicts": [asdict(each) for each in verdicts]}))
    return 0


def _verdicts(folder: Path, arguments: argparse.Namespace) -> Iterator[Verdict]:
    _write_inputs(folder)
    speeds, overheads = [], []
    for number in range(arguments.pairs):
        ours_s, parts_s = _our_seconds(folder, number, arguments)
        overheads.append(ours_s / parts_s)
        if "trl" in arguments.parts:
            speeds.append(_seconds_of_trl(folder, arguments.rounds) / ours_s)
    if speeds:
        yield judge("RLOO: answers/s / TRL's RLOOTrainer", speeds, at_least=1.5)
    if "sum" in arguments.parts:
        yield judge("time of a round / its parts", overheads, at_most=1.15)


def _write_inputs(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    end = fast.eos_token_id
    shape = GPT2Config(
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=WIDTH,
        n_positions=128,
        vocab_size=VOCABULARY,
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(shape).save_pretrained(folder / "model")
    rows = [{"prompt": " ".join(f"w{(number * 7 + place) % 1000 + 1}" for place in range(12))} for number in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# -- Ours --


def _our_seconds(folder: Path, number: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the time of all rounds, and of their parts."""
    config = parse_config(
        {
            "model": {"path_or_name": str(folder / "model"), "from_scratch": False},
            "training": {
                "per_device_train_batch_size": PROMPTS * ANSWERS // 2,
                "learning_rate": 1e-4,
                "lr_scheduler_type": "constant",
                "precision": "fp32",
                "logging_steps": 1,
                "save_steps": 2 * arguments.rounds,
                "resources_per_worker": {"CPU": arguments.threads},
            },
            "rollouts": {
                "prompts": [str(folder / "prompts.jsonl")],
                "reward": {"rule": "shorter"},
                "rounds": arguments.rounds,
                "prompts_per_round": PROMPTS,
                "samples_per_prompt": ANSWERS,
                "minibatches": 2,
                "max_tokens": TOKENS,
            },
            "algorithm": {"name": "rloo", "kl_coef": 0.05},
        }
    )
    config = config.with_tokenizer_of(str(folder / "model"))
    prepared = prepare_rollouts(
        config, tokenizer=load_tokenizer(config.tokenizer), checkpoint_path=None, folder=str(folder / "prompts")
    )
    with _timed_parts() as parts:
        summary = run_rollouts(
            config,
            prepared,
            run=RunDirectory(folder / f"run-{number}"),
            task="bench",
            tracking=Tracking(),
            helpers=Helpers(fit=fit_rollouts_here),
        )
    return summary["wall_cost"]["loop_s"], sum(parts)


@contextmanager
def _timed_parts() -> Iterator[list[float]]:
    seconds: list[float] = []
    places = [(Workers, "draw"), (RoundMaker, "_ask"), (RoundMaker, "_score"), (loop, "train_step")]
    originals = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, original in originals:
        setattr(place, name, _timed(original, seconds))
    try:
        yield seconds
    finally:
        for place, name, original in originals:
            setattr(place, name, original)


def _timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*given: Any, **named: Any) -> Any:
        since = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            seconds.append(time.perf_counter() - since)

    return timed


# -- TRL's --


def _seconds_of_trl(folder: Path, rounds: int) -> float:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RLOOConfig, RLOOTrainer

    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    trainer = RLOOTrainer(
        model=str(folder / "model"),
        reward_funcs=lambda completions, **_: [-float(len(completion)) for completion in completions],
        args=RLOOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=PROMPTS * ANSWERS // 2,
            steps_per_generation=2,
            num_generations=ANSWERS,
            max_completion_length=TOKENS,
            beta=0.05,
            learning_rate=1e-4,
            max_steps=2 * rounds,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    since = time.perf_counter()
    trainer.train()
    return time.perf_counter() - since


if __name__ == "__main__":
    sys.exit(main())
