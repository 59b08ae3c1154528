"""Writes a checkpoint: an ordinary model directory plus `phf.json` and `value_head.safetensors`.

Of a model with an adapter, the adapter alone is written, as peft would write it. A policy's critic stands beside it, in
`critic/`, as a reward model.

Whether transformers writes a model's configuration and tokenizer is known before training: `rehearse_save`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from phf_ray.checkpoint import CheckpointInfo, write_info
from phf_ray.errors import ConfigError
from phf_ray.models.actor_critic import CRITIC, CRITIC_PREFIX, ActorCritic, critic_tensors
from phf_ray.models.adapters import save_adapter, write_adapter_config
from phf_ray.models.heads import VALUE_HEAD_FILE, VALUE_HEAD_KEY, save_value_head
from phf_ray.models.language_model import LanguageModel


def save_checkpoint(
    directory: str | Path,
    model: LanguageModel,
    tokenizer: Any,
    info: CheckpointInfo,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint; equal weights give equal bytes.

    `state_dict` replaces the model's own tensors if they are sharded or in use.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state_dict is None else state_dict
    backbone_state = {
        name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")
    }
    if model.adapter is not None:
        save_adapter(directory, model.backbone, backbone_state)
    else:
        # List each tied weight once: a copied state dict no longer shows that two entries are one tensor.
        names = [name for name, _ in model.backbone.named_parameters()]
        names += [name for name, _ in model.backbone.named_buffers() if name in backbone_state]
        model.backbone.save_pretrained(directory, state_dict={name: backbone_state[name] for name in names})
    tokenizer.save_pretrained(directory)
    if VALUE_HEAD_KEY in state:
        is_bounded = model.value_head is None or model.value_head.is_bounded
        save_value_head(directory / VALUE_HEAD_FILE, state[VALUE_HEAD_KEY], is_bounded=is_bounded)
    write_info(directory, info)
    if isinstance(model, ActorCritic) and (critic := critic_tensors(state)):
        tensors = {name.removeprefix(CRITIC_PREFIX): tensor for name, tensor in critic.items()}
        save_checkpoint(directory / CRITIC, model.critic, tokenizer, _critic_info(info), state_dict=tensors)


def rehearse_save(directory: Path, model: LanguageModel, tokenizer: Any, info: CheckpointInfo) -> None:
    """Write everything of a checkpoint but the weights.

    Raises ConfigError if transformers refuses to write a part, OSError if the disk does.
    """
    backbone: Any = model.backbone
    parts: dict[str, Callable[[], object]] = {
        "tokenizer": lambda: tokenizer.save_pretrained(directory),
        "phf.json": lambda: write_info(directory, info),
    }
    if model.adapter is not None:
        parts["adapter_config.json"] = lambda: write_adapter_config(directory, backbone)
    else:
        parts["config.json"] = lambda: backbone.config.save_pretrained(directory)
    if model.adapter is None and backbone.can_generate():
        parts["generation_config.json"] = lambda: backbone.generation_config.save_pretrained(directory)
    for name, write in parts.items():
        try:
            write()
        except OSError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            if "(os error" in reason:  # tokenizers raises a plain Exception for the disk's errors
                raise
            raise ConfigError(
                f"no checkpoint of this model could be saved, because its {name} can't be: {reason}; correct it in the "
                "folder that training starts from"
            ) from error
    if isinstance(model, ActorCritic):
        (directory / CRITIC).mkdir()
        rehearse_save(directory / CRITIC, model.critic, tokenizer, _critic_info(info))


def _critic_info(info: CheckpointInfo) -> CheckpointInfo:
    """A critic is a whole model, and reads rows as its policy writes them."""
    return CheckpointInfo(
        task=info.task,
        step=info.step,
        tokens_seen=info.tokens_seen,
        rows=info.rows,
        compat=info.compat,
        licenses=info.licenses,
        versions=info.versions,
    )
