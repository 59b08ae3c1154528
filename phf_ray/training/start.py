"""Builds the model that a run starts from."""

from pathlib import Path, PurePath
from typing import Any

import torch

from phf_ray.blocks.manifest import BlockManifest
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.checkpoint import BaseInfo, Control, RowInfo
from phf_ray.config import Config, ModelConfig, TokenizerConfig
from phf_ray.errors import ConfigError
from phf_ray.model_folder import weights_fingerprint
from phf_ray.models.adapters import restore_adapter
from phf_ray.models.build import build_model
from phf_ray.models.forgetful_mask import ForgetfulMask
from phf_ray.models.heads import load_value_head
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.loading import load_checkpoint
from phf_ray.models.merging import checked_base
from phf_ray.models.positions import position_limit
from phf_ray.models.reward_model import as_reward_model, load_reward_model


def starting_model(config: Config, *, checkpoint_path: str | None, tokenizer: Any) -> ModelConfig:
    """Return the configuration of the starting model; `checkpoint_path` overrides the weights that `model` names.

    Only tokens that the checkpoint's tokenizer lacks get new rows.
    """
    if checkpoint_path is None:
        return config.model
    num_known = len(load_tokenizer(TokenizerConfig(path_or_name=checkpoint_path)))
    return config.model.model_copy(
        update={
            "path_or_name": checkpoint_path,
            "revision": None,
            "from_scratch": False,
            "model_type": None,
            "config_kwargs": {},
            "num_additional_tokens": max(0, len(tokenizer) - num_known),
        }
    )


def initial_model(config: Config, *, checkpoint_path: str | None, tokenizer: Any) -> LanguageModel:
    """Build the model before the first step; see `starting_model`."""
    starting = starting_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    _refuse_foreign_tokenizer(starting, tokenizer)
    built = build_model(starting, tokenizer=tokenizer, seed=config.training.seed)
    limit, reason = position_limit(built.backbone.config.get_text_config())
    # Positions restart in each example of a block. Only feedback has a max_length (see `plan_blocks`).
    key = "seq_length" if config.dataset.max_length is None else "max_length"
    longest = getattr(config.dataset, key)
    # The rows of rounds have the length of their prompts and answers; see `rollouts/plan.py`.
    if limit is not None and longest > limit and config.rollouts is None:
        raise ConfigError(
            f"dataset.{key}={longest} is longer than the model's {limit} positions ({reason}); lower it or raise the "
            "model's limit in model.config_kwargs"
        )
    return built


def initial_learner(config: Config, *, checkpoint_path: str | None, tokenizer: Any) -> LanguageModel:
    """Build what learns: the initial model, with the head of a reward model if the objective trains one."""
    built = initial_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
    return as_reward_model(built) if config.trains_reward_model else built


def _refuse_foreign_tokenizer(starting: ModelConfig, tokenizer: Any) -> None:
    """Raise ConfigError if tokens of the model's own tokenizer have other ids in the tokenizer of the training."""
    if starting.from_scratch or starting.path_or_name is None:
        return
    try:
        own = load_tokenizer(TokenizerConfig(path_or_name=starting.path_or_name, revision=starting.revision))
    except ConfigError:
        return  # weights without a tokenizer: nothing to compare with
    vocabulary = tokenizer.get_vocab()
    foreign = [token for token, number in own.get_vocab().items() if vocabulary.get(token) != number]
    if foreign:
        raise ConfigError(
            f"tokenizer.path_or_name is another tokenizer than that of {starting.path_or_name}: {len(foreign)} of its "
            f"{len(own)} tokens have no or another id, such as {sorted(foreign)[0]!r}; remove tokenizer.path_or_name "
            "to train with the model's own"
        )


def resumed_model(config: Config, directory: Path, *, checkpoint_path: str | None, tokenizer: Any) -> LanguageModel:
    """Build the model of a run's checkpoint, to continue the run. Raises DataError if its base model has changed."""
    if config.model.lora is None:
        model = load_reward_model(directory) if config.trains_reward_model else load_checkpoint(directory).model
        for parameter in model.parameters():
            # Tensors of a mapped file keep the file's alignment, and sums in matrix products can depend on it.
            parameter.data = parameter.data.clone()
    else:
        model = initial_learner(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
        checked_base(directory)
        restore_adapter(directory, model.backbone)
        if model.value_head is not None:
            load_value_head(model.value_head, str(directory), revision=None)
    value_head = config.model.model_kwargs.value_head_config
    model.detach_values = value_head is not None and value_head.is_detached
    return model


def row_info(manifest: BlockManifest) -> RowInfo | None:
    """Say how the examples of the blocks became rows; None if they are a stream of text."""
    settings = manifest.examples
    if settings is None:
        return None
    # The path of a template's file means nothing elsewhere.
    name = PurePath(settings["template"]).stem
    return RowInfo(
        template=name,
        template_text=settings["template_text"],
        length=settings["row_length"],
        are_turns_apart=settings.get("prompts") in ("conversation", "fields"),
    )


def base_info(model: LanguageModel) -> BaseInfo | None:
    """Describe the base model of the model's adapter; None if the whole model trains. Takes a second per GB."""
    if model.adapter is None:
        return None
    base = model.adapter.base
    digest = weights_fingerprint(base.folder(option="model.path_or_name"))
    return BaseInfo(name=base.name, revision=base.revision, fingerprint=digest)


def set_up_layers(model: LanguageModel, config: Config, *, device: torch.device, compiles: bool) -> None:
    training = config.training
    if config.model.attn_implementation is not None:
        model.use_attention(config.model.attn_implementation)
    if training.document_mask:
        model.mask_documents()
    forgetful = forgetful_mask(config)
    if forgetful is not None:
        model.forget(forgetful)
    if training.gradient_checkpointing:
        model.checkpoint_activations()
    if compiles:
        model.compile_blocks(device)


def forgetful_mask(config: Config) -> ForgetfulMask | None:
    """Return the mask of `training.forgetful_mask`; None if nothing is hidden."""
    section = config.training.forgetful_mask
    if section is None or section.max == 0:
        return None
    # DIFFERS: phf-ray never hides a token from itself, nor the first token of its document; CoH keeps only the first
    # token of a row.
    return ForgetfulMask(section.min, section.max, seed=config.training.seed, keeps_itself=config.compat != "coh")


def trained_control(config: Config, *, examples: bool = False) -> Control | None:
    """Return the control tokens of the trained model, None if it has none.

    The model may sample them only if the loss covers them and each segment has one. In examples they are given.
    """
    conditional = config.dataset.conditional_training_config
    if conditional is None:
        return None
    learns_them = getattr(config.objective, "score_control", False) and not examples
    may_sample = config.dataset.is_split_by_sentences and learns_them
    return Control(
        good=conditional.aligned_prefix, bad=conditional.misaligned_prefix, policy="retag" if may_sample else "ban"
    )
