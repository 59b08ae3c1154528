"""PKU-SafeRLHF: `prompt, response_0, response_1`, judged twice: `better_response_id` and `safer_response_id`.

`pku` takes the better answer, `pku-safer` the safer one, which is never taken without being asked for. `meta` keeps
the other judgement, and whether each answer is safe.
"""

from collections.abc import Callable

from phf_ray.feedback.formats.base import Converted, FeedbackFormat, Reading, Record, preference_by_index, text_of
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import TextPrompt

_TEXTS = ("prompt", "response_0", "response_1")


def _by(judgement: str) -> Callable[[Record, Reading], Converted]:
    def convert(record: Record, _: Reading) -> Converted:
        prompt, first, second = (text_of(record, name) for name in _TEXTS)
        row = Comparison(TextPrompt(prompt), first, second, preference_by_index(record, judgement))
        return Converted((row,), frozenset(_TEXTS))

    return convert


PKU = FeedbackFormat(columns=((*_TEXTS, "better_response_id"),), fits=lambda _: True, convert=_by("better_response_id"))
PKU_SAFER = FeedbackFormat(
    columns=((*_TEXTS, "safer_response_id"),), fits=lambda _: False, convert=_by("safer_response_id")
)
