"""Measures how fast this machine trains, in a few seconds."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from phf_ray.config import Config
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.shape import ModelShape
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.memory import GB, memory_per_device
from phf_ray.training.schedule import speed_up
from phf_ray.training.start import forgetful_mask, set_up_layers
from phf_ray.training.state import TrainState, build_optimizer
from phf_ray.training.step import StepSettings, train_step

# A model of this size takes seconds per step on two cores; larger models are tried only on a GPU.
PROBED_PARAMETERS = 200_000_000
PROBE_S = 5.0

Speed = tuple[float, str]
"""Tokens per second of all workers, and the origin of the figure."""


def tried_speed(config: Config, *, shape: ModelShape, build: Callable[[], LanguageModel]) -> Speed | str:
    """Train the model from `build` for a few seconds on this machine; return its speed, or the reason for no trial."""
    reason = _why_not_tried(config, shape)
    if reason is not None:
        return reason
    training = config.training
    # Workers that compute padding contribute nothing.
    num_busy = speed_up(
        batch_size=training.effective_batch_size,
        micro_batch_size=training.per_device_train_batch_size,
        num_workers=training.num_workers,
    )
    try:
        measured = measured_tokens_per_s(config, build())
    except torch.OutOfMemoryError:
        return "a trial on one GPU ran out of memory"
    return measured * num_busy, f"measured on this machine as one of {training.num_workers} worker(s)"


def _why_not_tried(config: Config, shape: ModelShape) -> str | None:
    if not has_gpu():
        is_small = shape.num_parameters <= PROBED_PARAMETERS
        return None if is_small else "the model is too large to try out without a GPU"
    # The trial holds the whole model, even if the workers will share it.
    whole = config.model_copy(update={"training": config.training.model_copy(update={"parallelism": "ddp"})})
    needed, (free, _) = memory_per_device(whole, shape, has_gpu=True).total, torch.cuda.mem_get_info()
    if needed <= free:
        return None
    return f"a trial on one GPU needs about {needed / GB:.0f} GB, but only {free / GB:.0f} GB are free here"


def measured_tokens_per_s(config: Config, model: LanguageModel) -> float:
    """Measure the tokens per second of one worker on this machine, in a few steps of one micro-batch each.

    On a CPU, where a step with a large micro-batch takes minutes, each step has one sequence, and nothing is compiled.
    Changes the model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, length = config.training, config.dataset.seq_length
    set_up_layers(model, config, device=device, compiles=training.torch_compile and device.type == "cuda")
    optimizer = build_optimizer(model.to(device).train(), weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
    state = TrainState(model, optimizer)
    num_rows = training.per_device_train_batch_size if device.type == "cuda" else 1
    embedding: Any = model.backbone.get_input_embeddings()
    document = config.dataset.max_length or length
    batches = _random_batches(
        num_rows,
        length,
        vocabulary=embedding.weight.shape[0],
        # A reward model learns from pairs of rows.
        document=min(document, length // 2) if config.trains_reward_model else document,
        whole_pairs=config.trains_reward_model,
    )
    objective = build_objective({"name": "BradleyTerry" if config.trains_reward_model else "MLE"})
    settings = StepSettings(precision=training.precision, is_forgetful=forgetful_mask(config) is not None)
    num_steps, since = 0, 0.0
    for batch in batches:
        # The first step is a warm-up: it allocates memory, loads kernels and creates the optimizer's state.
        if state.step == 1:
            since = time.perf_counter()
        train_step(state, [batch], objective=objective, learning_rate=0.0, settings=settings).read()
        num_steps = state.step - 1
        if num_steps and time.perf_counter() - since > PROBE_S:
            break
    return num_steps * num_rows * length / (time.perf_counter() - since)


def has_gpu() -> bool:
    return torch.cuda.is_available()


def _random_batches(
    batch_size: int, length: int, *, vocabulary: int, document: int, whole_pairs: bool
) -> Iterator[MicroBatch]:
    """`document`: tokens of a document; a block of examples may be longer than the model has positions."""
    draw = np.random.default_rng(0)
    kinds_BS = torch.full((batch_size, length), int(TokenKind.PLAIN), dtype=torch.uint8)
    begins = torch.arange(0, length, document)
    kinds_BS[:, begins[: len(begins) // 2 * 2] if whole_pairs else begins] = int(TokenKind.END_OF_TEXT)
    for number in range(21):
        ids_BS = torch.from_numpy(draw.integers(vocabulary, size=(batch_size, length)))
        yield MicroBatch(ids_BS, torch.zeros(ids_BS.shape), kinds_BS, number)
