"""The tokens of a block that are not text: end of text, control, padding."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from phf_ray.blocks.settings import PackingConfig
from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Structure:
    """Ids of the tokens that are not text."""

    end_of_text_id: int
    pad_id: int
    aligned_id: int | None
    misaligned_id: int | None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast", *, config: PackingConfig) -> "Structure":
        end_of_text = tokenizer.eos_token_id
        if end_of_text is None:
            raise ConfigError("the tokenizer has no eos_token, which separates documents; set one")
        pad = end_of_text if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        conditional = config.conditional
        if conditional is None:
            return cls(end_of_text, pad, None, None)
        return cls(
            end_of_text,
            pad,
            _token_id(tokenizer, conditional.aligned_token),
            _token_id(tokenizer, conditional.misaligned_token),
        )

    def ids(self) -> list[int]:
        return [number for number in (self.end_of_text_id, self.aligned_id, self.misaligned_id) if number is not None]


def _token_id(tokenizer: "PreTrainedTokenizerFast", token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(number, int) or (number == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ConfigError(
            f"the tokenizer has no token {token!r} for conditional training; add it to tokenizer.special_tokens"
        )
    return number
