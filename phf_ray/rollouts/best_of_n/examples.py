"""The best answers as an `examples` corpus, which `phf train-lm` learns from: expert iteration."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.corpus.finish import write_end
from phf_ray.corpus.layout import part_name
from phf_ray.corpus.part_file import PartFile
from phf_ray.feedback.layout import RowForm
from phf_ray.feedback.manifest import FeedbackManifest, FeedbackStats, feedback_card
from phf_ray.feedback.rows import Example
from phf_ray.generation.chat.prompts import Prompt, TextPrompt, prompt_text
from phf_ray.rollouts.best_of_n.picks import Picks
from phf_ray.rollouts.best_of_n.request import BestOfNRequest
from phf_ray.storage.hashing import digest

_ROWS = 4096
"""Of a part."""


def write_examples(
    request: BestOfNRequest,
    output: str,
    rows: Sequence[Mapping[str, Any]],
    picks: Picks,
    *,
    config: Mapping[str, Any],
) -> int:
    """Write the corpus, and return its number of rows: none for a prompt without a best answer, or whose best answer
    has no characters besides white space, which is counted as rejected."""
    stats = FeedbackStats()
    forms = {RowForm.of(Example(prompt.prompt)).prompts for prompt in request.prompts}
    made = []
    for number, (prompt, best) in enumerate(zip(request.prompts, picks.best_S, strict=True)):
        row = None if best is None else rows[number * request.n + best]
        if row is None or not row["completion"].strip():
            stats.rejected["no_best" if row is None else "empty_answer"] += 1
            continue
        # All rows of a corpus hold their prompts in one form.
        asked: Prompt = prompt.prompt if len(forms) == 1 else TextPrompt(prompt_text(prompt.prompt))
        meta = {
            "prompt_id": prompt.id,
            "sample": best,
            **{name: row[name] for name in ("reward", "gold", "finish_reason")},
            "generator": request.name,
        }
        key = digest(["best_of_n", prompt.id, row["completion"]], size=16)
        made.append(Example(asked, row["completion"], id=key, meta=json.dumps(meta)))
        stats.add(made[-1])
    form = RowForm.of(made[0]) if made else RowForm("examples", "text")
    parts = [made[begin : begin + _ROWS] for begin in range(0, len(made), _ROWS)] or [[]]
    for number, some in enumerate(parts):
        part = PartFile(f"{output}/{part_name(number)}", rejects=None, schema=form.schema)
        try:
            part.write(form.columns(some))
            part.commit({"rows": len(some)})
        finally:
            part.abandon()
    fingerprint = hashlib.blake2b("".join(one.id for one in made).encode(), digest_size=16).hexdigest()
    manifest = FeedbackManifest(
        form=form,
        format="best_of_n",
        to=None,
        stats=stats,
        fingerprint=fingerprint,
        config=config,
        input_fingerprint=str(config["prompts"]),
        num_parts=len(parts),
    )
    write_end(output, manifest=manifest.to_json(), card=feedback_card(manifest))
    return len(made)
