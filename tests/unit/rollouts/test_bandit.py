"""Everything enumerable: completions of one token out of 8, and a policy of 8 logits.

Each test's truth is computed here, by sums over tokens or over all 4,096 draws of 4 tokens.
"""

import itertools

import numpy as np
import pytest

from phf_ray.objectives.pairs import preference_loss
from phf_ray.rollouts import RoundArrays, build_algorithm, ppo_loss, value_loss

V, N, BETA = 8, 4, 0.5
RNG = np.random.default_rng(3)
REWARDS = RNG.normal(size=V)
REFERENCE = RNG.dirichlet(np.full(V, 2.0))
LOGITS = np.log(REFERENCE) + 0.7 * RNG.normal(size=V)
OPTIMUM = REFERENCE * np.exp(REWARDS / BETA)
OPTIMUM = OPTIMUM / OPTIMUM.sum()
DRAWS = np.array(list(itertools.product(range(V), repeat=N)))
SEEDS = 1000


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


POLICY = softmax(LOGITS)


def round_of(tokens_GN, policy=POLICY, *, value=0.0, rewards=REWARDS):
    groups, samples = tokens_GN.shape
    tokens = tokens_GN.reshape(-1)
    return RoundArrays(
        prompt_R=np.repeat(np.arange(groups), samples),
        sample_R=np.tile(np.arange(samples), groups),
        rewards_R=rewards[tokens],
        mask_RT=np.ones((len(tokens), 1), bool),
        policy_RT=np.log(policy)[tokens, None],
        reference_RT=np.log(REFERENCE)[tokens, None],
        value_RT=np.full((len(tokens), 1), value),
    )


def draw(rng, groups, policy=POLICY, samples=N):
    return rng.choice(V, size=(groups, samples), p=policy)


def scores_of(tokens_GN, policy=POLICY):
    """d log p(token) / d logits."""
    return np.eye(V)[tokens_GN] - policy


def gradients(tokens_GN, advantages_R, policy=POLICY):
    """Of each group's mean reward, as the first minibatch has it: the ratio is 1."""
    advantages_GN = np.asarray(advantages_R, np.float64).reshape(tokens_GN.shape)
    _, slopes_GN = ppo_loss(np.ones_like(advantages_GN), advantages_GN)
    return -(slopes_GN[..., None] * scores_of(tokens_GN, policy)).mean(axis=1)


def exact_gradient(policy=POLICY):
    """Of E[reward] - BETA KL(policy || reference)."""
    gain = REWARDS - BETA * np.log(policy / REFERENCE)
    return policy * (gain - policy @ gain)


def assert_within_4_standard_errors(estimates_SV, expected_V):
    errors_V = estimates_SV.std(axis=0, ddof=1) / np.sqrt(len(estimates_SV))
    assert (np.abs(estimates_SV.mean(axis=0) - expected_V) <= 4 * errors_V).all()
    assert (errors_V < 0.05).all(), "an error so large would hide anything"


def advantages_of(config, arrays, state=None):
    return build_algorithm(config).weigh(arrays, state or {}).channels["advantage"][:, 0]


def by_group(config, tokens_GN, *, value=0.0):
    """Weigh each group as a round of its own, if the algorithm looks at the whole round."""
    if config["name"] != "reinforce_pp":
        return advantages_of(config, round_of(tokens_GN, value=value))
    parts = [advantages_of(config, round_of(tokens_GN[g : g + 1], value=value)) for g in range(len(tokens_GN))]
    return np.concatenate(parts)


PPO = {"name": "ppo", "kl_coef": BETA, "whiten_advantages": False}
EXACT = {
    "rloo": {"name": "rloo", "kl_coef": BETA},
    "reinforce": {"name": "reinforce", "kl_coef": BETA},
    "reinforce without baseline": {"name": "reinforce", "kl_coef": BETA, "baseline": "none"},
    "ppo": PPO,
}


@pytest.mark.parametrize("name", EXACT)
def test_the_gradient_is_the_exact_one(name):
    tokens = draw(np.random.default_rng(17), SEEDS)
    advantages = advantages_of(EXACT[name], round_of(tokens, value=0.4), {"baseline": 0.4})
    assert_within_4_standard_errors(gradients(tokens, advantages), exact_gradient())


@pytest.mark.parametrize("name", EXACT)
def test_the_enumerated_gradient_is_the_exact_one_to_the_last_digits(name):
    advantages = advantages_of(EXACT[name], round_of(DRAWS, value=0.4), {"baseline": 0.4})
    probabilities = POLICY[DRAWS].prod(axis=1)
    assert probabilities @ gradients(DRAWS, advantages) == pytest.approx(exact_gradient(), abs=1e-6)


def own_estimator(name):
    """Expectation of (return - mean) / spread times the score, over all draws of 4 tokens."""
    returns = (REWARDS - BETA * np.log(POLICY / REFERENCE))[DRAWS]
    centred = returns - returns.mean(axis=1, keepdims=True)
    spread = {
        "grpo": returns.std(axis=1, ddof=1) + 1e-4,
        "grpo without scale": np.ones(len(DRAWS)),
        "reinforce_pp": returns.std(axis=1) + 1e-8,
    }[name]
    terms = (centred / spread[:, None])[..., None] * scores_of(DRAWS)
    return POLICY[DRAWS].prod(axis=1) @ terms.mean(axis=1)


BIASED = {
    "grpo": {"name": "grpo", "kl_coef": BETA},
    "grpo without scale": {"name": "grpo", "kl_coef": BETA, "scale_rewards": False},
    "reinforce_pp": {"name": "reinforce_pp", "kl_coef": BETA},
}


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_estimator_has_the_expectation_of_its_formula(name):
    tokens = draw(np.random.default_rng(5), SEEDS)
    assert_within_4_standard_errors(gradients(tokens, by_group(BIASED[name], tokens)), own_estimator(name))


def test_the_biases_are_what_the_docstrings_say():
    exact = exact_gradient()
    assert own_estimator("grpo without scale") == pytest.approx((N - 1) / N * exact)
    for name in ("grpo", "reinforce_pp"):
        estimated = own_estimator(name)
        cosine = estimated @ exact / np.linalg.norm(estimated) / np.linalg.norm(exact)
        assert 0.8 < cosine < 0.999


def total_variation(first, second):
    return np.abs(first - second).sum() / 2


def test_rloo_run_to_the_end_reaches_the_optimum():
    algorithm, rng = build_algorithm({"name": "rloo", "kl_coef": BETA}), np.random.default_rng(1)
    logits, state = np.log(REFERENCE), {}
    assert total_variation(REFERENCE, OPTIMUM) > 0.3
    for _ in range(400):
        policy = softmax(logits)
        tokens = draw(rng, 64, policy)
        weighed = algorithm.weigh(round_of(tokens, policy), state)
        state = weighed.state
        logits = logits + 2.0 * gradients(tokens, weighed.channels["advantage"], policy).mean(axis=0)
    assert total_variation(softmax(logits), OPTIMUM) < 0.02


def test_ppo_run_to_the_end_reaches_the_optimum():
    """Two epochs of four minibatches each round, with clipping, and a value that learns beside the policy."""
    algorithm, rng = build_algorithm(PPO), np.random.default_rng(2)
    logits, value = np.log(REFERENCE), 0.0
    for _ in range(200):
        old = softmax(logits)
        tokens = draw(rng, 64, old)
        channels = {
            name: array[:, 0].astype(np.float64)
            for name, array in algorithm.weigh(round_of(tokens, old, value=value), {}).channels.items()
        }
        order = np.concatenate([rng.permutation(tokens.size).reshape(4, -1) for _ in range(2)])
        for rows in order:
            policy, chosen = softmax(logits), tokens.reshape(-1)[rows]
            ratio = np.exp(np.log(policy)[chosen] - channels["old_logprob"][rows])
            _, slopes = ppo_loss(ratio, channels["advantage"][rows])
            logits = logits - 1.0 * (slopes[:, None] * scores_of(chosen, policy)).mean(axis=0)
            _, slopes = value_loss(
                np.full(len(rows), value), channels["old_value"][rows], channels["return"][rows], clip=0.2
            )
            value -= 0.1 * slopes.mean()
    assert total_variation(softmax(logits), OPTIMUM) < 0.02


def test_dpo_on_drawn_preferences_reaches_the_same_optimum():
    algorithm = build_algorithm({"name": "online_dpo", "pairing": "drawn", "beta": BETA, "seed": 4})
    rng, logits, state, mean = np.random.default_rng(6), np.log(REFERENCE), {}, np.zeros(V)
    for step in range(400):
        policy = softmax(logits)
        tokens = draw(rng, 128, policy)
        weighed = algorithm.weigh(round_of(tokens, policy), state)
        state = weighed.state
        chosen, rejected = tokens.reshape(-1)[weighed.pairs].T
        gain = np.log(policy / REFERENCE)
        loss = preference_loss("sigmoid", gain[chosen], gain[rejected], beta=BETA)
        slopes = loss.chosen_slope[:, None] * np.eye(V)[chosen] + loss.rejected_slope[:, None] * np.eye(V)[rejected]
        logits = logits - 8.0 * slopes.mean(axis=0)
        mean = mean + logits if step >= 200 else mean
    assert total_variation(softmax(mean / 200), OPTIMUM) < 0.02


# -- What is kept -----------------------------------------------------------------------------------------------------


def kept_distribution(config, *, tokens_GN=DRAWS):
    """Of the learned tokens, over all draws of 4."""
    arrays = round_of(tokens_GN)
    keep_GN = build_algorithm(config).weigh(arrays, {}).keep_R.reshape(tokens_GN.shape)
    weights = POLICY[tokens_GN].prod(axis=1)[:, None] * keep_GN
    found = np.bincount(tokens_GN.reshape(-1), weights.reshape(-1), minlength=V)
    return found / found.sum()


def best_of(n, m):
    """Distribution of a token that is among the m best of n drawn, by sums over the places of order statistics."""
    order = np.argsort(-REWARDS)
    found = np.zeros(V)
    for tokens in itertools.product(range(V), repeat=n):
        best = sorted(tokens, key=lambda token: list(order).index(token))[:m]
        for token in best:
            found[token] += POLICY[list(tokens)].prod()
    return found / found.sum()


def test_expert_iteration_learns_the_distribution_of_the_best_of_4():
    below = np.array([POLICY[reward > REWARDS].sum() for reward in REWARDS])
    expected = (below + POLICY) ** N - below**N
    assert kept_distribution({"name": "expert_iteration"}) == pytest.approx(expected)
    assert kept_distribution({"name": "raft", "keep": 0.25}) == pytest.approx(expected)


def test_raft_learns_the_distribution_of_the_best_half():
    assert kept_distribution({"name": "raft", "keep": 0.5}) == pytest.approx(best_of(N, 2))


@pytest.mark.parametrize(
    "config", [{"name": "quark", "num_quantiles": 2}, {"name": "raft", "keep": 0.5, "ranking": "round"}]
)
def test_of_a_whole_round_the_best_quantile_is_learned(config):
    algorithm, rng = build_algorithm(config), np.random.default_rng(8)
    draws = draw(rng, SEEDS)
    kept = np.stack([np.bincount(one[algorithm.weigh(round_of(one[None]), {}).keep_R], minlength=V) for one in draws])
    assert (kept.sum(axis=1) == 2).all()
    assert_within_4_standard_errors(kept / 2, best_of(N, 2))


def test_quantiles_of_quark_are_learned_behind_their_tokens():
    algorithm = build_algorithm({"name": "quark", "num_quantiles": 2, "best_only": False})
    draws = draw(np.random.default_rng(9), SEEDS)
    first = []
    for one in draws:
        weighed = algorithm.weigh(round_of(one[None]), {})
        assert weighed.keep_R.all()
        first.append(np.bincount(one[np.array(weighed.prefix_R) == "<reward_0>"], minlength=V))
        assert sorted(weighed.prefix_R) == ["<reward_0>", "<reward_0>", "<reward_1>", "<reward_1>"]
    assert_within_4_standard_errors(np.stack(first) / 2, best_of(N, 2))
