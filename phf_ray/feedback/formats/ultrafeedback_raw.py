"""UltraFeedback as its authors published it: `instruction` and `completions`, four with an `overall_score` of 1 to 10.

The ratings of its four aspects, their mean (`fine-grained_score`) and the critiques are other judgements of the same
answers. The mean is kept in `meta`; critiques and rationales, most of the set, are left out.
"""

from phf_ray.feedback.formats.base import (
    Converted,
    FeedbackFormat,
    Reading,
    Record,
    UnfitRecord,
    number_of,
    objects_of,
    text_of,
)
from phf_ray.feedback.formats.ranked import ranked_pairs
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import USER, ChatPrompt, Message

_KEPT = {
    "model": "generator",
    "overall_score": "overall_score",
    "fine-grained_score": "fine_grained_score",
    "principle": "principle",
}


def convert(record: Record, reading: Reading) -> Converted:
    instruction = text_of(record, "instruction")
    if not instruction.strip():
        raise UnfitRecord("no_prompt", "column 'instruction' is empty")
    prompt = ChatPrompt((Message(USER, instruction),))
    completions = objects_of(record, "completions")
    scores = [number_of(one, "overall_score") for one in completions]
    pairs = list(ranked_pairs(completions, [None if score is None else -score for score in scores], reading))
    return Converted(
        rows=tuple(
            Comparison(prompt, text_of(first, "response"), text_of(second, "response"), preference)
            for first, second, preference in pairs
        ),
        columns=frozenset({"instruction", "completions", "models"}),
        names_better=True,
        notes=tuple((_kept(first), _kept(second)) for first, second, _ in pairs),
    )


def _kept(completion: Record) -> Record:
    return {name: completion.get(column) for column, name in _KEPT.items()}


ULTRAFEEDBACK_RAW = FeedbackFormat(
    columns=(("instruction", "completions"),),
    fits=lambda record: isinstance(record["completions"], list | dict),
    convert=convert,
)
