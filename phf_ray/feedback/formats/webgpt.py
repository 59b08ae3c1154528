"""OpenAI's WebGPT comparisons: `question`, `quotes_0`, `answer_0`, `score_0`, and the same with 1.

A score goes from -1 to 1, and the two sum to 0. `tokens_0` and `tokens_1`, which repeat the texts as token ids, are
left out.
"""

from phf_ray.feedback.formats.base import TIE, Converted, FeedbackFormat, Reading, Record, number_of, text_of
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import TextPrompt


def convert(record: Record, _: Reading) -> Converted:
    asked = record["question"]
    question = text_of(
        asked if isinstance(asked, dict) else record, "full_text" if isinstance(asked, dict) else "question"
    )
    row = Comparison(
        TextPrompt(question), text_of(record, "answer_0"), text_of(record, "answer_1"), preference_by_scores(record)
    )
    about = {name: value for name, value in asked.items() if name != "full_text"} if isinstance(asked, dict) else {}
    columns = frozenset({"question", "answer_0", "answer_1", "tokens_0", "tokens_1"})
    return Converted((row,), columns, meta={"question": about} if about else {})


def preference_by_scores(record: Record) -> float | None:
    first, second = number_of(record, "score_0"), number_of(record, "score_1")
    if first is None or second is None or abs(first) > 1 or abs(first + second) > 1e-6:
        return None
    return TIE - first / 2


WEBGPT = FeedbackFormat(
    columns=(("question", "answer_0", "answer_1", "score_0", "score_1"),), fits=lambda _: True, convert=convert
)
