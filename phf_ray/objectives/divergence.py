"""Exact KL to a reference and entropy of each token's distribution, in one pass over chunks of tokens.

They need the whole distribution of both models, which one weight per token (`fused.py`) can't say. With p the policy's
and q the reference's distribution, z the policy's logits, KL = sum_v p_v (log p_v - log q_v), H = -sum_v p_v log p_v:

    dKL / dz_v = p_v (log p_v - log q_v - KL)        dH / dz_v = -p_v (log p_v + H)

As in `fused.py`, the forward pass computes the gradients for hidden states and head, so that the (tokens x vocabulary)
matrix of neither model ever exists, and the backward pass can run only once. The reference gets no gradient.

Shapes: N tokens, C tokens per chunk, D hidden size (the reference's may differ), V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from phf_ray.objectives.fused import add_product, default_chunk, product_dtype_of


class Operands(NamedTuple):
    """What a model's logits are the product of: hidden_ND @ head_VD.T + bias_V."""

    hidden_ND: Tensor
    head_VD: Tensor
    bias_V: Tensor | None = None

    def logits(self, part: slice, *, product_dtype: torch.dtype, exact: torch.dtype) -> Tensor:
        logits_CV = torch.mm(self.hidden_ND[part].to(product_dtype), self.head_VD.to(product_dtype).T).to(exact)
        return logits_CV if self.bias_V is None else logits_CV.add_(self.bias_V.to(exact))


class Divergence(NamedTuple):
    loss: Tensor
    """sum_t kl_weight_t KL_t + entropy_weight_t H_t; the only differentiable field."""
    kl_N: Tensor
    entropy_N: Tensor


@torch.compiler.disable
def divergence_loss(
    policy: Operands,
    reference: Operands,
    *,
    kl_weight_N: Tensor,
    entropy_weight_N: Tensor,
    chunk_tokens: int | None = None,
) -> Divergence:
    """Return the weighted sum of KL(policy || reference) and entropy, and each token's, in nats.

    Both heads have rows for the same tokens. Weights are constants. Types are those of `fused_linear_loss`.
    """
    if policy.head_VD.shape[0] != reference.head_VD.shape[0]:
        raise ValueError(
            f"the policy's head has {policy.head_VD.shape[0]} rows, the reference's {reference.head_VD.shape[0]}; "
            "compare the tokens that both have"
        )
    product_dtype = product_dtype_of(policy.hidden_ND, policy.head_VD)
    device = policy.hidden_ND.device.type
    # Three matrices of a chunk are held at once, where the fused loss holds one.
    size = chunk_tokens or max(
        default_chunk(policy.head_VD.shape[0], device=device, product_dtype=product_dtype) // 4, 1
    )
    frozen = Operands(*(None if tensor is None else tensor.detach() for tensor in reference))  # type: ignore[arg-type]
    weights_2N = torch.stack([kl_weight_N, entropy_weight_N]).detach()
    settings = _Settings(frozen, product_dtype, size, with_gradients=torch.is_grad_enabled())
    return Divergence(*_Divergence.apply(*policy, weights_2N, settings))


class _Settings(NamedTuple):
    reference: Operands
    product_dtype: torch.dtype
    chunk_tokens: int
    with_gradients: bool


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        weights_2N: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs = ctx.needs_input_grad[:3] if settings.with_gradients else (False, False, False)
        # The code below converts types explicitly; autocast would undo its conversions to fp32.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            loss, kl_N, entropy_N, ctx.gradients = _forward(
                Operands(hidden_ND, head_VD, bias_V), weights_2N, settings, needs=needs
            )
        ctx.mark_non_differentiable(kl_N, entropy_N)
        return loss, kl_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward ran twice on one divergence, whose gradients were freed by the first call; compute it again"
            )
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if tensor is None else tensor.mul_(grad_loss) for tensor in gradients), None, None


def _forward(
    policy: Operands, weights_2N: Tensor, settings: _Settings, *, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...]]:
    dtype = settings.product_dtype
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    hidden, head = policy.hidden_ND.to(dtype), policy.head_VD.to(dtype)
    weights_2N = weights_2N.to(exact)
    grad_hidden = torch.empty_like(policy.hidden_ND) if needs[0] else None
    grad_head = torch.zeros_like(policy.head_VD, dtype=exact) if needs[1] else None
    grad_bias = torch.zeros_like(policy.bias_V, dtype=exact) if needs[2] and policy.bias_V is not None else None
    totals_2N = torch.empty_like(weights_2N)
    for start in range(0, hidden.shape[0], settings.chunk_tokens):
        part = slice(start, start + settings.chunk_tokens)
        log_p_CV = _log_softmax_(policy.logits(part, product_dtype=dtype, exact=exact))
        log_q_CV = _log_softmax_(settings.reference.logits(part, product_dtype=dtype, exact=exact))
        difference_CV = log_q_CV.neg_().add_(log_p_CV)
        p_CV = log_p_CV.exp()
        # Products of rows, without a matrix between.
        kl_C = torch.einsum("cv,cv->c", p_CV, difference_CV)
        entropy_C = -torch.einsum("cv,cv->c", p_CV, log_p_CV)
        totals_2N[0, part], totals_2N[1, part] = kl_C, entropy_C
        if any(needs):
            kl_weight_C1, entropy_weight_C1 = weights_2N[0, part, None], weights_2N[1, part, None]
            slope_CV = difference_CV.sub_(kl_C[:, None]).mul_(kl_weight_C1)
            slope_CV.sub_(log_p_CV.add_(entropy_C[:, None]).mul_(entropy_weight_C1)).mul_(p_CV)
            if grad_bias is not None:
                grad_bias += slope_CV.sum(dim=0)
            slope_CV = slope_CV.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = torch.mm(slope_CV, head)
            if grad_head is not None:
                add_product(grad_head, slope_CV, hidden[part])
        del log_p_CV, log_q_CV, difference_CV, p_CV
    gradients = (
        grad_hidden,
        None if grad_head is None else grad_head.to(policy.head_VD.dtype),
        None if grad_bias is None or policy.bias_V is None else grad_bias.to(policy.bias_V.dtype),
    )
    return (weights_2N * totals_2N).sum(), totals_2N[0], totals_2N[1], gradients


def _log_softmax_(logits_CV: Tensor) -> Tensor:
    """Overwrite the logits."""
    return logits_CV.sub_(logits_CV.logsumexp(dim=1, keepdim=True))
