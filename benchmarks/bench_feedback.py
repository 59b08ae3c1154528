"""Steps of DPO, finetuning and reward models beside TRL's trainers: the same rows, the same shape, in turns.

    pip install trl==1.16.0
    python -m benchmarks.bench_feedback [--rounds 5] [--parts time memory] [--models small tiny wide]

GPT-2 of 4 layers x 256 with vocabulary 8192 (`small`), of 2 x 64 with 1024 (`tiny`), and `small` with 50,257 (`wide`),
where only DPO is measured. 8 pairs a step, rows of log-normal length (mean about 221, at most 512), fp32 on the CPU,
one thread. Ours packs the rows into blocks of 1024. TRL pads them, or packs them in its two ways: `bfd` keeps attention
inside each row, as ours does, and `wrapped` does not. Both sides step AdamW. Tokens are those of rows, without padding;
a ratio is of tokens per second of CPU time, the median over pairs of steps with lowest and highest. Memory is the peak
of a step above what is held before it, in a process of its own. Prints a table and one line of JSON.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks.bench_train import judge, print_verdicts
from phf_ray.adapter_folder import AdapterBase
from phf_ray.blocks.examples import AnswerIds, RowLimits, pack_units, rows_of_unit
from phf_ray.blocks.stats import PackingStats
from phf_ray.config import LoraSettings
from phf_ray.models.adapters import add_adapter
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.reward_model import as_reward_model
from phf_ray.objectives.answers import REFERENCE
from phf_ray.objectives.build import build_objective
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import TrainState, build_optimizer
from phf_ray.training.step import StepSettings, train_step

MEMORY = 0.5
START, END, PAD = 0, 1, 2
Step = Callable[[int], float]
"""Makes one step on the rows of this number, and returns its CPU seconds."""


@dataclass(frozen=True, slots=True)
class Shape:
    vocabulary: int = 8192
    width: int = 256
    layers: int = 4
    heads: int = 4
    pairs: int = 8
    row: int = 512

    @property
    def block(self) -> int:
        return 2 * self.row


@dataclass(frozen=True, slots=True)
class Case:
    method: str
    """dpo, sft or reward."""
    at_least: float | None
    packing: str | None = None
    """How TRL packs; None: it pads."""
    by_length: bool = False
    """The pairs of a step have like lengths, as in data sorted by length: padding then costs little."""


MODELS = {"small": Shape(), "tiny": Shape(vocabulary=1024, width=64, layers=2), "wide": Shape(vocabulary=50257)}
CASES = {
    "dpo": Case("dpo", 1.3),
    "sft / padded": Case("sft", 1.5),
    "sft / packed (bfd)": Case("sft", 1.0, packing="bfd"),
    "sft / packed (wrapped)": Case("sft", 1.0, packing="wrapped"),
    "reward / random": Case("reward", 1.3),
    "reward / sorted by length": Case("reward", 1.0, by_length=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_feedback", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        import trl
    except ImportError:
        print("TRL is not installed; pip install trl==1.16.0", file=sys.stderr)
        return 2
    if arguments.measure:
        print(_peak_growth(*arguments.measure))
        return 0
    report: dict[str, Any] = {"bench": "feedback", "trl": trl.__version__, "machine": platform.machine(), "models": {}}
    for model in arguments.models:
        verdicts = []
        for name in arguments.cases if model != "wide" else {"dpo"} & set(arguments.cases):
            case = CASES[name]
            if "time" in arguments.parts:
                bound = case.at_least if model != "wide" else 0.0  # only to be reported
                ratios = _ratios(case, MODELS[model], arguments.rounds)
                verdicts.append(judge(f"{model}, {name}: tokens/s / TRL", ratios, at_least=bound))
            if "memory" in arguments.parts and case.method == "dpo":
                ours, theirs = (_measured_apart(model, side) for side in ("ours", "trl"))
                verdicts.append(judge(f"{model}, {name}: peak memory / TRL", [ours / theirs], at_most=MEMORY))
        print_verdicts(verdicts)
        report["models"][model] = {"sizes": asdict(MODELS[model]), "verdicts": [asdict(each) for each in verdicts]}
    print(json.dumps(report))
    return 0


def _ratios(case: Case, shape: Shape, rounds: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = our_step(case, shape), trl_step(case, shape, folder)
        # The first step of each is a warm-up.
        return [theirs(number) / ours(number) for number in range(rounds + 1)][1:]


def _measured_apart(model: str, side: str) -> float:
    command = [sys.executable, "-m", "benchmarks.bench_feedback", "--measure", model, side]
    # One arena and no cache of freed blocks: resident memory then follows what is allocated.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1])


def _peak_growth(model: str, side: str) -> int:
    case, shape = CASES["dpo"], MODELS[model]
    with tempfile.TemporaryDirectory() as folder:
        step = our_step(case, shape) if side == "ours" else trl_step(case, shape, folder)
        step(0)  # a warm-up, and the rows of the step to be measured
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status_bytes("VmRSS")
        step(0)
        return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def rows(case: Case, shape: Shape, number: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected of each pair, as ids of words."""
    draw = np.random.default_rng(number)
    num_drawn = shape.pairs * (16 if case.by_length else 1)
    lengths_P2 = np.clip(draw.lognormal(5.2, 0.6, (num_drawn, 2)), 8, shape.row - 2).astype(int)
    if case.by_length:
        lengths_P2 = lengths_P2[lengths_P2.max(1).argsort()]
        first = shape.pairs * int(draw.integers(num_drawn // shape.pairs))
        lengths_P2 = lengths_P2[first : first + shape.pairs]
    found = []
    for lengths in lengths_P2:
        prompt = draw.integers(3, shape.vocabulary, max(2, min(lengths) // 2)).tolist()
        answers = [draw.integers(3, shape.vocabulary, max(2, length - len(prompt))).tolist() for length in lengths]
        found.append((prompt, *answers))
    return found


def our_step(case: Case, shape: Shape, *, lora: LoraSettings | None = None) -> Step:
    method = case.method
    model = LanguageModel(GPT2LMHeadModel(_config(shape)))
    if method == "reward":
        model = as_reward_model(model)
    if lora is not None:
        model.adapter = add_adapter(model.backbone, lora, base=AdapterBase("base"), first_new_row=None, seed=0)
    model.mask_documents()
    model.train()
    state = TrainState(model, build_optimizer(model, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8))
    name = {"dpo": "DPO", "sft": "MLE", "reward": "BradleyTerry"}[method]
    objective = build_objective({"name": name}, examples=True)
    limits = RowLimits(shape.row, START, END)

    def step(number: int) -> float:
        units = []
        for prompt, *answers in rows(case, shape, number):
            pair = [AnswerIds(prompt, answer) for answer in answers]
            # Finetuning has an answer for each row, so that it reads as many.
            for unit in [[one] for one in pair] if method == "sft" else [pair]:
                kept = rows_of_unit(unit, limits, stats=PackingStats())
                assert kept is not None
                units.append(kept)
        blocks = list(pack_units(units, length=shape.block, pad_id=PAD))
        arrays = [
            np.stack([getattr(block, each) for block in blocks])
            for each in ("input_ids", "token_scores", "token_kinds")
        ]
        channels = {REFERENCE: torch.zeros(arrays[0].shape)} if method == "dpo" else {}
        batch = MicroBatch(*map(torch.from_numpy, arrays), first_block=number, channels=channels)
        since = time.process_time()
        train_step(state, [batch], objective=objective, learning_rate=1e-5, settings=StepSettings()).read()
        return time.process_time() - since

    return step


def trl_step(case: Case, shape: Shape, folder: str) -> Step:
    method = case.method
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    words = ["<|start|>", "<|end|>", "<|pad|>", *(f"w{number}" for number in range(3, shape.vocabulary))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    num_rows = shape.pairs * (2 if method == "sft" else 1)
    common: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": num_rows, "max_length": shape.row, "report_to": [],
        "use_cpu": True, "gradient_checkpointing": False, "bf16": False, "disable_tqdm": True,
    }  # fmt: skip
    if case.packing is not None:
        common |= {"packing": True, "packing_strategy": case.packing, "max_length": shape.block}

    def text(ids: Sequence[int]) -> str:
        return " ".join(words[number] for number in ids)

    @cache
    def batch_of(number: int) -> tuple[Any, Any]:
        pairs = [
            (text([START, *prompt]), f" {text(a)} <|end|>", f" {text(b)} <|end|>")
            for prompt, a, b in rows(case, shape, number)
        ]
        if method == "sft":
            data = [{"prompt": p, "completion": one} for p, a, b in pairs for one in (a, b)]
        else:
            data = [{"prompt": p, "chosen": a, "rejected": b} for p, a, b in pairs]
        data_set = Dataset.from_list(data)
        if method == "dpo":
            trainer: Any = DPOTrainer(
                GPT2LMHeadModel(_config(shape)), processing_class=tokenizer, train_dataset=data_set,
                args=DPOConfig(precompute_ref_log_probs=True, **common),
            )  # fmt: skip
        elif method == "sft":
            trainer = SFTTrainer(
                GPT2LMHeadModel(_config(shape)), processing_class=tokenizer, train_dataset=data_set,
                args=SFTConfig(completion_only_loss=True, **common),
            )  # fmt: skip
        else:
            model = GPT2ForSequenceClassification(_config(shape, num_labels=1))
            trainer = RewardTrainer(
                model, processing_class=tokenizer, train_dataset=data_set, args=RewardConfig(**common)
            )
        return trainer, next(iter(trainer.get_train_dataloader()))

    first, _ = batch_of(0)
    model = first.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(number: int) -> float:
        _, batch = batch_of(number)
        since = time.process_time()
        loss = first.compute_loss(model, dict(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - since

    return step


def _config(shape: Shape, **more: Any) -> GPT2Config:
    return GPT2Config(
        vocab_size=shape.vocabulary, n_positions=shape.block, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=START, eos_token_id=END, pad_token_id=PAD, **more,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
