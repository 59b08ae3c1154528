"""Rounds of RLOO beside TRL's RLOOTrainer, beside the sum of their own parts, and with actors that draw.

    pip install trl==1.16.0
    python -m benchmarks.bench_rounds [--pairs 9] [--rounds 4] [--threads 2]
        [--parts trl sum weights ahead]

GPT-2 of 2 layers x 128 with a vocabulary of 1,024 and random weights, 16 prompts x 4 answers a round, answers of at
most 64 tokens, two optimizer steps a round, KL price .05 (so both sides hold a reference), reward: minus the length,
fp32 on the CPU, in this process. trl: answers per second of wall time, from the first round to the last; start-up is
left out of both. sum: the time of the rounds over that of what they are made of (answers, rewards, log-probabilities,
steps), each timed where it runs; the rest is files, weighing, metrics and checkpoints. Pairs are run in turns.

weights: the time in which two actors of one CPU each get the weights of GPT-2 at 124M parameters (shape and vocabulary
of GPT-2, random weights) over that of a round of 16 prompts x 4 answers of at most 32 tokens, drawn by them in batches
of 16, with one thread of training. The hand-over is timed by itself, `--pairs` times, from the policy's last step to
actors that can draw; the round is the sum of its parts, of each round but the first of one run.
ahead: the time of rounds with `max_staleness: 1` over that with 0, on the small model, with one actor of one CPU and
one thread of training, from the first step to the end of the run.

Prints a table and one line of JSON.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import rounds_on_actors
from benchmarks.bench_train import Verdict, judge, print_verdicts
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config, parse_config
from phf_ray.rollouts.driver import prepare_rollouts, run_rollouts
from phf_ray.rollouts.in_process import fit_rollouts_here
from phf_ray.rollouts.round_maker import RoundMaker
from phf_ray.rollouts.sampling_places import Copies, Workers
from phf_ray.runs.directory import RunDirectory
from phf_ray.training import loop
from phf_ray.training.driver import Helpers, Tracking

PROMPTS, ANSWERS, TOKENS = 16, 4, 64
WIDTH, LAYERS, HEADS, VOCABULARY = 128, 2, 4, 1024
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024}
GPT2_VOCABULARY, GPT2_TOKENS = 50257, 32
PARTS = ("trl", "sum", "weights", "ahead")
ACTORS = ("weights", "ahead")


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
    for number in range(arguments.pairs if set(arguments.parts) - set(ACTORS) else 0):
        ours_s, parts_s = _our_seconds(folder, number, arguments)
        overheads.append(ours_s / parts_s)
        if "trl" in arguments.parts:
            speeds.append(_seconds_of_trl(folder, arguments.rounds) / ours_s)
    if speeds:
        yield judge("RLOO: answers/s / TRL's RLOOTrainer", speeds, at_least=1.5)
    if "sum" in arguments.parts:
        yield judge("time of a round / its parts", overheads, at_most=1.15)
    if set(arguments.parts) & set(ACTORS):
        yield from _verdicts_of_actors(folder, arguments)


def _verdicts_of_actors(folder: Path, arguments: argparse.Namespace) -> Iterator[Verdict]:
    # Ray's processes inherit the threads of this one.
    torch.set_num_threads(1)
    with rounds_on_actors.local_ray(num_cpus=4):
        if "weights" in arguments.parts:
            yield _verdict_of_weights(folder, arguments)
        if "ahead" in arguments.parts:
            actors = {"place": "actors", "actors": {"max": 1}}
            fresh, ahead = (_config(folder, arguments, threads=1, max_staleness=old, **actors) for old in (0, 1))
            prepared = rounds_on_actors.prepare(fresh, folder)
            ratios = rounds_on_actors.ratios_of_rounds_ahead((fresh, ahead), prepared, folder, arguments.pairs)
            yield judge("rounds with max_staleness 1 / 0", ratios, at_most=1.0)


def _verdict_of_weights(folder: Path, arguments: argparse.Namespace) -> Verdict:
    _write_tokenizer(folder / "gpt2", GPT2_VOCABULARY)
    config = _config(
        folder,
        arguments,
        threads=1,
        model={"path_or_name": None, "model_type": "gpt2", "config_kwargs": GPT2},
        tokenizer=folder / "gpt2",
        place="actors",
        actors={"min": 2, "max": 2},
        sampling_batch=PROMPTS * ANSWERS // 4,
        max_tokens=GPT2_TOKENS,
    )
    prepared = rounds_on_actors.prepare(config, folder)
    hand_overs = rounds_on_actors.seconds_of_hand_overs(config, prepared, folder, num_actors=2, times=arguments.pairs)
    with _timed_parts() as parts:
        rounds_on_actors.run_on_actors(config, prepared, folder / "gpt2-run")
    # Answers, rewards, log-probabilities and two steps; in the first round the actors start.
    rounds = [sum(parts[first : first + 5]) for first in range(5, len(parts), 5)]
    print(
        f"a hand-over: {statistics.median(hand_overs):.2f} s [{min(hand_overs):.2f}, {max(hand_overs):.2f}], a round: "
        f"{statistics.median(rounds):.1f} s [{min(rounds):.1f}, {max(rounds):.1f}]",
        flush=True,
    )
    shares = rounds_on_actors.share_of_a_round(hand_overs, rounds)
    return judge("hand-over of weights / a round", shares, at_most=0.05)


def _write_inputs(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    end = _write_tokenizer(folder / "model", VOCABULARY)
    torch.manual_seed(0)
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


def _write_tokenizer(folder: Path, num_tokens: int) -> int:
    """Return the end-of-text token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<|endoftext|>": 0} | {f"w{number}": number for number in range(1, num_tokens)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    return int(fast.eos_token_id)


# -- Ours --


def _our_seconds(folder: Path, number: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the time of all rounds, and of their parts."""
    config = _config(folder, arguments, threads=arguments.threads)
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


def _config(
    folder: Path,
    arguments: argparse.Namespace,
    *,
    threads: int,
    model: dict[str, Any] | None = None,
    tokenizer: Path | None = None,
    **rollouts: Any,
) -> Config:
    config = parse_config(
        {
            "model": model or {"path_or_name": str(folder / "model"), "from_scratch": False},
            "training": {
                "per_device_train_batch_size": PROMPTS * ANSWERS // 2,
                "learning_rate": 1e-4,
                "lr_scheduler_type": "constant",
                "precision": "fp32",
                "logging_steps": 1,
                "save_steps": 2 * arguments.rounds,
                "resources_per_worker": {"CPU": threads},
            },
            "rollouts": {
                "prompts": [str(folder / "prompts.jsonl")],
                "reward": {"rule": "shorter"},
                "rounds": arguments.rounds,
                "prompts_per_round": PROMPTS,
                "samples_per_prompt": ANSWERS,
                "minibatches": 2,
                "max_tokens": TOKENS,
                **rollouts,
            },
            "algorithm": {"name": "rloo", "kl_coef": 0.05},
        }
    )
    return config.with_tokenizer_of(str(tokenizer or folder / "model"))


@contextmanager
def _timed_parts() -> Iterator[list[float]]:
    seconds: list[float] = []
    places: list[tuple[Any, str]] = [
        (Workers, "draw"),
        (Copies, "draw"),
        (RoundMaker, "_ask"),
        (RoundMaker, "_score"),
        (loop, "train_step"),
    ]
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
