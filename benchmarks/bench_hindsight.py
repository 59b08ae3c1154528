"""A step of Chain of Hindsight beside a step of plain likelihood on as many tokens, and the price of a forgetful mask.

    python -m benchmarks.bench_hindsight [--pairs 9]

GPT-2 of 4 layers x 256 with vocabulary 8192, fp32 on the CPU, one thread. A step has 8 blocks of 512 tokens: 6 of
records (four answers, half of the tokens given) and 2 of text. Plain likelihood learns all tokens of the same
blocks, with the same documents. Steps are made in turns; a ratio is of CPU time, the median over the pairs with lowest
and highest. Prints a table and one line of JSON.
"""

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.bench_train import judge, print_verdicts
from phf_ray.models.forgetful_mask import ForgetfulMask
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.streams import CORPUS, LossStreams
from phf_ray.records import TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.state import TrainState, build_optimizer
from phf_ray.training.step import StepSettings, train_step

STEP = 1.05
NO_BOUND = 100.0


@dataclass(frozen=True, slots=True)
class Sizes:
    vocabulary: int = 8192
    width: int = 256
    layers: int = 4
    heads: int = 4
    rows: int = 8
    length: int = 512


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_hindsight", description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=9)
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    sizes = Sizes(**{name: getattr(arguments, name) for name in asdict(Sizes())})
    load = os.getloadavg()[0]
    plain, hindsight = step_of(sizes, learns_all=True), step_of(sizes)
    forgetful = step_of(sizes, mask=ForgetfulMask(0.0, 0.15, seed=0))
    verdicts = [
        judge("step of hindsight / of plain likelihood", _ratios(hindsight, plain, arguments.pairs), at_most=STEP),
        judge("step with a forgetful mask / without", _ratios(forgetful, hindsight, arguments.pairs), at_most=NO_BOUND),
    ]
    print_verdicts(verdicts)
    report = {
        "bench": "hindsight",
        "machine": platform.machine(),
        "load": load,
        "sizes": asdict(sizes),
        "verdicts": [asdict(each) for each in verdicts],
    }
    print(json.dumps(report))
    return 0


def _ratios(step: Callable[[int], float], other: Callable[[int], float], pairs: int) -> list[float]:
    # The first of each is a warm-up.
    return [step(number) / other(number) for number in range(pairs + 1)][1:]


def step_of(sizes: Sizes, *, learns_all: bool = False, mask: ForgetfulMask | None = None) -> Callable[[int], float]:
    """Return what makes a step and says how many CPU seconds it took."""
    backbone = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=sizes.vocabulary, n_positions=sizes.length, n_embd=sizes.width, n_layer=sizes.layers,
            n_head=sizes.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    model = LanguageModel(backbone)
    model.mask_documents()
    if mask is not None:
        model.forget(mask)
    state = TrainState(model.train(), build_optimizer(model, weight_decay=0.0, betas=(0.9, 0.95), epsilon=1e-8))
    streams = None if learns_all else LossStreams((0, 1), (1.0, 0.01))
    objective = build_objective({"name": "MLE"}, examples=not learns_all, streams=streams)
    settings = StepSettings(is_forgetful=mask is not None)

    def step(number: int) -> float:
        batch = batch_of_records(sizes, number)
        if learns_all:
            kinds_BS = batch.token_kinds_BS
            learned_BS = torch.where(kinds_BS == int(TokenKind.GIVEN), int(TokenKind.PLAIN), kinds_BS)
            batch = dataclasses.replace(batch, token_kinds_BS=learned_BS, channels={})
        since = time.process_time()
        train_step(state, [batch], objective=objective, learning_rate=1e-5, settings=settings).read()
        return time.process_time() - since

    return step


def batch_of_records(sizes: Sizes, number: int) -> MicroBatch:
    """Return blocks of two records each, in which given and learned parts take turns, and a quarter of text."""
    shape = (sizes.rows, sizes.length)
    ids_BS = torch.randint(sizes.vocabulary, shape, generator=torch.Generator().manual_seed(number))
    kinds_BS = torch.full(shape, int(TokenKind.PLAIN), dtype=torch.uint8)
    num_records = max(1, sizes.rows * 3 // 4)
    parts = torch.arange(sizes.length) * 8 // sizes.length
    kinds_BS[:num_records, parts % 2 == 0] = int(TokenKind.GIVEN)
    kinds_BS[:, [0, sizes.length // 2]] = int(TokenKind.END_OF_TEXT)
    corpus_B = (torch.arange(sizes.rows) >= num_records).float()
    return MicroBatch(
        ids_BS, torch.zeros(shape), kinds_BS, number * sizes.rows, {CORPUS: corpus_B[:, None].expand(shape).clone()}
    )


if __name__ == "__main__":
    raise SystemExit(main())
