"""A bandit whose policy is a model: all completions of one token, by the real objective, against whole logits."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer

from phf_ray.config import ModelConfig
from phf_ray.models.build import build_model
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.rollouts import RoundArrays, build_algorithm
from phf_ray.training.batches import MicroBatch

KL_COEF, TEMPERATURE = 0.3, 0.8
PROMPT = [5, 9]


@pytest.fixture(scope="module")
def models():
    def build(seed):
        config = ModelConfig(
            path_or_name=None,
            model_type="gpt2",
            config_kwargs={"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "initializer_range": 0.3},
            model_kwargs={"value_head_config": {"is_bounded": False}},
        )
        return build_model(config, tokenizer=tiny_tokenizer(), seed=seed).double()

    return build(0), build(1).eval()


def next_token(model):
    states, head, _ = model.operands(torch.tensor([[0, *PROMPT]]), torch.tensor([[1, 6, 6]], dtype=torch.uint8))
    return (states[0, -1] @ head.T / TEMPERATURE).log_softmax(0)


@pytest.mark.parametrize("name", ["reinforce", "rloo", "ppo"])
def test_the_models_gradient_is_that_of_the_reward_less_the_kl(models, name):
    model, reference = models
    objective_config = {"kl_coef": KL_COEF} | ({"whiten_advantages": False} if name == "ppo" else {})
    algorithm = build_algorithm({"name": name, **objective_config})
    model.train()
    model.disable_dropout()
    logp, logq = next_token(model), next_token(reference).detach()
    tokens = len(logp)
    rewards = torch.randn(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    expected = (logp.exp() * (rewards - KL_COEF * (logp - logq))).sum()
    parameters = dict(model.backbone.named_parameters())
    wanted = torch.autograd.grad(-expected, parameters.values(), allow_unused=True)

    # RLOO compares the two samples of a prompt; each token is paired with one fixed other.
    samples = 2 if name == "rloo" else 1
    completions = torch.stack([torch.arange(tokens), torch.full((tokens,), 3)], dim=1)[:, :samples].reshape(-1)
    old = logp.detach()
    arrays = RoundArrays(
        prompt_R=np.repeat(np.arange(tokens), samples),
        sample_R=np.tile(np.arange(samples), tokens),
        rewards_R=rewards[completions].numpy(),
        mask_RT=np.ones((len(completions), 1), bool),
        policy_RT=old[completions, None].numpy(),
        reference_RT=logq[completions, None].numpy(),
        value_RT=np.full((len(completions), 1), 0.7),
    )
    channels = algorithm.weigh(arrays, {}).channels
    rows, shape = torch.arange(tokens) * samples, (tokens, len(PROMPT) + 2)
    ids = torch.tensor([[0, *PROMPT, 0]]).repeat(tokens, 1)
    ids[:, -1] = completions[rows]
    kinds = torch.tensor([[TokenKind.END_OF_TEXT, TokenKind.GIVEN, TokenKind.GIVEN, TokenKind.PLAIN]] * tokens)
    placed = {key: torch.zeros(shape, dtype=torch.float64) for key in channels}
    for key, array in channels.items():
        placed[key][:, -1] = torch.from_numpy(array)[rows, 0]
    # The expectation over the policy: a row's share is its probability.
    placed["advantage"][:, -1] *= old.exp()
    objective = build_objective(algorithm.objective() | {"temperature": TEMPERATURE})
    batch = MicroBatch(ids, torch.zeros(shape), kinds.to(torch.uint8), 0, placed)
    out = batch.through(model, objective)
    assert out.num_targets.item() == tokens
    assert objective.summarize(out.metrics)["ppo/policy/ratio"] == pytest.approx(1, abs=1e-6)
    model.zero_grad()
    out.loss.backward()
    assert any(gradient is not None for gradient in wanted)
    for (key, parameter), gradient in zip(parameters.items(), wanted, strict=True):
        if gradient is not None:
            assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-6), key
    learns_values = model.value_head.head.weight.grad.abs().max() > 0
    assert learns_values == (name == "ppo")
