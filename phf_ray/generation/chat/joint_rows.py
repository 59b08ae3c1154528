"""Rows as TRL and AlpacaFarm make them: prompt and completion tokenized as one text, and cut at the end.

A row begins with what the tokenizer itself puts before a text, if it does. Used under `compat: trl` and `alpaca_farm`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from phf_ray.config import FeedbackCompat
from phf_ray.generation.chat.prompts import RenderedExample
from phf_ray.generation.chat.token_rows import TokenRow
from phf_ray.generation.chat.two_keys import TwoKeyTemplate

if TYPE_CHECKING:
    from phf_ray.generation.chat.templates import PromptTemplate


class JointRows:
    """Makes the rows of one tokenizer and template."""

    def __init__(
        self,
        compat: FeedbackCompat,
        *,
        tokenizer: Any,
        template: "PromptTemplate | None",
        for_reward: bool,
        length: int,
    ):
        """`for_reward`: the rows are for a reward model. `length`: tokens of a row at most."""
        self.compat = compat
        self._tokenizer, self._length = tokenizer, length
        # As in TRL, a chat template says itself how a text begins and ends.
        self._is_chat = template is not None and not isinstance(template, TwoKeyTemplate)
        # DIFFERS: phf-ray ends the answers of a reward model with the end of text, as TRL does; AlpacaFarm does not.
        self._ends = not self._is_chat and not (for_reward and compat == "alpaca_farm")

    # DIFFERS: phf-ray begins a row with the end of text and tokenizes prompt and completion apart; TRL and AlpacaFarm
    # tokenize both as one text, which begins as the tokenizer says.
    # DIFFERS: phf-ray cuts a long prompt at its beginning; TRL and AlpacaFarm cut at the end, which the answer loses.
    def row(self, example: RenderedExample) -> TokenRow:
        end = str(self._tokenizer.eos_token) if self._ends else ""
        whole = example.prompt + example.completion
        ids = self._ids(whole if whole.endswith(end) else whole + end)
        prompt = self._ids(example.prompt) if example.prompt else []
        # AlpacaFarm counts the prompt's tokens; TRL looks where the two begin to differ.
        num_given = len(prompt) if self.compat == "alpaca_farm" else _num_common(prompt, ids)
        num_given = min(max(1, num_given), self._length)
        kept = ids[: self._length]
        start_id = ids[0] if ids else self._tokenizer.eos_token_id  # a tokenizer may make nothing of a text
        return TokenRow(start_id, kept[1:num_given], kept[num_given:], False, len(kept) < len(ids))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=not self._is_chat, verbose=False)["input_ids"])


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
