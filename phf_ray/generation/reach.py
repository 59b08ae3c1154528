"""How far an engine reaches: the longest text that it continues, in any batch, as the model does on its own.

Attention over keys and values is easy to batch; what else a model does at some length is not. So the engine tries
itself at load: it generates from short and long prompts together and compares its log-probabilities with those of plain
passes. It tries every length at which the configuration says that something changes: a window that begins to slide, the
end of a chunk. A text may not be longer than the first of them at which the two differ. If they differ at once, the
model is refused.
"""

import logging
import re
from typing import TYPE_CHECKING, Any

import torch

from phf_ray.errors import ConfigError
from phf_ray.generation.requests import GenerationRequest
from phf_ray.models.positions import declared_positions, position_limit

if TYPE_CHECKING:
    from phf_ray.generation.active import ActiveRequest
    from phf_ray.generation.engine import Engine

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 2048
NUM_TOKENS = 3
"""Generated in each trial."""
MAX_FLOPS = {"cpu": 1e13, "cuda": 2e15}
"""Limit of one trial: a minute or so on a few cores, or on a GPU."""
# Fields that set such a length for certain. A name with one of the words below may do so.
_SURE = ("sliding_window", "attention_chunk_size", "window_size", "floor_scale", "index_topk")
_PERHAPS = re.compile("window|chunk|block_size|topk|floor|sparse")


def find_context(engine: "Engine", config: Any, *, limit: int | None) -> int:
    """Return the number of positions that a text may use, and set the engine's alignment of rows. `limit`: at most.

    Raises ConfigError if the engine differs from plain passes even on short texts.
    """
    declared, reason = position_limit(config)
    declared = DEFAULT_CONTEXT if declared is None else declared
    most = declared if limit is None else min(declared, limit)
    found: list[tuple[int, bool, str]] = []
    for aligns_right in (False, True):
        engine.context, engine.aligns_right = most, aligns_right
        wrong = _trial(engine, [2, 5])
        if wrong is None:
            context, wrong = _longest(engine, config, most=most)
            found.append((context, aligns_right, wrong or reason))
            if context == most:
                break
    if not found:
        raise ConfigError(
            f"{type(engine.model).__name__} can't be served in batches of ragged rows ({wrong}); "
            "serve a model with plain attention, or put an OpenAI-compatible server in front of this one"
        )
    context, engine.aligns_right, reason = max(found, key=lambda each: each[0])
    named = declared_positions(config) or context
    if context < min(named, limit or named):
        log.warning("%s: texts may have %d tokens: %s", type(engine.model).__name__, context, reason)
    return context


def _longest(engine: "Engine", config: Any, *, most: int) -> tuple[int, str | None]:
    """Return the longest text that agrees with plain passes, and what is wrong beyond it."""
    for length, (field, is_sure) in sorted(_turns(config).items()):
        if length >= most:
            break
        long = min(length + length // 2 + 2, most - NUM_TOKENS)
        if not _is_affordable(engine, num_tokens=2 * (long + length)):
            if not is_sure:
                continue
            return length, f"{field} changes attention there, and a trial of longer texts would take too long"
        # The middle prompt grows past the length while it is decoded; the short one must not notice.
        wrong = _trial(engine, [2, max(1, min(length - 1, most - NUM_TOKENS)), long])
        if wrong is not None:
            return length, f"beyond, {field} makes texts depend on their batch ({wrong})"
    return most, None


def _turns(config: Any) -> dict[int, tuple[str, bool]]:
    """Return the lengths at which attention may change, each with the field that says so and whether it is sure."""
    turns: dict[int, tuple[str, bool]] = {}
    for field, value in config.to_dict().items():
        is_sure = field in _SURE
        if type(value) is int and value > 1 and (is_sure or _PERHAPS.search(field)):
            # Llama 4 counts from 1: the last position before a multiple is the first that changes.
            length = value - 1 if field == "floor_scale" else value
            turns[length] = max(turns.get(length, (field, False)), (field, is_sure), key=lambda turn: turn[1])
    return turns


def _is_affordable(engine: "Engine", *, num_tokens: int) -> bool:
    num_parameters = sum(parameter.numel() for parameter in engine.model.parameters())
    return 2 * num_parameters * num_tokens <= MAX_FLOPS["cpu" if engine.model.device.type == "cpu" else "cuda"]


def _trial(engine: "Engine", lengths: list[int]) -> str | None:
    """Generate from prompts of these lengths together; return how the result differs from plain passes, or None."""
    ids = sorted(engine.strings.valid_ids - set(engine.strings.control_ids.values()))
    requests = [
        # Ban control tokens: a sampled one would be replaced and hidden, and the plain pass would not see it.
        GenerationRequest(
            prompt=tuple(ids[k % len(ids)] for k in range(7, 7 + length)),
            max_tokens=NUM_TOKENS,
            temperature=0,
            ignore_eos=True,
            logprobs=5,
            control="none",
            policy="ban",
        )
        for length in lengths
    ]
    try:
        actives = engine.run(requests)
        for active in actives:
            if active.cause is not None:
                raise active.cause
            if active.error is not None:
                return active.error
        worst, tolerance = max(_difference(engine, active) for active in actives)
    except Exception as error:  # noqa: BLE001 - an architecture that does not fit may fail in any way
        engine.fail_all("the trial failed")
        return f"{type(error).__name__}: {error}"
    return None if worst <= 1 else f"log-probabilities differ by {worst * tolerance:.3g} from a plain forward pass"


@torch.inference_mode()
def _difference(engine: "Engine", active: "ActiveRequest") -> tuple[float, float]:
    """Return the largest difference in log-probability from a plain pass, in units of the tolerance, and that."""
    ids_1S = torch.tensor([[*active.prompt_ids, *active.visible_ids]], device=engine.model.device)
    logits_TV = (
        engine.model(
            input_ids=ids_1S,
            attention_mask=torch.ones_like(ids_1S),
            use_cache=False,
            logits_to_keep=len(active.visible_ids) + 1,
        )
        .logits[0]
        .float()
    )
    expected_TV = logits_TV.log_softmax(dim=-1)
    # A model that has not been trained has small logits, and small differences between them.
    scale = min(1.0, float(logits_TV.std()))
    tolerance = max(1e-5, 1e-3 * scale) if engine.model.dtype == torch.float32 else 0.2
    differences = [
        abs(logprob - float(expected_TV[i, id_]))
        for i, (token_id, own, best) in enumerate(active.records)
        for id_, logprob in ((token_id, own), *best)
    ]
    # NaN is no agreement, but is not greater than anything.
    worst = float(torch.tensor(differences).nan_to_num(nan=torch.inf, posinf=torch.inf).max())
    return worst / tolerance, tolerance
