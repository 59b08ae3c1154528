"""Cost of the objectives: time of a step, time and memory of the loss, against stock loss and original formulas.

    python -m benchmarks.bench_objectives                     # head, memory and whole step on this machine
    python -m benchmarks.bench_objectives --parts head memory --pairs 5
    python -m benchmarks.bench_objectives --parts gpu         # training steps of GPT-2 124 M: tokens/s and MFU

Every reference is measured in the same run, interleaved with those it is compared to; a ratio is the median over pairs,
with the lowest and highest pair. `within noise`: the median misses the target, the best pair meets it.

The whole step on a processor is one of GPT-2 small with 4 of its 12 layers: it takes half the time, and the loss being
a larger part of it, the targets are harder to meet than with all layers.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from phf_ray.models.heads import ValueHead
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.shape import shape_of
from phf_ray.objectives.base import Objective
from phf_ray.objectives.build import build_objective
from phf_ray.training.batches import MicroBatch
from phf_ray.training.hardware import peak_flops
from phf_ray.training.state import TrainState, build_optimizer
from phf_ray.training.step import StepSettings, train_step

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
NO_GPU = "no GPU here: part gpu measures training steps of GPT-2 124 M on one; the other parts run on a processor"


@dataclass(frozen=True, slots=True)
class Sizes:
    vocabulary: int = 50257
    width: int = 768
    rows: int = 2
    length: int = 1024
    layers: int = 4
    heads: int = 12

    def gpt2(self) -> GPT2Config:
        return GPT2Config(
            vocab_size=self.vocabulary,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            n_positions=self.length,
            bos_token_id=0,
            eos_token_id=0,
        )


OBJECTIVES = {
    "MLE": {"name": "MLE"},
    "Unlikelihood": {"name": "Unlikelihood", "score_threshold": 0.5, "alpha": 1.0},
    "RWR": {"name": "RWR", "beta": 1.0},
    "AWR": {"name": "AWR", "alpha": 0.5, "beta": 1.0},
}


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    against: str
    ratio: float
    lowest: float
    highest: float
    target: float | None
    detail: str

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        if self.ratio <= self.target:
            return "met"
        return "within noise" if self.lowest <= self.target else "missed"


@dataclass
class Batch:
    ids_BS: torch.Tensor
    scores_BS: torch.Tensor
    kinds_BS: torch.Tensor
    hidden_BSD: torch.Tensor
    head_VD: torch.Tensor
    values_BS: torch.Tensor


def make_batch(sizes: Sizes) -> Batch:
    shape = (sizes.rows, sizes.length)
    generator = torch.Generator().manual_seed(0)
    return Batch(
        ids_BS=torch.randint(sizes.vocabulary, shape, generator=generator),
        scores_BS=torch.rand(shape, generator=generator),
        kinds_BS=torch.zeros(shape, dtype=torch.uint8),
        hidden_BSD=torch.randn(*shape, sizes.width, generator=generator).requires_grad_(),
        head_VD=(0.02 * torch.randn(sizes.vocabulary, sizes.width, generator=generator)).requires_grad_(),
        values_BS=torch.full(shape, -0.5, requires_grad=True),
    )


# Losses on given hidden states: each runs forward and backward.


def fused_loss(name: str, batch: Batch) -> Callable[[], None]:
    objective = build_objective(OBJECTIVES[name])

    def run() -> None:
        _forget(batch)
        out = objective(
            hidden_BSD=batch.hidden_BSD,
            head_VD=batch.head_VD,
            input_ids_BS=batch.ids_BS,
            token_scores_BS=batch.scores_BS,
            token_kinds_BS=batch.kinds_BS,
            values_BS=batch.values_BS if name == "AWR" else None,
        )
        out.loss.backward()

    return run


def stock_loss(batch: Batch) -> Callable[[], None]:
    """transformers' loss of a causal LM, on logits computed as its models do."""
    loss_function = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9)).loss_function

    def run() -> None:
        _forget(batch)
        logits_BSV = batch.hidden_BSD @ batch.head_VD.T
        loss_function(logits_BSV, batch.ids_BS, vocab_size=batch.head_VD.shape[0]).backward()

    return run


def original_loss(name: str, batch: Batch) -> Callable[[], None]:
    """The original's formulas over the whole matrix of logits."""

    def run() -> None:
        _forget(batch)
        logits_NV = (batch.hidden_BSD @ batch.head_VD.T)[:, :-1].flatten(0, 1)
        targets_N = batch.ids_BS[:, 1:].flatten()
        scores_N = batch.scores_BS[:, 1:].flatten()
        if name == "Unlikelihood":
            log_p_N = logits_NV.log_softmax(-1).gather(1, targets_N[:, None]).squeeze(1)
            aligned_N = (scores_N <= 0.5).float()
            unlikelihood_N = -torch.log(torch.clamp(1 - log_p_N.exp(), min=1e-20))
            (aligned_N * -log_p_N + (1 - aligned_N) * unlikelihood_N).mean().backward()
            return
        loss_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
        if name in ("RWR", "AWR"):
            advantages_N = -scores_N - batch.values_BS[:, :-1].flatten()
            loss_N = loss_N * advantages_N.detach().exp().clamp(max=1000)
            loss_N = loss_N if name == "RWR" else (loss_N + advantages_N.square()) / 2
        loss_N.mean().backward()

    return run


def _forget(batch: Batch) -> None:
    for tensor in (batch.hidden_BSD, batch.head_VD, batch.values_BS):
        tensor.grad = None


# Whole steps: forward, loss, backward of GPT-2 small.


def make_step(name: str, model: LanguageModel, batch: Batch, *, precision: str) -> Callable[[], None]:
    objective = None if name == "transformers" else build_objective(OBJECTIVES[name])

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            if objective is None:
                loss = model.backbone(input_ids=batch.ids_BS, labels=batch.ids_BS, use_cache=False).loss
            else:
                loss = model(batch.ids_BS, batch.scores_BS, batch.kinds_BS, objective).loss
        loss.backward()

    return run


# Measuring


def interleaved(runs: dict[str, Callable[[], None]], *, pairs: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds of each, one after the other in every round, after a round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(pairs + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if round_:
                seconds[name].append(clock() - start)
    return seconds


def compare(seconds: dict[str, list[float]], name: str, against: str, *, target: float | None, what: str) -> Result:
    ratios = [mine / other for mine, other in zip(seconds[name], seconds[against], strict=True)]
    detail = f"{statistics.median(seconds[name]):.3f} s / {statistics.median(seconds[against]):.3f} s"
    return Result(f"{what}: {name}", against, statistics.median(ratios), min(ratios), max(ratios), target, detail)


def compare_all(seconds: dict[str, list[float]], *, what: str) -> list[Result]:
    results = [compare(seconds, "MLE", "transformers", target=1.0, what=what)]
    return results + [compare(seconds, name, "MLE", target=1.05, what=what) for name in OBJECTIVES if name != "MLE"]


def bench_head(sizes: Sizes, *, pairs: int, precision: str, clock: Clock) -> list[Result]:
    batch = make_batch(sizes)
    runs = {"transformers": stock_loss(batch), **{name: fused_loss(name, batch) for name in OBJECTIVES}}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        return compare_all(interleaved(runs, pairs=pairs, clock=clock), what=f"loss {precision}")


def bench_step(sizes: Sizes, *, pairs: int, precision: str, clock: Clock) -> list[Result]:
    batch = make_batch(sizes)
    # One model for all, with a value head that costs a product of width 1; every run is given the same weights.
    model = LanguageModel(GPT2LMHeadModel(sizes.gpt2()), value_head=ValueHead(sizes.width)).train()
    names = ["transformers", *OBJECTIVES]
    runs = {name: make_step(name, model, batch, precision=precision) for name in names}
    return compare_all(interleaved(runs, pairs=pairs, clock=clock), what=f"step {precision}")


def bench_memory(sizes: Sizes, *, precision: str) -> list[Result]:
    """Peak of resident memory above the inputs, each in a process of its own. 154 MB of ours is the head's gradient."""
    results = []
    for name in OBJECTIVES:
        ours, original = (_peak_in_subprocess(sizes, kind, name, precision) for kind in ("fused", "original"))
        ratio = ours / original
        detail = f"{ours / 1e6:.0f} MB / {original / 1e6:.0f} MB"
        results.append(Result(f"memory {precision}: {name}", "original", ratio, ratio, ratio, 1 / 3, detail))
    return results


def _peak_in_subprocess(sizes: Sizes, *measured: str) -> int:
    command = [sys.executable, "-m", "benchmarks.bench_objectives", "--measure", *measured]
    for name, value in asdict(sizes).items():
        command += [f"--{name}", str(value)]
    # One arena and no cache of freed blocks: resident memory then follows what is allocated.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return int(output.split()[-1])


def measure_peak(sizes: Sizes, kind: str, name: str, precision: str) -> int:
    batch = make_batch(sizes)
    make = fused_loss if kind == "fused" else original_loss
    run = make(name, batch)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _high_water_bytes()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        run()
    return _high_water_bytes() - before


def _high_water_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# Training steps on a GPU


@dataclass(frozen=True, slots=True)
class Speed:
    """Of training steps with optimizer, one micro-batch each; median, lowest and highest round."""

    objective: str
    tokens_per_s: float
    lowest: float
    highest: float
    mfu: float | None
    """None: the device's peak is not known."""


def bench_training(
    sizes: Sizes, *, device: torch.device, rounds: int, steps: int, compiled: bool, precision: Literal["bf16", "fp32"]
) -> list[Speed]:
    """tokens/s of our step for each objective, in turns; all train the same model, with a value head."""
    model = LanguageModel(GPT2LMHeadModel(sizes.gpt2()), value_head=ValueHead(sizes.width)).to(device).train()
    if compiled:
        model.compile_blocks(device)
    optimizer = build_optimizer(model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-8)
    state = TrainState(model, optimizer)
    batch = make_batch(sizes)
    micro_batches = [MicroBatch(batch.ids_BS, batch.scores_BS, batch.kinds_BS, 0)]
    settings = StepSettings(precision=precision)

    def run(objective: Objective) -> Callable[[], None]:
        def some_steps() -> None:
            for _ in range(steps):
                totals = train_step(state, micro_batches, objective=objective, learning_rate=1e-4, settings=settings)
            totals.read()  # waits for the device

        return some_steps

    runs = {name: run(build_objective(config)) for name, config in OBJECTIVES.items()}
    seconds = interleaved(runs, pairs=rounds, clock=time.perf_counter)
    tokens = steps * sizes.rows * sizes.length
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    flops = shape_of(model).flops_per_token(sizes.length)
    speeds = []
    for name, values in seconds.items():
        median = tokens / statistics.median(values)
        mfu = None if peak is None else median * flops / peak
        speeds.append(Speed(name, median, tokens / max(values), tokens / min(values), mfu))
    return speeds


def print_speeds(speeds: Sequence[Speed]) -> None:
    for speed in speeds:
        mfu = "MFU unknown" if speed.mfu is None else f"MFU {speed.mfu:.1%}"
        spread = f"[{speed.lowest:,.0f}, {speed.highest:,.0f}]"
        print(f"train: {speed.objective:14} {speed.tokens_per_s:12,.0f} tokens/s {spread:24} {mfu}")


def hardware() -> str:
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    name = models[0] if models else platform.processor()
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}; {name}"
    return f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"


def bench(
    sizes: Sizes, *, parts: Sequence[str], precisions: Sequence[str], pairs: int, clock: Clock = time.perf_counter
) -> list[Result]:
    results = []
    for precision in precisions:
        if "head" in parts:
            results += bench_head(sizes, pairs=pairs, precision=precision, clock=clock)
        if "memory" in parts:
            results += bench_memory(sizes, precision=precision)
        if "step" in parts:
            results += bench_step(sizes, pairs=pairs, precision=precision, clock=clock)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["head", "memory", "step", "gpu"], default=["head", "memory", "step"]
    )
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: processor time, where the machine has other work"
    )
    parser.add_argument("--gpu-rows", type=int, default=32, help="sequences of a micro-batch in part gpu")
    for name, value in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "NAME", "PRECISION"), help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    sizes = Sizes(**{name: getattr(arguments, name) for name in asdict(Sizes())})
    if arguments.measure:
        print(measure_peak(sizes, *arguments.measure))
        return 0
    if "gpu" in arguments.parts and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    before = hardware()
    results = bench(
        sizes,
        parts=arguments.parts,
        precisions=arguments.precisions,
        pairs=arguments.pairs,
        clock=CLOCKS[arguments.clock],
    )
    print(f"{before}; {arguments.clock} time; torch {torch.__version__}; {sizes}")
    for result in results:
        target = "" if result.target is None else f"target {result.target:.2f}"
        spread = f"{result.ratio:5.2f} [{result.lowest:.2f}, {result.highest:.2f}]"
        print(f"{result.name:26} / {result.against:12} {spread}  {target:12} {result.verdict:12} {result.detail}")
    speeds: list[Speed] = []
    if "gpu" in arguments.parts:
        # The vocabulary is padded to a multiple of 128, as one would train.
        whole = Sizes(vocabulary=50304, rows=arguments.gpu_rows, layers=12)
        speeds = bench_training(
            whole, device=torch.device("cuda"), rounds=arguments.pairs, steps=10, compiled=True, precision="bf16"
        )
        print_speeds(speeds)
    print(
        json.dumps(
            {
                "bench": "objectives",
                "hardware": before,
                "clock": arguments.clock,
                "torch": torch.__version__,
                "sizes": asdict(sizes),
                "metrics": [{**asdict(result), "verdict": result.verdict} for result in results],
                "training": [asdict(speed) for speed in speeds],
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
