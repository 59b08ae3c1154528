"""Section `model`: the architecture, its weights and its value head."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from phf_ray.config.base import Count, Positive, Section


class ValueHeadConfig(Section):
    is_bounded: bool = True
    """true: values are minus a sigmoid, between -1 and 0, as AWR's rewards are. false: values of any size, for PPO."""
    is_detached: bool = False
    """true: gradients of the value loss do not reach the trunk."""


class ModelKwargs(Section):
    value_head_config: ValueHeadConfig | None = None


class LoraSettings(Section):
    """Small matrices beside frozen weights: each target W becomes W + alpha / r * B A."""

    r: Positive = 8
    """Rank: columns of B and rows of A."""
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of A that are zeroed in training."""
    target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Last parts of the names of linear layers, such as [q_proj, v_proj]; all-linear: all but the head."""
    use_rslora: bool = False
    """true: alpha / sqrt(r) in place of alpha / r, which lets large ranks learn."""


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
    lora: LoraSettings | None = None
    """Train adapters of these sizes and freeze the weights; null: train all weights."""
    load_in_4bit: bool = False
    """true: keep the frozen weights in 4 bits (QLoRA); needs lora, NVIDIA GPUs and bitsandbytes."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path_or_name is None) == (self.model_type is None):
            raise ValueError(
                f"path_or_name={self.path_or_name} and model_type={self.model_type}; set exactly one, the other to null"
            )
        if self.path_or_name is None and not self.from_scratch:
            raise ValueError("from_scratch=false needs path_or_name, the directory or hub name of the weights")
        if self.load_in_4bit and self.lora is None:
            raise ValueError(
                "load_in_4bit=true needs lora: weights in 4 bits can't be trained; add lora: {} or remove it"
            )
        return self
