"""Measures KL(reference || model) over HTTP, on texts of the reference.

Both models get the same texts in the same way, as token ids with `echo` and `logprobs`, so the KL of a model from
itself is 0. If the two share a tokenizer and the reference's server says which tokens it drew, both get those tokens,
and the estimate is unbiased. Otherwise each model gets the tokens that its own tokenizer makes of the text, and this
one spelling stands for all spellings: close for models of ordinary text, meaningless for a model that draws noise
(D-2b).
"""

import json
import logging
from collections.abc import Sequence

from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.kl.estimate import KL, forward_kl
from phf_ray.evaluation.kl.sequence_scorer import SequenceScorer
from phf_ray.evaluation.kl.texts import ReferenceText, facts_of, read_kept
from phf_ray.storage.files import write_file
from phf_ray.storage.hashing import digest

log = logging.getLogger(__name__)


def measure_kl(
    reference: Arm,
    model: Arm,
    texts: Sequence[ReferenceText],
    *,
    control_per_line: bool = False,
    reference_per_line: bool = False,
    cache: str | None = None,
) -> KL:
    """Measure KL(reference || model) on `texts`.

    `control_per_line`: the model was trained with a control token before every line, not with one at the start.
    `reference_per_line`: the same for the reference; a model's KL from itself is 0 only if both are equal. `cache`:
    folder or URL that keeps the reference's own log-probabilities.
    """
    kept = [text for text in texts if text.text or text.ended]
    asked = SequenceScorer(reference, control_per_line=reference_per_line)
    other = SequenceScorer(model, control_per_line=control_per_line)
    drawn = [list(text.ids) for text in kept if text.ids is not None]
    own, theirs = asked.tokenize(kept), other.tokenize(kept)
    if len(drawn) == len(kept) and own == theirs:
        own = theirs = drawn
    else:
        log.warning(
            "KL(%s || %s) uses texts tokenized anew, not the tokens that were drawn", reference.name, model.name
        )
    return forward_kl(
        _own_logprobs(asked, kept, own, cache=cache),
        other.logprobs(kept, theirs),
        num_tokens=[len(ids) + text.ended for ids, text in zip(own, kept, strict=True)],
        num_bytes=[max(1, len(text.text.encode("utf-8"))) for text in kept],
    )


def _own_logprobs(
    asked: "SequenceScorer", texts: Sequence[ReferenceText], ids: Sequence[Sequence[int]], *, cache: str | None
) -> list[float]:
    if cache is None:
        return asked.logprobs(texts, ids)
    facts = {
        "reference": facts_of(asked.arm),
        "per_line": asked.control_per_line,
        "ids": [list(one) for one in ids],
        "ended": [text.ended for text in texts],
    }
    path = f"{cache}/logprobs-{digest(facts, size=16)}.json"
    kept = read_kept(path)
    if kept is not None:
        return [float(value) for value in json.loads(kept)]
    found = asked.logprobs(texts, ids)
    write_file(path, (json.dumps(found) + "\n").encode())
    return found
