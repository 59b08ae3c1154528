"""What a step of LoRA costs beside a step of the whole model: the same blocks, the same step, in turns.

    python -m benchmarks.bench_lora [--pairs 9] [--threads 1]

Llama and GPT-2 of 4 layers x 256, vocabulary 8192, context 256, batch 8, in fp32 on the CPU; and GPT-2 on the rows of
`bench_feedback`, finetuned or by DPO. Adapters of rank 8 without dropout, beside the attention's projections (peft's
default) or all linear layers (ours). Seconds are CPU time, of one
thread by default: threads that wait for each other count as busy. A ratio is the median over pairs, with the lowest and
the highest; `within noise`: the median misses the target, the best pair meets it. Prints a table and one line of JSON.
"""

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.bench_feedback import MODELS, Case, our_step
from benchmarks.bench_train import Verdict, judge, print_verdicts
from phf_ray.adapter_folder import AdapterBase
from phf_ray.config import LoraSettings
from phf_ray.models.adapters import add_adapter
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import TrainState, build_optimizer
from phf_ray.training.step import StepSettings, train_step

STEP_TIME, OPTIMIZER_SHARE = 0.8, 0.05
"""Targets: seconds of a step over those of the whole model, and bytes of the optimizer, at most."""
FEEDBACK_TIME = {"sft": 0.8, "dpo": 0.9}
ATTENTION = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}
"""By architecture, the layers that peft adapts unless it is told otherwise. All linear layers cost more."""


@dataclass(frozen=True, slots=True)
class Shape:
    vocabulary: int = 8192
    width: int = 256
    layers: int = 4
    heads: int = 4
    length: int = 256
    batch: int = 8
    rank: int = 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_lora", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    shape = Shape(**{name: getattr(arguments, name) for name in asdict(Shape())})
    verdicts: list[Verdict] = []
    for kind in ATTENTION:
        verdicts += compare(kind, shape, num_pairs=arguments.pairs)
    for method, bound in FEEDBACK_TIME.items():
        verdicts += compare_feedback(method, bound, rank=shape.rank, num_pairs=arguments.pairs)
    print_verdicts(verdicts)
    hardware = {"machine": platform.processor() or platform.machine(), "threads": arguments.threads}
    report = {"bench": "lora", "sizes": asdict(shape), "hardware": hardware}
    print(json.dumps(report | {"verdicts": [asdict(each) for each in verdicts]}))
    return 0


def compare(kind: str, shape: Shape, *, num_pairs: int) -> list[Verdict]:
    """LoRA of a few and of all layers, and with new tokens, each beside the whole model."""
    few, every = LoraSettings(r=shape.rank, target_modules=ATTENTION[kind]), LoraSettings(r=shape.rank)
    whole = _state(_backbone(kind, shape), None)
    adapted = {
        "attention": _state(_backbone(kind, shape), few),
        "all linear": _state(_backbone(kind, shape), every),
        "attention, new tokens": _state(_backbone(kind, shape), few, first_new_row=shape.vocabulary - 2),
    }
    ratios: dict[str, list[float]] = {name: [] for name in adapted}
    for number in range(num_pairs + 1):
        seconds = _seconds(whole, shape, number)
        for name, state in adapted.items():
            ratios[name].append(_seconds(state, shape, number) / seconds)
    # The first step of each is a warm-up.
    verdicts = [judge(f"{kind}, {name}: CPU seconds / whole", ratios[name][1:], at_most=STEP_TIME) for name in adapted]
    share = _optimizer_bytes(adapted["all linear"]) / _optimizer_bytes(whole)
    return [*verdicts, judge(f"{kind}, all linear: optimizer's bytes / whole", [share], at_most=OPTIMIZER_SHARE)]


def compare_feedback(method: str, bound: float, *, rank: int, num_pairs: int) -> list[Verdict]:
    case, model = Case(method, at_least=None), MODELS["small"]
    whole = our_step(case, model)
    adapted = {
        "attention": our_step(case, model, lora=LoraSettings(r=rank, target_modules=ATTENTION["gpt2"])),
        "all linear": our_step(case, model, lora=LoraSettings(r=rank)),
    }
    ratios: dict[str, list[float]] = {name: [] for name in adapted}
    for number in range(num_pairs + 1):
        seconds = whole(number)
        for name, step in adapted.items():
            ratios[name].append(step(number) / seconds)
    # The first step of each is a warm-up.
    return [judge(f"gpt2 {method}, {name}: CPU seconds / whole", ratios[name][1:], at_most=bound) for name in adapted]


def _backbone(kind: str, shape: Shape) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads, "n_positions": shape.length}
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=shape.vocabulary, **sizes, **dropout, **ends))
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=11 * shape.width // 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.length,
    )
    return LlamaForCausalLM(config)


def _state(backbone: PreTrainedModel, settings: LoraSettings | None, *, first_new_row: int | None = None) -> TrainState:
    model = LanguageModel(backbone)
    if settings is not None:
        base = AdapterBase("base")
        model.adapter = add_adapter(backbone, settings, base=base, first_new_row=first_new_row, seed=0)
    model.train()
    return TrainState(model, build_optimizer(model, weight_decay=0.1, betas=(0.9, 0.999), epsilon=1e-8))


def _seconds(state: TrainState, shape: Shape, number: int) -> float:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(shape.vocabulary, (shape.batch, shape.length), generator=generator, dtype=torch.int32)
    kinds = torch.full(ids.shape, int(TokenKind.CONTENT), dtype=torch.uint8)
    batch = MicroBatch(ids, torch.zeros(ids.shape), kinds, first_block=number)
    objective = build_objective({"name": "MLE"})
    since = time.process_time()
    train_step(state, [batch], objective=objective, learning_rate=1e-4, settings=StepSettings()).read()
    return time.process_time() - since


def _optimizer_bytes(state: TrainState) -> int:
    return sum(
        value.numel() * value.element_size() for held in state.optimizer.state.values() for value in held.values()
    )


if __name__ == "__main__":
    raise SystemExit(main())
