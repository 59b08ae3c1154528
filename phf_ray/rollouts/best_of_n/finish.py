"""Writes the end of a run: all samples in one table, the best answers, the curve, the report. `_SUCCESS` comes last."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from phf_ray.corpus.layout import MANIFEST, SUCCESS, TEMPORARY
from phf_ray.corpus.part_file import PartFile
from phf_ray.corpus.tables import read_rows
from phf_ray.measures.numbers import Floats
from phf_ray.rollouts.best_of_n.alpaca_rows import alpaca_rows
from phf_ray.rollouts.best_of_n.curve import curve_over_n
from phf_ray.rollouts.best_of_n.examples import write_examples
from phf_ray.rollouts.best_of_n.page import best_of_n_page
from phf_ray.rollouts.best_of_n.picks import Picks, pick_best, rewards_of
from phf_ray.rollouts.best_of_n.plan import (
    CURVE,
    EXAMPLES,
    PARTS,
    REPORT,
    ROWS,
    SAMPLES,
    STAGE,
    BestOfNFolder,
    BestOfNPlan,
)
from phf_ray.rollouts.best_of_n.request import BestOfNRequest
from phf_ray.rollouts.best_of_n.rows import BestOfNStats, columns_of
from phf_ray.storage.files import open_filesystem, write_file


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run."""

    manifest: Mapping[str, Any]
    curve: dict[str, Any] | None
    """None: nothing was rewarded."""

    @property
    def warnings(self) -> list[str]:
        return list(self.manifest["warnings"])


def finish(request: BestOfNRequest, plan: BestOfNPlan, place: BestOfNFolder, stats: BestOfNStats) -> Finished:
    """Write everything that is made of the parts, and then remove them."""
    rows = [row for part in range(plan.num_parts) for row in _joined(place, part, is_rewarded=bool(request.rewards))]
    picks, curve = None, None
    if request.rewards:
        reward_SN = rewards_of(rows, "reward", n=request.n)
        gold_SN: Floats | None = None if request.gold is None else rewards_of(rows, "gold", n=request.n)
        picks, curve = pick_best(reward_SN), curve_over_n(reward_SN, gold_SN)
    _write_samples(request, place, rows, picks)
    content = alpaca_rows(request, rows, picks)
    write_file(place.name(ROWS), (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    num_examples = 0
    if picks is not None:
        num_examples = write_examples(request, place.name(EXAMPLES), rows, picks, config=plan.key)
    manifest = _manifest(request, plan, stats, picks, num_examples)
    if curve is not None and picks is not None:
        write_file(place.name(CURVE), (json.dumps(curve, indent=1) + "\n").encode())
        write_file(place.name(REPORT), best_of_n_page(request, manifest, curve, rows, picks).encode())
    write_file(place.name(MANIFEST), (json.dumps(manifest, indent=1) + "\n").encode())
    place.remove(TEMPORARY)
    write_file(place.name(SUCCESS), b"")
    # Until everything else is there, the parts are all that a run has.
    place.remove(PARTS)
    return Finished(manifest, curve)


def read_finished(place: BestOfNFolder) -> Finished:
    def read(name: str) -> Any:
        filesystem, path = open_filesystem(place.name(name))
        return json.loads(filesystem.cat_file(path))

    return Finished(read(MANIFEST), read(CURVE) if place.has(CURVE) else None)


def _joined(place: BestOfNFolder, part: int, *, is_rewarded: bool) -> Iterator[dict[str, Any]]:
    samples = read_rows(place.samples_part(part))
    if not is_rewarded:
        yield from samples
        return
    for sample, rewards in zip(samples, read_rows(place.rewards_part(part)), strict=True):
        assert (sample["prompt_id"], sample["sample"]) == (rewards["prompt_id"], rewards["sample"])
        yield {**sample, **rewards, "error": sample["error"] or rewards["error"]}


def _write_samples(
    request: BestOfNRequest, place: BestOfNFolder, rows: list[dict[str, Any]], picks: Picks | None
) -> None:
    prompt_fields = [("prompt", pa.string()), ("instruction", pa.string()), ("input", pa.string())]
    answer = [("completion", pa.string()), ("completion_ids", pa.list_(pa.int32())), ("finish_reason", pa.string())]
    rewards = [("reward", pa.float64()), *((f"reward_{name}", pa.float64()) for name in request.reward_names)]
    rewards += [("gold", pa.float64()), ("is_best", pa.bool_())]
    schema = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("sample", pa.int32()),
            *prompt_fields,
            *answer,
            *(rewards if picks is not None else []),
            ("error", pa.string()),
        ]
    )
    part = PartFile(place.name(SAMPLES), rejects=None, schema=schema)
    size = max(1, 1024 // request.n)
    try:
        for begin in range(0, len(request.prompts), size):
            whole = []
            for number, prompt in enumerate(request.prompts[begin : begin + size], begin):
                told = {"prompt": prompt.text, "instruction": prompt.instruction, "input": prompt.input}
                best = None if picks is None else picks.best_S[number]
                own = rows[number * request.n : (number + 1) * request.n]
                whole += [{**row, **told, "is_best": row["sample"] == best} for row in own]
            part.write(columns_of(whole, schema))
        part.commit({STAGE: 1})
    finally:
        part.abandon()


def _manifest(
    request: BestOfNRequest, plan: BestOfNPlan, stats: BestOfNStats, picks: Picks | None, num_examples: int
) -> dict[str, Any]:
    return {
        STAGE: 1,
        "settings": dict(plan.key),
        "model": request.decoder,
        "prompts": len(request.prompts),
        "left_out": dict(sorted(request.left_out.items())),
        "n": request.n,
        **stats.to_json(),
        "examples": num_examples,
        **({} if picks is None else _choice(picks)),
        "warnings": _warnings(request, stats, picks),
    }


def _choice(picks: Picks) -> dict[str, int]:
    return {
        "prompts_without_best": picks.num_without,
        "prompts_with_ties": picks.num_tied,
        "prompts_with_equal_rewards": picks.num_constant,
    }


def _warnings(request: BestOfNRequest, stats: BestOfNStats, picks: Picks | None) -> list[str]:
    total = len(request.prompts)
    found = [f"{count} prompts were left out: {reason}" for reason, count in sorted(request.left_out.items())]
    if stats.failures:
        found.append(f"{stats.failed_rows} samples have no answer or no reward: {stats.summary()}")
    cut = stats.finish_reasons["length"]
    if cut:
        found.append(f"{cut} of {stats.rows} answers were cut at max_tokens")
    if picks is None:
        return found
    if picks.num_constant:
        first = request.prompts[picks.example or 0]
        found.append(
            f"{picks.num_constant} of {total} prompts have the same reward for all samples, so the first was taken; "
            f"one of them is {first.instruction!r:.80}"
        )
    if picks.num_tied > picks.num_constant:
        found.append(f"{picks.num_tied} of {total} prompts have several best samples; the first was taken")
    if picks.num_without:
        found.append(f"{picks.num_without} of {total} prompts have no sample with a reward, and no best one")
    return found
