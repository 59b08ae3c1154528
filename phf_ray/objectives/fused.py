"""Head, softmax and loss in one pass over chunks of tokens, so that the (tokens x vocabulary) matrix never exists.

For each target token y, every objective here mixes likelihood l = -log p_y and unlikelihood u = -log(1 - p_y).
With d = z_y - logsumexp_{v != y} z_v, the log-odds of the target,

    l = -log sigmoid(d)        u = -log sigmoid(-d)        p_y = sigmoid(d)

Let q be the softmax over the OTHER tokens v != y. The gradient of a l + b u for the logits is a number times a vector,

    g (onehot(y) - q)          g = b sigmoid(d) - a sigmoid(-d)

and stays finite at p_y = 1, where -p_v p_y / (1 - p_y) is 0 / 0. So all objectives cost the same: one softmax per
chunk. The forward pass computes the gradients for hidden states and head, and the backward pass scales them. The price:
a gradient of the head's size stays in memory between the passes, and the backward pass can run only once. An operand
that is frozen, such as the head under LoRA, costs neither a product nor memory.

Shapes: N tokens, C tokens per chunk, D hidden size, V vocabulary.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of one chunk's logits in fp32: large enough for the matrix product to run at full speed (512 tokens at V = 50257
# in fp32 on a CPU, 1024 in bf16), but small compared with activations.
_CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**30}
# The original's clamp(1 - p, min=1e-20).
_ORIGINAL_FLOOR = 1e-20


class FusedLoss(NamedTuple):
    loss: Tensor
    """sum_t likelihood_weight_t l_t + unlikelihood_weight_t u_t; the only differentiable field."""
    likelihood_N: Tensor
    """l_t = -log p_t[y_t], unweighted."""
    unlikelihood_N: Tensor
    """u_t = -log(1 - p_t[y_t]), unweighted."""


# Dynamo can't trace a backward pass that frees its buffers; it may compile everything around this call.
@torch.compiler.disable
def fused_linear_loss(  # noqa: PLR0913 - the operands of one product
    hidden_ND: Tensor,
    head_VD: Tensor,
    *,
    head_bias_V: Tensor | None = None,
    targets_N: Tensor,
    likelihood_weight_N: Tensor,
    unlikelihood_weight_N: Tensor,
    saturating: bool = False,
    chunk_tokens: int | None = None,
) -> FusedLoss:
    """Return the weighted loss, and each token's unweighted losses.

    Weights are constants: no gradient reaches them. Under autocast the products run in its dtype; everything else is
    fp32 (fp64 for fp64 inputs). `saturating`: as in the original, unlikelihood has no gradient once 1 - p rounds to
    zero.
    """
    if head_VD.shape[0] < 2:
        raise ValueError(f"the head has {head_VD.shape[0]} row(s); unlikelihood needs a vocabulary of at least 2")
    device = hidden_ND.device.type
    product_dtype = product_dtype_of(hidden_ND, head_VD)
    learns = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden_ND, head_VD, head_bias_V)
    ]
    settings = _Settings(
        product_dtype=product_dtype,
        chunk_tokens=chunk_tokens or default_chunk(head_VD.shape[0], device=device, product_dtype=product_dtype),
        saturating=saturating,
        for_hidden=learns[0],
        for_head=learns[1],
        for_bias=learns[2],
    )
    weights_2N = torch.stack([likelihood_weight_N, unlikelihood_weight_N]).detach()
    outputs = _FusedLinearLoss.apply(hidden_ND, head_VD, head_bias_V, targets_N, weights_2N, settings)
    return FusedLoss(*outputs)


class _Settings(NamedTuple):
    product_dtype: torch.dtype
    chunk_tokens: int
    saturating: bool
    for_hidden: bool
    """Whether the hidden states need a gradient; likewise the head and its bias."""
    for_head: bool
    for_bias: bool

    @property
    def with_gradients(self) -> bool:
        return self.for_hidden or self.for_head or self.for_bias


def product_dtype_of(hidden_ND: Tensor, head_VD: Tensor) -> torch.dtype:
    """Return the type in which the two are multiplied: that of autocast, if it is on."""
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden_ND.dtype, head_VD.dtype)


def default_chunk(vocabulary: int, *, device: str, product_dtype: torch.dtype) -> int:
    num_bytes = _CHUNK_BYTES.get(device, 2**28)
    if product_dtype in (torch.bfloat16, torch.float16) and device == "cpu":
        num_bytes *= 2
    return int(max(16, 2 ** ((num_bytes // (4 * vocabulary)).bit_length() - 1)))


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes no keywords
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        head_bias_V: Tensor | None,
        targets_N: Tensor,
        weights_2N: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The code below converts types explicitly; autocast would undo its conversions to fp32.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            loss, likelihood_N, unlikelihood_N, ctx.gradients = _forward(
                hidden_ND, head_VD, head_bias_V, targets_N, weights_2N, settings
            )
        ctx.mark_non_differentiable(likelihood_N, unlikelihood_N)
        return loss, likelihood_N, unlikelihood_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward ran twice on one fused loss, whose gradients were freed by the first call; compute it again"
            )
        gradients, ctx.gradients = ctx.gradients, None
        # In place: the head's gradient is the step's largest tensor, so a second copy would set the peak memory.
        return *(None if tensor is None else tensor.mul_(grad_loss) for tensor in gradients), None, None, None


def _forward(
    hidden_ND: Tensor,
    head_VD: Tensor,
    head_bias_V: Tensor | None,
    targets_N: Tensor,
    weights_2N: Tensor,
    settings: _Settings,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor | None, ...] | None]:
    exact = torch.float64 if settings.product_dtype == torch.float64 else torch.float32
    hidden = hidden_ND.to(settings.product_dtype)
    head = head_VD.to(settings.product_dtype)
    bias = None if head_bias_V is None else head_bias_V.to(exact)
    weights_2N = weights_2N.to(exact)
    # A new head gradient accumulates in fp32 over chunks, whatever the dtype of the products.
    grad_hidden = torch.empty_like(hidden_ND) if settings.for_hidden else None
    grad_head = torch.zeros_like(head_VD, dtype=exact) if settings.for_head else None
    grad_bias = torch.zeros_like(bias) if settings.for_bias and bias is not None else None
    losses_2N = torch.empty_like(weights_2N)

    for start in range(0, hidden.shape[0], settings.chunk_tokens):
        part = slice(start, start + settings.chunk_tokens)
        targets_C1 = targets_N[part, None]
        logits_CV = torch.mm(hidden[part], head.T).to(exact)
        if bias is not None:
            logits_CV += bias
        log_odds_C, total_C = _split_target(logits_CV, targets_C1)
        losses_2C = torch.stack([-F.logsigmoid(log_odds_C), -F.logsigmoid(-log_odds_C)])
        slope_C = weights_2N[1, part] * log_odds_C.sigmoid() - weights_2N[0, part] * (-log_odds_C).sigmoid()
        if settings.saturating:
            saturated_C = 1 - log_odds_C.sigmoid() < _ORIGINAL_FLOOR
            losses_2C[1] = losses_2C[1].masked_fill(saturated_C, -math.log(_ORIGINAL_FLOOR))
            slope_C = torch.where(saturated_C, -weights_2N[0, part] * (-log_odds_C).sigmoid(), slope_C)
        losses_2N[:, part] = losses_2C
        if settings.with_gradients:
            # This is total x (q - onehot(y)). The remaining factor scales the smaller operand, D wide instead of V.
            direction_CV = logits_CV.scatter_(1, targets_C1, -total_C[:, None]).to(settings.product_dtype)
            scale_C1 = (-slope_C / total_C)[:, None]
            if grad_hidden is not None:
                grad_hidden[part] = torch.mm(direction_CV, head) * scale_C1
            if grad_head is not None:
                add_product(grad_head, direction_CV, (hidden[part] * scale_C1).to(settings.product_dtype))
            if grad_bias is not None:
                grad_bias += torch.mv(direction_CV.to(exact).T, scale_C1.squeeze(1))
            del direction_CV
        del logits_CV

    loss = (weights_2N * losses_2N).sum()
    gradients = (
        grad_hidden,
        None if grad_head is None else grad_head.to(head_VD.dtype),
        None if grad_bias is None or head_bias_V is None else grad_bias.to(head_bias_V.dtype),
    )
    return loss, losses_2N[0], losses_2N[1], gradients if settings.with_gradients else None


def add_product(grad_head_VD: Tensor, direction_CV: Tensor, scaled_CD: Tensor) -> None:
    if direction_CV.dtype == grad_head_VD.dtype:
        grad_head_VD.addmm_(direction_CV.T, scaled_CD)
    else:
        grad_head_VD += torch.mm(direction_CV.T, scaled_CD)


def _split_target(logits_CV: Tensor, targets_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target's log-odds, and the sum of the other tokens' exponentials.

    Overwrites the logits with these exponentials, 0 at the target: a second chunk of logits would double the memory.
    """
    target_logit_C1 = logits_CV.gather(1, targets_C1)
    logits_CV.scatter_(1, targets_C1, -torch.inf)
    largest_C1 = logits_CV.amax(dim=1, keepdim=True)
    total_C = logits_CV.sub_(largest_C1).exp_().sum(dim=1)
    return (target_logit_C1 - largest_C1).squeeze(1) - total_C.log(), total_C
