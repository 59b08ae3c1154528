"""KL and entropy in chunks against whole logits, and Quark's loss with a reference."""

import weakref

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.divergence import Operands, divergence_loss
from phf_ray.records import TokenKind

TOKENS, WIDTH, OTHER_WIDTH, VOCABULARY = 23, 6, 5, 37


class HeldMemory(TorchDispatchMode):
    """The most elements of new tensors that live at the same time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._sizes = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._sizes or not size:
            return
        self._sizes[address] = size
        self.now += size
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
        weakref.finalize(storage, self._free, address)

    def _free(self, address):
        self.now -= self._sizes.pop(address, 0)


def operands(*, tokens=TOKENS, vocabulary=VOCABULARY, bias=True, dtype=torch.float64, width=WIDTH):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    policy = Operands(draw(tokens, width), draw(vocabulary, width), draw(vocabulary) if bias else None)
    reference = Operands(draw(tokens, OTHER_WIDTH), draw(vocabulary, OTHER_WIDTH), draw(vocabulary) if bias else None)
    for leaf in policy:
        if leaf is not None:
            leaf.requires_grad_()
    return policy, reference, draw(2, tokens)


def whole(policy, reference, weights):
    logits = [o.hidden_ND @ o.head_VD.T + (0 if o.bias_V is None else o.bias_V) for o in (policy, reference)]
    log_p, log_q = (one.log_softmax(-1) for one in logits)
    kl, entropy = (log_p.exp() * (log_p - log_q)).sum(-1), -(log_p.exp() * log_p).sum(-1)
    return (weights[0] * kl + weights[1] * entropy).sum(), kl, entropy


def chunked(policy, reference, weights, *, chunk_tokens=4):
    return divergence_loss(
        policy, reference, kl_weight_N=weights[0], entropy_weight_N=weights[1], chunk_tokens=chunk_tokens
    )


@pytest.mark.parametrize("chunk_tokens", [1, 4, 23, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_are_those_of_whole_logits_to_1e_12(chunk_tokens, bias):
    policy, reference, weights = operands(bias=bias)
    leaves = [leaf for leaf in policy if leaf is not None]
    out, (loss, kl, entropy) = (
        chunked(policy, reference, weights, chunk_tokens=chunk_tokens),
        whole(policy, reference, weights),
    )
    for found, wanted in ((out.loss, loss), (out.kl_N, kl), (out.entropy_N, entropy)):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12 * max(1, wanted.abs().max().item()))
    for found, wanted in zip(
        torch.autograd.grad(3 * out.loss, leaves), torch.autograd.grad(3 * loss, leaves), strict=True
    ):
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12 * max(1, wanted.abs().max().item()))


def test_by_hand():
    # p = (.5, .3, .2), q = (.25, .25, .5): KL .218012; its gradient for the logits of p.
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.5, 0.3, 0.2], [0.25, 0.25, 0.5]))
    p.requires_grad_()
    identity = torch.eye(3, dtype=torch.float64)
    out = chunked(Operands(p, identity), Operands(q, identity), torch.tensor([[1.0], [0.0]]))
    assert out.kl_N.item() == pytest.approx(0.218012, abs=1e-6)
    assert out.entropy_N.item() == pytest.approx(1.029653, abs=1e-6)
    out.loss.backward()
    assert p.grad[0].tolist() == pytest.approx([0.237568, -0.010707, -0.226861], abs=1e-6)


def test_equal_models_have_no_kl_and_no_gradient_of_it():
    policy, _, weights = operands()
    out = chunked(policy, policy, torch.stack([weights[0], torch.zeros(TOKENS)]))
    assert out.kl_N.abs().max() < 1e-14
    assert torch.autograd.grad(out.loss, policy.head_VD)[0].abs().max() < 1e-13


def test_the_matrix_of_tokens_and_vocabulary_is_never_there():
    tokens, vocabulary = 512, 2000
    policy, reference, weights = operands(tokens=tokens, vocabulary=vocabulary, dtype=torch.float32, bias=False)
    peaks = {}
    for name, run in (("whole", whole), ("chunked", lambda *all: chunked(*all, chunk_tokens=16))):
        with HeldMemory() as held:
            loss = run(policy, reference, weights)[0]
            loss.backward()
            del loss
        peaks[name] = held.peak
        if name == "chunked":
            assert held.largest < tokens * vocabulary * 4 / 8
    assert peaks["chunked"] < peaks["whole"] / 20, peaks


def test_frozen_operands_get_no_gradient_and_the_reference_never_does():
    policy, reference, weights = operands()
    policy.head_VD.requires_grad_(False)
    reference.hidden_ND.requires_grad_()
    chunked(policy, reference, weights).loss.backward()
    assert policy.head_VD.grad is None
    assert reference.hidden_ND.grad is None
    assert policy.hidden_ND.grad.any()
    with torch.no_grad():
        assert not chunked(policy, reference, weights).loss.requires_grad


def test_bf16_products_keep_the_gradient():
    policy, reference, weights = operands(dtype=torch.float32)
    wanted = torch.autograd.grad(whole(policy, reference, weights)[0], policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = chunked(policy, reference, weights)
    assert out.loss.dtype == torch.float32
    for found, other in zip(torch.autograd.grad(out.loss, policy), wanted, strict=True):
        assert torch.cosine_similarity(found.flatten(), other.flatten(), dim=0) > 0.999


def test_heads_of_different_vocabularies_and_a_second_backward_are_refused():
    policy, reference, weights = operands()
    with pytest.raises(ValueError, match="37 rows, the reference's 36"):
        chunked(policy, reference._replace(head_VD=reference.head_VD[:-1], bias_V=None), weights)
    loss = chunked(policy, reference, weights).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="freed by the first"):
        loss.backward()


# -- The objective ----------------------------------------------------------------------------------------------------

START, GIVEN, LEARNED, PAD, CONTROL = (
    int(TokenKind[name]) for name in ("END_OF_TEXT", "GIVEN", "PLAIN", "PAD", "CONTROL")
)
ORIGINAL = VOCABULARY - 2
"""Ids that the reference knows; the last two are control tokens."""


def make_batch():
    generator = torch.Generator().manual_seed(2)
    kinds = torch.tensor(
        [
            [START, CONTROL, GIVEN, GIVEN, LEARNED, LEARNED, LEARNED, START, GIVEN, LEARNED],
            [START, CONTROL, GIVEN, LEARNED, LEARNED, PAD, PAD, PAD, PAD, PAD],
        ],
        dtype=torch.uint8,
    )
    ids = torch.randint(ORIGINAL, kinds.shape, generator=generator)
    ids[kinds == CONTROL] = VOCABULARY - 1

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden_BSD": draw(*kinds.shape, WIDTH).requires_grad_(),
        "head_VD": draw(VOCABULARY, WIDTH).requires_grad_(),
        "input_ids_BS": ids,
        "token_scores_BS": torch.zeros(kinds.shape),
        "token_kinds_BS": kinds,
        "channels_BS": {"weight": draw(*kinds.shape).abs()},
    }


class Reference:
    """A model of one embedding per token and place in the row, so that a shifted row is seen."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.table = torch.randn(ORIGINAL, OTHER_WIDTH, generator=generator, dtype=torch.float64)
        self.head = torch.randn(ORIGINAL + 4, OTHER_WIDTH, generator=generator, dtype=torch.float64)

    def __call__(self, input_ids_BS, token_kinds_BS):
        assert not torch.is_grad_enabled()
        assert not (token_kinds_BS == CONTROL).any()
        return self.table[input_ids_BS], self.head, None


def test_quarks_loss_and_gradient_are_those_of_whole_logits():
    batch, reference = make_batch(), Reference()
    objective = build_objective({"name": "WeightedLikelihood", "kl_coef": 0.3, "entropy_coef": 0.2})
    objective.compare_with(reference, num_tokens=ORIGINAL)
    out = objective(**batch)
    assert list(objective.parameters()) == []

    logits = batch["hidden_BSD"] @ batch["head_VD"].T
    kinds, ids = batch["token_kinds_BS"][:, 1:], batch["input_ids_BS"]
    weights = torch.where(kinds == LEARNED, batch["channels_BS"]["weight"][:, 1:], 0.0)
    logp = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    log_p = logits[:, :-1, :ORIGINAL].log_softmax(-1)
    log_q = (reference.table[ids.clamp(max=ORIGINAL - 1)] @ reference.head[:ORIGINAL].T)[:, :-1].log_softmax(-1)
    kl, entropy = (log_p.exp() * (log_p - log_q)).sum(-1), -(log_p.exp() * log_p).sum(-1)
    expected = (weights * (-logp + 0.3 * kl - 0.2 * entropy)).sum()
    assert out.num_targets.item() == pytest.approx(weights.sum().item())
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    leaves = [batch["hidden_BSD"], batch["head_VD"]]
    for found, wanted in zip(torch.autograd.grad(out.loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-7)
    figures = objective.summarize(out.metrics)
    assert figures["kl"] == pytest.approx((weights * kl).sum().item() / weights.sum().item())
    assert figures["entropy"] == pytest.approx((weights * entropy).sum().item() / weights.sum().item())
    assert figures["loss"] == pytest.approx(expected.item() / weights.sum().item(), rel=1e-6)


def test_entropy_alone_needs_no_reference_and_the_kl_does():
    batch = make_batch()
    alone = build_objective({"name": "WeightedLikelihood", "entropy_coef": 0.2})
    plain = build_objective({"name": "WeightedLikelihood"})
    out, bare = alone(**batch), plain(**batch)
    entropy = alone.summarize(out.metrics)["entropy"]
    assert (bare.loss - out.loss).item() == pytest.approx(0.2 * entropy * out.num_targets.item(), rel=1e-5)
    assert "kl" not in plain.summarize(bare.metrics)
    with pytest.raises(ConfigError, match="no reference"):
        build_objective({"name": "WeightedLikelihood", "kl_coef": 0.2})(**batch)
    with pytest.raises(DataError, match="reads weight"):
        plain(**{**batch, "channels_BS": {}})


def test_the_likelihoods_optimum_is_the_distribution_of_the_kept_tokens():
    """Expert iteration, RAFT and Quark: at p = the weighted share of each token, nothing is left to learn."""
    shares = np.array([0.1, 0.2, 0.3, 0.4])
    ids = torch.tensor([[0, token] for token in range(4)])
    batch = {
        "hidden_BSD": torch.ones(4, 2, 1, dtype=torch.float64),
        "head_VD": torch.tensor(np.log(shares))[:, None].requires_grad_(),
        "input_ids_BS": ids,
        "token_scores_BS": torch.zeros(ids.shape),
        "token_kinds_BS": torch.tensor([[START, LEARNED]] * 4, dtype=torch.uint8),
        "channels_BS": {"weight": torch.tensor(shares)[:, None].expand(4, 2)},
    }
    build_objective({"name": "WeightedLikelihood"})(**batch).loss.backward()
    assert batch["head_VD"].grad.abs().max() < 1e-7
