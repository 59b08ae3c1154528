"""Plans a run of rounds from its configuration and prompts; every start of the run gets the same plan.

<storage-path>/prompts/prompts-<hash>.jsonl    the prompts that the rounds answer, one a line
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from phf_ray.config import Config
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.chat import load_template
from phf_ray.generation.chat.prompts import InstructionPrompt, TextPrompt, as_messages
from phf_ray.rollouts.prompts import RolloutPrompt, prompt_of, read_prompts
from phf_ray.storage.files import write_text
from phf_ray.storage.hashing import json_fingerprint
from phf_ray.training.plan import WorkerJob

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """Figures that follow from the configuration and the prompts, the same at every start of a run."""

    num_steps: int
    steps_per_round: int
    num_prompts: int
    prompts_hash: str
    checkpoint_path: str | None
    """Checkpoint whose weights the run starts from; None: the configuration's model."""
    start: str
    """Hash of these weights, which are the reference too."""
    longest_row: int
    """Tokens of a prompt and its answer at most, with a control token if the algorithm has such tokens."""
    critic: str | None = None
    """Hash of the weights that the critic starts from; None: the run has no critic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutJob(WorkerJob):
    """What a worker that learns from rounds is told."""

    prompts_path: str


@dataclass(frozen=True, slots=True)
class StoredPrompts:
    path: str
    fingerprint: str
    num_prompts: int
    longest: int
    """Tokens of the longest prompt."""


def plan_rollouts(
    config: Config, *, prompts: StoredPrompts, checkpoint_path: str | None, start: str, critic: str | None = None
) -> RolloutPlan:
    """Plan a run. Raises ConfigError if there are fewer prompts than a round needs."""
    rollouts = config.rollouts
    assert rollouts is not None
    if rollouts.prompts_per_round > prompts.num_prompts:
        raise ConfigError(
            f"rollouts.prompts_per_round={rollouts.prompts_per_round}, but there are {prompts.num_prompts} prompts; "
            f"lower it to at most {prompts.num_prompts}, or add prompts to rollouts.prompts"
        )
    return RolloutPlan(
        num_steps=rollouts.rounds * rollouts.steps_per_round,
        steps_per_round=rollouts.steps_per_round,
        num_prompts=prompts.num_prompts,
        prompts_hash=prompts.fingerprint,
        checkpoint_path=checkpoint_path,
        start=start,
        longest_row=_num_control(config) + prompts.longest + rollouts.max_tokens,
        critic=critic,
    )


class UsablePrompts(NamedTuple):
    prompts: list[RolloutPrompt]
    longest: int
    """Tokens of the longest, with the end-of-text token before it."""
    left_out: Counter[str]


def usable_prompts(config: Config, *, tokenizer: Any, context: int | None) -> UsablePrompts:
    """Return the prompts that can be answered, and why the others are left out.

    `context`: positions of the model; None: no limit is known. Raises ConfigError if none can be.
    """
    rollouts = config.rollouts
    assert rollouts is not None
    name = config.dataset.prompt_template
    if name is None and tokenizer.chat_template:
        name = "tokenizer"
    template = None if name is None else load_template(name, tokenizer=tokenizer)
    found = read_prompts(rollouts.prompts, template=template, option="rollouts.prompts")
    most = longest_prompt(config, context=context)
    left_out = Counter(found.left_out)
    kept, longest = [], 0
    for prompt in found.prompts:
        length = 1 + len(tokenizer(prompt.text, add_special_tokens=False, verbose=False)["input_ids"])
        if most is not None and length > most:
            left_out["too_long"] += 1
        else:
            kept.append(prompt)
            longest = max(longest, length)
    num_read = len(kept) + sum(left_out.values())
    for reason, number in left_out.items():
        log.warning("%d of %d prompts are left out: %s", number, num_read, _REASONS.get(reason, reason))
    if not kept:
        raise ConfigError(
            f"rollouts.prompts: all {left_out['too_long']} prompts are longer than {most} tokens, which is what "
            f"rollouts.max_prompt_tokens or the model's context leaves beside rollouts.max_tokens={rollouts.max_tokens}"
        )
    return UsablePrompts(kept, longest, left_out)


_REASONS = {
    "too_long": "they are longer than rollouts.max_prompt_tokens, or than what the model's context leaves beside an "
    "answer of rollouts.max_tokens",
    "duplicate": "they are there already",
    "template": "dataset.prompt_template can't hold them",
}


def longest_prompt(config: Config, *, context: int | None) -> int | None:
    """Return the most tokens that a prompt may have with its end-of-text token, None for any number.

    Raises ConfigError if the context holds no prompt beside an answer.
    """
    rollouts = config.rollouts
    assert rollouts is not None
    asked = None if rollouts.max_prompt_tokens is None else rollouts.max_prompt_tokens + 1
    if context is None:
        return asked
    room = context - rollouts.max_tokens - _num_control(config)
    if room < 2:
        raise ConfigError(
            f"rollouts.max_tokens={rollouts.max_tokens} leaves no room for a prompt in the {context} positions of the "
            f"model or its critic; lower it to at most {rollouts.max_tokens + room - 2}"
        )
    return room if asked is None else min(room, asked)


def _num_control(config: Config) -> int:
    """Return how many control tokens stand before a prompt."""
    return 1 if config.algorithm is not None and config.algorithm.tokens else 0


def store_prompts(usable: UsablePrompts, *, folder: str, stores: bool = True) -> StoredPrompts:
    """Write the prompts, unless a file with the same ones is there. `stores`: false to learn only what they are."""
    lines = [json.dumps(_as_json(prompt), ensure_ascii=False, default=str) for prompt in usable.prompts]
    fingerprint = json_fingerprint(lines)
    path = Path(folder) / f"prompts-{fingerprint[:16]}.jsonl"
    if stores and not path.exists():
        write_text(path, "".join(line + "\n" for line in lines))
    return StoredPrompts(str(path), fingerprint, len(usable.prompts), usable.longest)


def read_stored_prompts(path: str) -> list[RolloutPrompt]:
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
        return [RolloutPrompt(row["id"], row["text"], prompt_of(row["prompt"], path), row["row"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} can't be read ({type(error).__name__}: {error}); remove it and give the command again"
        ) from None


def _as_json(prompt: RolloutPrompt) -> dict[str, Any]:
    asked: Mapping[str, Any]
    if isinstance(prompt.prompt, InstructionPrompt):
        asked = {"instruction": prompt.prompt.instruction, "input": prompt.prompt.input}
    elif isinstance(prompt.prompt, TextPrompt):
        asked = {"prompt": prompt.prompt.text}
    else:
        asked = {"messages": [{"role": one.role, "content": one.content} for one in as_messages(prompt.prompt)]}
    return {"id": prompt.id, "text": prompt.text, "prompt": dict(asked), "row": dict(prompt.row)}
