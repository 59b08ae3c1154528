"""Section `training`: budget, optimizer, schedule, workers and checkpoints."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from phf_ray.config.base import Count, Fraction, Positive, Section


class ForgetfulMaskConfig(Section):
    """Forgetful causal masking: in each sequence, a ratio of the pairs of query and key is hidden."""

    min: Fraction = 0.0
    """Smallest ratio. The published values are 0 and 0.15, for large models."""
    max: Fraction = 0.15

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min: {self.min} is above max: {self.max}; exchange them")
        return self


class TrainingConfig(Section):
    num_tokens: Positive = 3_300_000_000
    num_epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data, in place of num_tokens."""
    count_tokens: Literal["content", "all"] = "content"
    """Tokens that num_tokens counts: only tokens of text (content), or control and end-of-text tokens too (all)."""
    effective_batch_size: Positive = 64
    """Sequences per optimizer step, over all workers."""
    per_device_train_batch_size: Positive = 16
    learning_rate: Annotated[float, Field(ge=0)] = 5e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    tf32: bool = False
    """true: NVIDIA GPUs multiply fp32 matrices in TF32, with 10 bits of mantissa; no effect elsewhere."""
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    document_mask: bool = False
    """true: no attention across documents in a block, and positions restart in each document."""
    forgetful_mask: ForgetfulMaskConfig | None = None
    """Hide some of the earlier tokens from each token in training, drawn anew for each sequence; null: none."""
    parallelism: Literal["ddp", "fsdp2"] = "ddp"
    num_workers: Positive = 1
    resources_per_worker: dict[str, float] = {}
    """Ray resources of a worker; by default one GPU if the cluster has GPUs, else one CPU."""
    resources_per_evaluation: dict[str, float] = {}
    """Ray resources of the process that evaluates weights during training; by default one GPU if the workers leave one
    free, else one CPU."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts of the worker group; -1: no limit."""
    seed: int = 42
    logging_steps: Positive = 1
    inspect_every_n_micro_batches: Positive | None = 10_000
    """Micro-batches between checks that decode, rescore and measure a worker's input (`debugging/...`), starting at the
    first step; null: never."""
    eval_steps: Positive | None = None
    """Steps between measurements of dataset.eval_datasets; null: once per pass through the data. Always at the end."""
    save_steps: Positive | None = None
    """Steps between checkpoints; null: only at the end."""
    save_total_limit: Positive | None = None
    push_to_hub: bool = False
    """Upload the last checkpoint to the hub, with its card and without the training state."""
    hub_model_id: str | None = None
    """`owner/name` of the repository on the hub."""
    hub_private_repo: bool = True
    """Make the repository private if it has to be created."""
    tokens_already_seen: Count = 0
    """Tokens that the starting checkpoint has seen (for finetuning). The schedule covers the rest of num_tokens."""

    @model_validator(mode="after")
    def _knows_where_to_push(self) -> Self:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub: true needs hub_model_id, the `owner/name` of a repository")
        return self
