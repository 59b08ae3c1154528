"""The rows of `best_of_n.json`, as AlpacaFarm's `best_of_n.py` writes them: those of decoding, of reranking, or the
best. They hold more than AlpacaFarm's: the rewards, which it discards."""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.characters import whole_characters
from phf_ray.rollouts.best_of_n.picks import Picks
from phf_ray.rollouts.best_of_n.request import BestOfNRequest
from phf_ray.rollouts.prompts import RolloutPrompt

_CARRIED = ("dataset", "datasplit")
"""Columns of AlpacaFarm's prompts that its readers group by."""


def alpaca_rows(
    request: BestOfNRequest, rows: Sequence[Mapping[str, Any]], picks: Picks | None
) -> list[dict[str, Any]]:
    """Return one row for each prompt; of the best, none for a prompt that has none."""
    found = []
    for number, prompt in enumerate(request.prompts):
        own = rows[number * request.n : (number + 1) * request.n]
        best = None if picks is None else picks.best_S[number]
        if request.mode == "decode":
            row = _decoded(request, prompt, own)
        elif request.mode == "rerank":
            row = _reranked(request, prompt, own, best)
        elif best is None:
            continue
        else:
            row = _best(request, own[best])
        found.append({"instruction": prompt.instruction, "input": prompt.input, **row, **_carried(prompt)})
    return found


def _decoded(request: BestOfNRequest, prompt: RolloutPrompt, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    outputs = [row["completion"] for row in own]
    return {
        "output": outputs if request.n > 1 else outputs[0],
        "prompt": prompt.text,
        "decoder_name_or_path": request.decoder,
        "sample_mode": request.sample_mode,
    }


def _reranked(
    request: BestOfNRequest, prompt: RolloutPrompt, own: Sequence[Mapping[str, Any]], best: int | None
) -> dict[str, Any]:
    top = [] if best is None else [best]
    return {
        "output": [row["completion"] for row in own],
        "top_sequence": [f"{prompt.text}{own[index]['completion']}" for index in top],
        "top_index": top,
        "scorer_name_or_path": request.scorer,
        "rewards": [row["reward"] for row in own],
    }


def _best(request: BestOfNRequest, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "output": row["completion"],
        "generator": request.name,
        "decoder_name_or_path": request.decoder,
        "scorer_name_or_path": request.scorer,
        "sample_mode": f"best_of_n_{request.sample_mode}",
        "reward": row["reward"],
    }


def _carried(prompt: RolloutPrompt) -> dict[str, Any]:
    # A file holds no halves of surrogate pairs.
    return {name: whole_characters(prompt.row[name]) for name in _CARRIED if isinstance(prompt.row.get(name), str)}
