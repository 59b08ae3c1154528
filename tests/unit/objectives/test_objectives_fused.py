"""The chunked kernel against plain autograd over the whole matrix of logits, in float64."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from phf_ray.objectives.build import build_objective
from phf_ray.objectives.fused import fused_linear_loss

NUM_TOKENS, WIDTH, VOCABULARY = 23, 6, 13


def operands(*, bias=False, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    weights = torch.rand(2, NUM_TOKENS, generator=generator, dtype=torch.float64)
    weights[0, :7] = 0  # unlikelihood alone
    weights[1, 7:14] = 0  # likelihood alone
    weights[:, 14:16] = 0  # masked
    leaves = [draw(NUM_TOKENS, WIDTH), draw(VOCABULARY, WIDTH), *([draw(VOCABULARY)] if bias else [])]
    targets = torch.randint(VOCABULARY, (NUM_TOKENS,), generator=generator)
    return leaves, targets, weights


def fused(leaves, targets, weights, **settings):
    return fused_linear_loss(
        leaves[0],
        leaves[1],
        head_bias_V=leaves[2] if len(leaves) == 3 else None,
        targets_N=targets,
        likelihood_weight_N=weights[0],
        unlikelihood_weight_N=weights[1],
        **settings,
    )


def plain(leaves, targets, weights):
    logits = leaves[0] @ leaves[1].T + (leaves[2] if len(leaves) == 3 else 0)
    log_p = logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    return (weights[0] * -log_p + weights[1] * -torch.log1p(-log_p.exp())).sum()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_tokens", [1, 5, 23, 64])
def test_loss_and_gradients_equal_plain_autograd(bias, chunk_tokens):
    leaves, targets, weights = operands(bias=bias)
    out = fused(leaves, targets, weights, chunk_tokens=chunk_tokens)
    expected = plain(leaves, targets, weights)
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-13)
    # A factor, as a loss that is divided by its number of targets before it is propagated back.
    gradients = torch.autograd.grad(out.loss / 7, leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected / 7, leaves), strict=True):
        assert torch.allclose(gradient, wanted, rtol=1e-11, atol=1e-14)


def test_gradients_equal_central_differences():
    leaves, targets, weights = operands(bias=True)
    gradients = torch.autograd.grad(fused(leaves, targets, weights).loss, leaves)
    for index, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        losses = []
        for step in (1e-6, -1e-6):
            moved = [leaf.detach() + step * direction if i == index else leaf.detach() for i, leaf in enumerate(leaves)]
            losses.append(fused(moved, targets, weights).loss.item())
        assert (gradient * direction).sum().item() == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-7)


def test_losses_per_token_are_those_of_the_whole_softmax():
    leaves, targets, weights = operands()
    out = fused(leaves, targets, weights, chunk_tokens=4)
    p = (leaves[0] @ leaves[1].T).softmax(1).gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(out.likelihood_N, -p.log(), rtol=1e-12)
    assert torch.allclose(out.unlikelihood_N, -(1 - p).log(), rtol=1e-10)
    assert not out.likelihood_N.requires_grad


@pytest.mark.parametrize("gap", [30.0, 100.0, 1e4])
def test_unlikelihood_of_a_certain_token_has_its_whole_gradient_in_fp32(gap):
    hidden = torch.tensor([[gap, 0.0, 0.0, -1.0]], requires_grad=True)
    one = torch.ones(1)
    out = fused_linear_loss(
        hidden, torch.eye(4), targets_N=torch.tensor([0]), likelihood_weight_N=0 * one, unlikelihood_weight_N=one
    )
    out.loss.backward()
    rest = 2 + math.exp(-1)
    assert out.loss.item() == pytest.approx(gap - math.log(rest), rel=1e-6)
    assert hidden.grad[0].tolist() == pytest.approx([1, -1 / rest, -1 / rest, -math.exp(-1) / rest], rel=1e-5)


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that any operation made; views are not made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_of_tokens_times_vocabulary_exists():
    hidden = torch.randn(400, 8, requires_grad=True)
    head = torch.randn(600, 8, requires_grad=True)
    ones = torch.ones(400)
    with LargestTensor() as largest:
        out = fused_linear_loss(
            hidden,
            head,
            targets_N=torch.randint(600, (400,)),
            likelihood_weight_N=ones,
            unlikelihood_weight_N=ones,
            chunk_tokens=16,
        )
        out.loss.backward()
    assert largest.numel == 16 * 600


def test_nothing_waits_for_the_device():
    # A fake tensor has no data: any .item(), any branch on a value, fails.
    with FakeTensorMode():
        batch = {
            "hidden_BSD": torch.empty(2, 5, 4, requires_grad=True),
            "head_VD": torch.empty(7, 4, requires_grad=True),
            "input_ids_BS": torch.empty(2, 5, dtype=torch.int32),
            "token_scores_BS": torch.empty(2, 5),
            "token_kinds_BS": torch.empty(2, 5, dtype=torch.uint8),
            "values_BS": torch.empty(2, 5, requires_grad=True),
        }
        with pytest.raises(DataDependentOutputException):
            batch["head_VD"].sum().item()
        for config in (
            {"name": "MLE", "mask_above": 0.5},
            {"name": "Unlikelihood", "score_threshold": 0.5},
            {"name": "RWR"},
            {"name": "AWR"},
        ):
            for compat in (None, "korbak2023"):
                out = build_objective(config, compat=compat)(**batch)
                out.loss.backward()
                assert not any(tensor.requires_grad for tensor in [out.num_targets, *out.metrics.values()])


def test_without_gradients_none_are_computed():
    leaves, targets, weights = operands()
    with torch.no_grad(), LargestTensor() as largest:
        out = fused(leaves, targets, weights, chunk_tokens=2)
    assert out.loss.item() == pytest.approx(plain(leaves, targets, weights).item())
    assert not out.loss.requires_grad
    assert largest.numel < VOCABULARY * WIDTH  # the gradient for the head


def test_second_backward_says_that_gradients_are_gone():
    leaves, targets, weights = operands()
    loss = fused(leaves, targets, weights).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="freed by the first"):
        loss.backward()


@pytest.mark.parametrize("frozen", [(1,), (1, 2), (2,), (0,), (0, 2)])
def test_a_frozen_operand_gets_no_gradient_and_the_others_keep_theirs(frozen):
    leaves, targets, weights = operands(bias=True)
    wanted = torch.autograd.grad(fused(leaves, targets, weights).loss, leaves)
    for index in frozen:
        leaves[index].requires_grad_(False)
    fused(leaves, targets, weights).loss.backward()
    for index, (leaf, gradient) in enumerate(zip(leaves, wanted, strict=True)):
        assert leaf.grad is None if index in frozen else torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("learns", [False, True])
def test_a_tensor_of_the_heads_size_is_made_only_if_the_head_learns(learns):
    (hidden, head), targets, weights = operands()
    hidden = hidden.detach()[:8].requires_grad_()
    with LargestTensor() as largest:
        fused([hidden, head.requires_grad_(learns)], targets[:8], weights[:, :8], chunk_tokens=2).loss.backward()
    assert (largest.numel >= VOCABULARY * WIDTH) == learns


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_products_keep_the_gradient(autocast):
    leaves, targets, weights = operands(bias=True, dtype=torch.float32)
    expected = torch.autograd.grad(plain(leaves, targets, weights.float()), leaves)
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = fused(leaves, targets, weights, chunk_tokens=8)
    else:
        leaves = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
        out = fused(leaves, targets, weights, chunk_tokens=8)
    assert out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(plain(leaves, targets, weights).item(), rel=5e-3)
    for gradient, wanted, leaf in zip(torch.autograd.grad(out.loss, leaves), expected, leaves, strict=True):
        assert gradient.dtype == leaf.dtype
        assert torch.cosine_similarity(gradient.flatten().float(), wanted.flatten(), dim=0) > 0.9999


def test_compiled_caller_gives_the_same_loss_and_gradients():
    leaves, targets, weights = operands()
    projection = torch.randn(WIDTH, WIDTH, dtype=torch.float64, requires_grad=True)

    def step(x):
        out = fused([(x @ projection).tanh(), leaves[1]], targets, weights)
        return out.loss * 2

    expected = step(leaves[0])
    wanted = torch.autograd.grad(expected, [leaves[0], leaves[1], projection])
    compiled = torch.compile(step, backend="aot_eager")(leaves[0])
    assert compiled.item() == pytest.approx(expected.item(), rel=1e-12)
    for gradient, other in zip(torch.autograd.grad(compiled, [leaves[0], leaves[1], projection]), wanted, strict=True):
        assert torch.allclose(gradient, other, rtol=1e-10, atol=1e-13)


def test_tied_head_and_accumulation_add_up():
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(VOCABULARY, (4, NUM_TOKENS))
    _, targets, weights = operands()
    for row in ids:
        fused([table[row].sin(), table], targets, weights).loss.backward()
    expected = torch.autograd.grad(sum(plain([table[row].sin(), table], targets, weights) for row in ids), table)[0]
    assert torch.allclose(table.grad, expected, rtol=1e-11, atol=1e-13)


def test_vocabulary_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        fused([torch.zeros(1, 2), torch.zeros(1, 2)], torch.zeros(1, dtype=torch.long), torch.ones(2, 1))
