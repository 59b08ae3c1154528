"""What a run of rounds costs, as far as it is known before it starts: tokens, calls of servers, their price, GPU hours.

Every answer counts with its full length. Answers that end before cost less.
"""

import asyncio
import dataclasses
from collections.abc import Iterator

from phf_ray.config import Config
from phf_ray.config.rewards import JudgedReward
from phf_ray.judging.board.outputs import one_model, read_outputs
from phf_ray.judging.budget import shown_money
from phf_ray.judging.desk import endpoints_of
from phf_ray.judging.estimate import CountingAsker, Estimate, estimate_parts
from phf_ray.judging.pairs import Pair
from phf_ray.judging.pool import load_pool
from phf_ray.judging.steps import Steps
from phf_ray.models.shape import ModelShape
from phf_ray.rollouts.algorithms.build import build_algorithm
from phf_ray.rollouts.driver import PreparedRun
from phf_ray.training.hardware import gpu_here, peak_flops

_PAIRS = 512
"""Of a judged reward: so many are put into the judges' words, and the others cost what these do on average."""
_CHARACTERS_PER_TOKEN = 4
_ASSUMED_GPU = "A100"
_LEARNING, _DRAWING = 0.4, 0.05
"""Shares of a GPU's peak: of passes over whole rows, and of drawing, which waits for memory."""


def describe_cost(config: Config, prepared: PreparedRun, *, shape: ModelShape) -> Iterator[str]:
    """Yield lines for `--dry-run`. Raises ConfigError or DataError if a judge can't be asked."""
    rollouts = config.rollouts
    assert rollouts is not None
    num_answers = rollouts.rounds * rollouts.rows_per_round
    times = "once" if rollouts.epochs == 1 else f"{rollouts.epochs} times"
    yield f"tokens       at most {num_answers * prepared.plan.longest_row:,} of prompts and answers, learned {times}"
    gold = [] if rollouts.gold is None else [rollouts.gold]
    for spec in (*rollouts.reward, *gold):
        if spec.url is not None:
            num_calls = rollouts.rounds * -(-rollouts.rows_per_round // spec.url.batch_size)
            yield f"calls        {spec.called}: at least {num_calls:,} of {spec.url.url}"
        if spec.annotators is not None:
            estimate = _judged(spec.annotators, num_answers, max_tokens=rollouts.max_tokens)
            yield (
                f"calls        {spec.called}: about {estimate.calls:,} of judges, {estimate.likely_tokens:,} tokens, "
                f"{_price(estimate)}; answers in the cache cost nothing"
            )
    yield from _compute(config, prepared, shape=shape)


def _price(estimate: Estimate) -> str:
    known = f"price {shown_money(estimate.likely_money)}"
    if not estimate.without_price:
        return known
    unknown = f"price unknown of {', '.join(sorted(estimate.without_price))}"
    return f"{known}, {unknown}" if estimate.likely_money else unknown


def _judged(settings: JudgedReward, num_answers: int, *, max_tokens: int) -> Estimate:
    """Count what judges are asked, as `phf annotate --dry-run` does, about references and full-length answers."""
    pool = load_pool(settings.pool)
    option = "annotators.reference"
    outputs = one_model(read_outputs([settings.reference], option=option), option=option).outputs
    answer = "x" * (_CHARACTERS_PER_TOKEN * max_tokens)
    pairs = [
        Pair(one["instruction"], one["input"], one["output"], answer) for one in outputs[:_PAIRS] if "error" not in one
    ]
    estimate = Estimate()
    asker = CountingAsker(estimate, endpoints_of(pool), None)
    steps = Steps(pool, seed=settings.seed)
    asyncio.run(estimate_parts(steps, [pairs], num_pairs=len(pairs), asker=asker, estimate=estimate))
    times = num_answers / max(1, len(pairs))
    counted = ("calls", "likely_tokens", "most_tokens", "likely_money", "most_money")
    return dataclasses.replace(estimate, **{name: round(getattr(estimate, name) * times) for name in counted})


def _compute(config: Config, prepared: PreparedRun, *, shape: ModelShape) -> Iterator[str]:
    rollouts, algorithm = config.rollouts, config.algorithm
    assert rollouts is not None
    assert algorithm is not None
    built = build_algorithm(algorithm, compat=config.feedback_compat)
    length = prepared.plan.longest_row
    num_tokens = rollouts.rounds * rollouts.rows_per_round * length
    has_reference = rollouts.reports_kl or built.needs_reference or built.needs_reference_states
    forward = _forward(shape, length)
    drawn = num_tokens * forward
    read = num_tokens * forward * (2 if has_reference else 1)
    learned = num_tokens * shape.flops_per_token(length) * rollouts.epochs
    if prepared.critic is not None:
        critic = prepared.critic.shape
        read += num_tokens * _forward(critic, length)
        learned += num_tokens * critic.flops_per_token(length) * rollouts.epochs
    total = drawn + read + learned
    yield (
        f"compute      at most {total:.2g} operations: {drawn / total:.0%} to draw, {read / total:.0%} for "
        f"log-probabilities, {learned / total:.0%} to learn; reward models come on top"
    )
    name = gpu_here() or _ASSUMED_GPU
    peak = peak_flops(name)
    if peak is None:
        return
    hours = (drawn / _DRAWING + (read + learned) / _LEARNING) / peak / 3600
    yield (
        f"GPU hours    about {hours:.2g} of {name} in bf16, if drawing reaches {_DRAWING:.0%} of its peak and the rest "
        f"{_LEARNING:.0%}"
    )


def _forward(shape: ModelShape, length: int) -> float:
    """Operations of a forward pass for each token; `flops_per_token` is of both passes."""
    return 2.0 * shape.num_multiplied + 4.0 * shape.num_layers * shape.attention_width * length
