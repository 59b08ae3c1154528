"""Keys of the original code that do not exist here or have another name."""

# Key of the original -> what to do instead.
REPLACED = {
    "dataset.num_of_sequences": "blocks are shuffled on disk; remove it",
    "dataset.chars_per_token": "packing streams without a buffer; remove it",
    "dataset.concat_token": "documents are separated by the tokenizer's eos_token; remove it",
    "model.gpt2_config_kwargs": "use model.config_kwargs",
    "model.model_kwargs.revision": "use model.revision",
    "model.config_kwargs.scale_attn_by": "GPT-2 has no such field, and the original ignored it (A-16); remove it, "
    "or use scale_attn_by_inverse_layer_idx",
    "training.output_dir": "use --storage-path and --run-name",
    "training.fp16": "use training.precision: bf16 or fp32; fp16 needs loss scaling and overflows in AWR weights",
    "training.bf16": "use training.precision: bf16",
    "training.evaluation_strategy": "held-out bits per byte follow dataset.held_out_fraction; remove it",
    "training.save_strategy": "use training.save_steps",
    "training.logging_first_step": "the first step is always logged; remove it",
    "training.remove_unused_columns": "blocks have no unused columns; remove it",
    "training.dataloader_num_workers": "Ray reads the blocks; remove it",
    "training.gradient_accumulation_steps": "it follows from effective_batch_size, num_workers and "
    "per_device_train_batch_size; remove it",
    "training.max_steps": "it follows from the batch size and sequence length; set training.num_tokens",
    "training.hub_strategy": "the last checkpoint is pushed, with training.push_to_hub: true; remove it",
    "training.report_to": "metrics.jsonl is always written, wandb follows WANDB_MODE and WANDB_API_KEY; remove it",
    "generation.scenario_configs.token_type_id": "the original never used it; remove it",
    "generation.scenario_configs.generate_kwargs.eos_token_id": "it follows from the tokenizer; remove it",
    "generation.scenario_configs.generate_kwargs.bad_words_ids": "control tokens are banned or replaced by the model's "
    "own policy; remove it",
    "kl_gpt3_callback.gpt3_kwargs": "davinci and code-cushman-001 were shut down; set kl_gpt3_callback.reference to a "
    "directory, or to NAME=URL of a server, or reference_samples to the original's cache of their texts",
    "objective.use_head_train_steps": "the original never read it; remove it",
}
