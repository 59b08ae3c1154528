"""The plan of a run: how many parts there are, fixed before anything is sampled; and the folder that it writes.

    plan.json               what decides the rows, and the number of parts
    parts/samples-00000.parquet, parts/rewards-00000.parquet ...  while the run is under way
    samples.parquet         every sample with its rewards
    best_of_n.json          AlpacaFarm's rows
    examples/               a feedback corpus of the best answers
    curve.json, report.html the reward over n
    manifest.json           settings and counts
    _SUCCESS                written last

These names are a contract.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from phf_ray.corpus.footers import read_footer
from phf_ray.corpus.layout import MANIFEST, PLAN, SUCCESS, TEMPORARY
from phf_ray.corpus.output import CorpusFolder
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt
from phf_ray.rollouts.best_of_n.request import BestOfNRequest
from phf_ray.rollouts.prompts import RolloutPrompt, prompt_of
from phf_ray.storage.files import open_filesystem, write_file
from phf_ray.storage.hashing import json_fingerprint

SAMPLES, ROWS, CURVE, REPORT, EXAMPLES, PARTS = (
    "samples.parquet",
    "best_of_n.json",
    "curve.json",
    "report.html",
    "examples",
    "parts",
)
STAGE = "best_of_n"
_KEYS = {PLAN: {STAGE, "num_parts"}, MANIFEST: {STAGE, "settings"}}
_FEWEST, _MOST, _PARTS = 64, 2048, 64
"""Samples of a part: enough to fill the engine's batch, few enough to be drawn again without regret."""


@dataclass(frozen=True, slots=True)
class BestOfNPlan:
    key: Mapping[str, Any]
    num_prompts: int
    num_parts: int

    def digest(self, part: int) -> str:
        return json_fingerprint([self.key, self.num_prompts, self.num_parts, part])

    def slice_of(self, part: int) -> slice:
        """The prompts of a part."""
        ends = [number * self.num_prompts // self.num_parts for number in (part, part + 1)]
        return slice(*ends)


class BestOfNFolder(CorpusFolder):
    def __init__(self, path: str):
        super().__init__(path, keys=_KEYS)

    def samples_part(self, part: int) -> str:
        return self.name(PARTS, f"samples-{part:05d}.parquet")

    def rewards_part(self, part: int) -> str:
        return self.name(PARTS, f"rewards-{part:05d}.parquet")

    def has_samples(self) -> bool:
        """Whether there is anything that was drawn or given."""
        # A part that was being written when the process was killed has another ending.
        return self.has(SUCCESS) or any(name.endswith(".parquet") for name in self._names(PARTS))

    def clear(self) -> None:
        """Remove everything that a run writes: `_SUCCESS` first, and last the plan, which makes it ours."""
        for name in (SUCCESS, SAMPLES, ROWS, CURVE, REPORT, EXAMPLES, PARTS, MANIFEST, TEMPORARY, PLAN):
            self.remove(name)


def footer_at(path: str) -> dict[str, Any] | None:
    """Return the footer of a part; None if it is missing or torn."""
    filesystem, inner = open_filesystem(path)
    return read_footer(path) if filesystem.exists(inner) else None


def plan_best_of_n(request: BestOfNRequest, place: BestOfNFolder, *, restart: bool, is_alone: bool) -> BestOfNPlan:
    """Return the plan of this output: the stored one if it still holds, else a new one, which is stored.

    `is_alone`: whether no other command can be at work on it. Raises ConfigError that names what has changed.
    """
    stored = None if restart else _read_plan(place)
    if stored is not None:
        changes = [_FLAGS[name] for name, value in request.key.items() if stored.key.get(name) != value]
        if changes and (place.has_samples() or not is_alone):
            raise ConfigError(
                f"--output {place.path} was begun with another {', '.join(changes)}; give another --output, or "
                "--restart to discard its contents"
            )
        if not changes:
            return stored
        # A command that was refused, or failed before it drew anything, leaves its place to a corrected one.
        restart = True
    samples = min(max(request.num_samples // _PARTS, _FEWEST), _MOST)
    num_prompts = len(request.prompts)
    # A part has whole prompts.
    num_parts = min(num_prompts, max(1, -(-request.num_samples // max(samples, request.n))))
    plan = BestOfNPlan(dict(request.key), num_prompts, num_parts)
    if restart and place.is_ours():
        place.clear()
    place.refuse_strangers()
    write_file(place.name(PLAN), json.dumps({STAGE: 1, **asdict(plan)}, indent=1).encode())
    return plan


_FLAGS = {
    "mode": "--mode",
    "model": "--model (or its weights have changed)",
    "template": "--template",
    "prompts": "--prompts (or its file has changed)",
    "outputs": "--prompts (its answers have changed)",
    "n": "--n",
    "sampling": "--temperature, --top-p, --top-k, --max-tokens, --stop or --control",
    "seed": "--seed",
    "reward": "--reward (or its weights have changed)",
    "gold": "--gold (or its weights have changed)",
    "name": "--name",
}


def _read_plan(place: BestOfNFolder) -> BestOfNPlan | None:
    if not place.is_ours():
        return None
    filesystem, path = open_filesystem(place.name(PLAN))
    try:
        values = json.loads(filesystem.cat_file(path))
        return BestOfNPlan(values["key"], values["num_prompts"], values["num_parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place.name(PLAN)} can't be read: {error!r}; start over with --restart") from None


def rows_of_parts(request: BestOfNRequest, plan: BestOfNPlan, parts: Sequence[int]) -> list[dict[str, Any]]:
    """Return what a worker is told of each part, as plain values that travel to Ray's actors."""
    rows = []
    for part in parts:
        where = plan.slice_of(part)
        rows.append(
            {
                "part": part,
                "digest": plan.digest(part),
                # A table may hold what is no JSON, such as a date.
                "prompts": json.dumps([prompt_json(prompt) for prompt in request.prompts[where]], default=str),
                "outputs": json.dumps(request.outputs[where]),
            }
        )
    return rows


def prompt_json(prompt: RolloutPrompt) -> dict[str, Any]:
    asked = prompt.prompt
    told: dict[str, Any] = {"prompt": getattr(asked, "text", None)}
    if isinstance(asked, InstructionPrompt):
        told = {"instruction": asked.instruction, "input": asked.input}
    elif isinstance(asked, ChatPrompt):
        told = {"messages": [asdict(message) for message in asked.messages]}
    return {"id": prompt.id, "text": prompt.text, "asked": told, "row": dict(prompt.row)}


def prompts_from_json(text: str) -> list[RolloutPrompt]:
    return [
        RolloutPrompt(one["id"], one["text"], prompt_of(one["asked"], "the plan"), one["row"])
        for one in json.loads(text)
    ]
