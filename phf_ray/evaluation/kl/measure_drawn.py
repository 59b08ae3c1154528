"""Measures KL(reference || model) from texts that came with the reference's own log-probabilities.

The reference is not asked here. The model gets each text in the tokens that its own tokenizer makes of it, and counts
the end-of-text token where the reference's log-probability does. Its tokens may be others than those that were drawn,
so the estimate is off by what other spellings of the text would add. There is a figure per token only if every text has
as many tokens for the model as for the reference.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from phf_ray.errors import DataError
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.kl.estimate import KL, forward_kl
from phf_ray.evaluation.kl.sample_file import ReferenceSamples
from phf_ray.evaluation.kl.sequence_scorer import SequenceScorer
from phf_ray.evaluation.kl.texts import ReferenceText


class DrawnKL(NamedTuple):
    kl: KL
    failures: Mapping[str, int]
    note: str


def measure_drawn(samples: ReferenceSamples, model: Arm, *, control_per_line: bool = False) -> DrawnKL:
    """Measure KL(reference || model). `control_per_line`: as for `measure_kl`."""
    failures = Counter(text.error for text in samples.texts if text.error is not None)
    kept = [(text, text.logprob) for text in samples.texts if text.logprob is not None]
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} of {len(samples.texts)} texts of {samples.reference} have a log-probability "
            f"({_listed(failures) or 'no more were drawn'}); a KL needs 2"
        )
    scorer = SequenceScorer(model, control_per_line=control_per_line)
    texts = [ReferenceText(text.text, ended=text.has_end, ids=None) for text, _ in kept]
    ids = scorer.tokenize(texts)
    drawn = [text.num_tokens for text, _ in kept if text.num_tokens is not None]
    own = [len(one) + text.ended for one, text in zip(ids, texts, strict=True)]
    kl = forward_kl(
        [logprob for _, logprob in kept],
        scorer.logprobs(texts, ids),
        num_tokens=drawn if drawn == own else None,
        num_bytes=[max(1, len(text.text.encode("utf-8"))) for text in texts],
    )
    notes = []
    if kl.per_token is None and len(drawn) < len(kept):
        notes.append("its texts come without numbers of tokens, so there is no figure per token")
    elif kl.per_token is None:
        notes.append("the model cuts its texts into other tokens, so there is no figure per token")
    num_ends = sum(text.ended for text in texts)
    if num_ends == 0:
        notes.append("no text's end counts, because its log-probabilities lack it")
    if samples.prompt:
        what = "answer the chat prompt" if samples.is_chat else "continue the prompt"
        notes.append(f"its texts {what} {samples.prompt!r}, which the model does not see")
    return DrawnKL(kl, failures, "; ".join(notes))


def _listed(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} x {count}" for reason, count in failures.items())
