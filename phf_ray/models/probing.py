"""Runs a model to test what training and serving rely on.

Training needs logits that are `scale * (hidden @ weight.T + bias)`; serving needs a past of keys and values alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from phf_ray.errors import ConfigError


def probe_logit_scale(backbone: PreTrainedModel) -> float:
    """Find the logit scale by running the model on four tokens with known numbers in place of the head's output.

    A trial finds what a list of names would miss: soft-capping (Gemma 2), a transform before the head (BERT),
    multipliers (Cohere, Granite, Falcon-H1) and whatever comes next all show in the model's output.

    Raises ConfigError if the logits are not linear in the hidden states, or the model is not causal.
    """
    name = type(backbone).__name__
    head = backbone.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{name}: its head is {type(head).__name__}, not a linear layer; choose another model")
    if backbone.base_model is backbone:
        raise ConfigError(f"{name}: it has no trunk that returns hidden states without logits; choose another model")
    seen: dict[str, Tensor] = {}

    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["input"] = inputs[0]

    def replace_output(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # The numbers are large because a cap at 30 or 50 does not show in the small logits of an untrained model.
        seen["output"] = torch.linspace(-1e3, 1e3, output.numel(), device=output.device).reshape(output.shape)
        return seen["output"].to(output.dtype)

    handles = [head.register_forward_pre_hook(keep_input), head.register_forward_hook(replace_output)]
    was_training = backbone.training
    # From the middle of the vocabulary: the first ids are often padding and the like, which some models single out.
    ids_BS = torch.arange(4, device=head.weight.device)[None] + head.weight.shape[0] // 2
    other_ids_BS = torch.cat([ids_BS[:, :3], ids_BS[:, :1]], dim=1)
    try:
        backbone.eval()
        with torch.no_grad():
            logits_BSV = backbone(input_ids=ids_BS, use_cache=False).logits
            hidden_BSD = backbone.base_model(input_ids=ids_BS, use_cache=False).last_hidden_state
            changed_BSD = backbone.base_model(input_ids=other_ids_BS, use_cache=False).last_hidden_state
    finally:
        backbone.train(was_training)
        for handle in handles:
            handle.remove()

    if not torch.allclose(hidden_BSD[:, :3], changed_BSD[:, :3], rtol=1e-4, atol=1e-5):
        raise ConfigError(f"{name} is not a causal LM: a token changes the states before it; choose another model")
    if seen["input"].shape != hidden_BSD.shape or not torch.allclose(
        seen["input"].float(), hidden_BSD.float(), rtol=1e-4, atol=1e-5
    ):
        raise ConfigError(f"{name}: it transforms hidden states before its head; choose a model with a linear head")
    scale_BSV = logits_BSV.float() / seen["output"].to(logits_BSV.dtype).float()
    scale = scale_BSV.flatten()[-1].item()
    if not torch.allclose(scale_BSV, torch.full_like(scale_BSV, scale), rtol=1e-2):
        capping = getattr(backbone.config, "final_logit_softcapping", None)
        cause = f" (final_logit_softcapping={capping})" if capping is not None else ""
        raise ConfigError(f"{name}: its logits are not a linear function of hidden states{cause}; choose another model")
    return scale


def probe_batches(backbone: PreTrainedModel) -> None:
    """Check that two texts of different length can be continued in one batch, from keys, values and masks alone.

    The server and the evaluations during training generate so, and refuse other models after the training is paid for.
    Raises ConfigError if a text's logits differ from those that it has alone.
    """
    name = type(backbone).__name__
    weight: Any = backbone.get_input_embeddings().weight
    long_S = torch.arange(4, device=weight.device) + weight.shape[0] // 2
    short_S = long_S[[0, 1, 3]]
    was_training = backbone.training
    try:
        backbone.eval()
        with torch.no_grad():
            alone_BV = torch.stack([_last_logits(backbone, text_S) for text_S in (long_S, short_S)])
            together_BV = _continued_logits(backbone, long_S)
        scale = min(1.0, float(alone_BV.std()))
        wrong = float((together_BV - alone_BV).abs().max())
        reason = f"logits differ by {wrong:.3g} from those of a text alone"
        agrees = wrong <= max(1e-5, 1e-3 * scale)
    except (RuntimeError, TypeError, AttributeError, IndexError, KeyError, ValueError) as error:
        agrees, reason = False, f"{type(error).__name__}: {error}"
    finally:
        backbone.train(was_training)
    if not agrees:
        raise ConfigError(
            f"{name} can't generate in batches of texts of different length ({reason}), so it could be trained but not "
            "served; choose a model with plain attention"
        )


def _last_logits(backbone: Any, ids_S: Tensor) -> Tensor:
    logits_V: Tensor = backbone(input_ids=ids_S[None], use_cache=False).logits[0, -1].float()
    return logits_V


def _continued_logits(backbone: Any, ids_S: Tensor) -> Tensor:
    """Return the logits of two rows after the last token: one of the whole text, one of the text without its third."""
    ids_BS = ids_S.expand(2, -1)
    past = DynamicCache()
    backbone(
        input_ids=ids_BS[:, :3], attention_mask=torch.ones_like(ids_BS[:, :3]), past_key_values=past, use_cache=True
    )
    layers: list[Any] = list(past.layers)
    if not layers or any(layer.keys is None or layer.keys.shape[2] != 3 for layer in layers):
        raise ValueError("its past is more than keys and values")
    mask_B4 = torch.zeros(2, 4, dtype=backbone.dtype, device=ids_S.device)
    mask_B4[1, 2] = torch.finfo(backbone.dtype).min
    logits_BV: Tensor = (
        backbone(
            input_ids=ids_BS[:, 3:],
            attention_mask=mask_B4[:, None, None],
            position_ids=torch.tensor([[3], [2]], device=ids_S.device),
            past_key_values=past,
            use_cache=True,
        )
        .logits[:, 0]
        .float()
    )
    return logits_BV
