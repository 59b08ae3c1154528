"""A copy of the policy that draws answers beside the training: built once, given the weights of each round."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.rollouts.drawing import AnswerDrawing
from phf_ray.rollouts.forward import Forward, ForwardShare
from phf_ray.rollouts.plan import RolloutJob
from phf_ray.rollouts.policies import engine_of
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rounds import StoredSample
from phf_ray.rollouts.shared_weights import SharedWeights, take_weights
from phf_ray.training.start import initial_model, set_up_layers


class PolicyCopy:
    def __init__(self, job: RolloutJob, *, device: torch.device):
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        # As in `training/in_process.py`: relative paths of the configuration start there.
        if Path(job.working_directory).is_dir():
            os.chdir(job.working_directory)
        config = parse_config(job.config)
        assert config.rollouts is not None
        torch.set_float32_matmul_precision("high" if config.training.tf32 else "highest")
        self._tokenizer = load_tokenizer(config.tokenizer)
        self._drawing = AnswerDrawing(config, tokenizer=self._tokenizer)
        self._model = initial_model(config, checkpoint_path=job.plan["checkpoint_path"], tokenizer=self._tokenizer)
        set_up_layers(self._model, config, device=device, compiles=False)
        self._model.to(device).eval().requires_grad_(False)
        self._forward = Forward(
            self._model, precision=config.training.precision, temperature=config.rollouts.temperature
        )
        self._share = ForwardShare(config.training.per_device_train_batch_size)
        self._max_batch = config.rollouts.sampling_batch
        self.weights: str | None = None
        """Name of those that it has."""

    def take(self, weights: SharedWeights) -> None:
        take_weights(self._model, weights)
        self._engine = engine_of(self._model, self._tokenizer, max_batch=self._max_batch)
        self.weights = weights.name

    def draw(self, number: int, prompts: Sequence[RolloutPrompt], *, with_behaviour: bool) -> list[StoredSample]:
        """Draw the answers of a batch with the weights taken last.

        `with_behaviour`: also compute their log-probabilities as training does, from the weights that are here only
        now.
        """
        samples = self._drawing.draw(self._engine, number, prompts)
        if not with_behaviour:
            return samples
        rows = self._drawing.rows(samples, [self._drawing.prefix_of(number)] * len(samples))
        numbers = self._forward.logprobs(rows, self._share)
        return [
            row if row.completion_ids is None else dataclasses.replace(row, behaviour=own)
            for row, own in zip(samples, numbers, strict=True)
        ]
