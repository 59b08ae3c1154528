"""Section `model`: the architecture, its weights and its value head."""

from typing import Any, Literal, Self

from pydantic import model_validator

from phf_ray.config.base import Count, Positive, Section


class ValueHeadConfig(Section):
    is_detached: bool = False
    """true: gradients of the value loss do not reach the trunk."""


class ModelKwargs(Section):
    value_head_config: ValueHeadConfig | None = None


class ModelConfig(Section):
    path_or_name: str | None = "gpt2"
    """Directory or hub name; null: use the architecture `model_type` with config_kwargs."""
    revision: str | None = None
    from_scratch: bool = True
    """true: use only the architecture of path_or_name, with new random weights."""
    model_type: str | None = None
    """Architecture by its transformers name (gpt2, llama, ...), if path_or_name is null."""
    config_kwargs: dict[str, Any] = {}
    """Fields of the transformers config to override. Fields that the architecture does not have are refused."""
    num_additional_tokens: Count = 0
    """Embedding rows added for special tokens. Must equal the number of new tokens in tokenizer.special_tokens."""
    pad_vocab_to_multiple_of: Positive | None = None
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flex_attention"] | None = None
    """Code of the attention; null: transformers chooses."""
    model_kwargs: ModelKwargs = ModelKwargs()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path_or_name is None) == (self.model_type is None):
            raise ValueError(
                f"path_or_name={self.path_or_name} and model_type={self.model_type}; set exactly one, the other to null"
            )
        if self.path_or_name is None and not self.from_scratch:
            raise ValueError("from_scratch=false needs path_or_name, the directory or hub name of the weights")
        return self
