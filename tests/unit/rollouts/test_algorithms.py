"""Each algorithm by hand: what it keeps, how it weighs, what it counts."""

import dataclasses

import numpy as np
import pytest
from pydantic import TypeAdapter

from phf_ray.config import AlgorithmConfig, ModelConfig, problems_of_algorithm
from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.build import build_objective
from phf_ray.rollouts import RoundArrays, build_algorithm, whitened

ALL = [
    *("ppo", "rloo", "reinforce", "reinforce_pp", "grpo"),
    *("expert_iteration", "raft", "quark", "reward_conditioning", "online_dpo"),
]
NAN = np.nan


def make_round(rewards_GN, *, lengths=None, policy=-1.0, reference=-1.0, width=None, values=0.0, **others):
    rewards_GN = np.asarray(rewards_GN, dtype=np.float64)
    groups, samples = rewards_GN.shape
    lengths = np.full(groups * samples, 2) if lengths is None else np.asarray(lengths)
    shape = (groups * samples, width or int(lengths.max(initial=0)))
    return RoundArrays(
        prompt_R=np.repeat(np.arange(groups), samples),
        sample_R=np.tile(np.arange(samples), groups),
        rewards_R=rewards_GN.reshape(-1),
        mask_RT=np.arange(shape[1]) < lengths[:, None],
        policy_RT=np.broadcast_to(np.asarray(policy, np.float64), shape).copy(),
        reference_RT=np.broadcast_to(np.asarray(reference, np.float64), shape).copy(),
        value_RT=np.broadcast_to(np.asarray(values, np.float64), shape).copy(),
        **others,
    )


def weigh(config, arrays, state=None, **options):
    return build_algorithm(config, **options).weigh(arrays, state or {})


def test_rloo_by_hand():
    weighed = weigh({"name": "rloo", "kl_coef": 0}, make_round([[6, 3]], lengths=[1, 2]))
    assert weighed.channels["advantage"].tolist() == [[3, 0], [-3, -3]]
    # With a KL of 1 nat per token at .5 each, the returns are 5.5 and 2.
    weighed = weigh({"name": "rloo", "kl_coef": 0.5}, make_round([[6, 3]], lengths=[1, 2], reference=-2.0))
    assert weighed.channels["advantage"].tolist() == [[3.5, 0], [-3.5, -3.5]]
    assert weighed.figures["objective/kl_sum_seq"] == weighed.figures["kl"] == 1.5
    assert weighed.figures["objective/kl_avg_seq"] == 1
    assert weighed.figures["objective/rewards"] == weighed.figures["reward"] == 4.5
    assert weighed.figures["reward_std"] == pytest.approx(np.sqrt(4.5))  # of a prompt's samples
    assert weighed.figures["objective/non_score_rewards"] == -0.75
    assert weighed.figures["objective/shaped_rewards"] == 3.75


def test_grpo_by_hand():
    advantages = weigh({"name": "grpo", "kl_coef": 0}, make_round([[6, 3, 3]])).channels["advantage"]
    assert advantages[:, 0] == pytest.approx(np.array([2, -1, -1]) / (np.sqrt(3) + 1e-4), rel=1e-6)
    config = {"name": "grpo", "kl_coef": 0, "scale_rewards": False}
    assert weigh(config, make_round([[6, 3, 3]])).channels["advantage"][:, 0].tolist() == [2, -1, -1]


def test_ppo_by_hand():
    # One row of 3 tokens; a reward of 3 at the end, and a KL of -1 and -2 nats (so a gain) before: rewards 1, 2, 3.
    arrays = make_round([[3]], lengths=[3], policy=[[-1, -1, -1]], reference=[[0, 1, -1]], values=[[0.5, 1, 1.5]])
    config = {"name": "ppo", "kl_coef": 1, "lam": 0.5, "whiten_advantages": False}
    weighed = weigh(config, arrays)
    assert weighed.channels["advantage"].tolist() == [[3.125, 3.25, 1.5]]
    assert weighed.channels["return"].tolist() == [[3.625, 4.25, 3]]
    assert weighed.channels["old_value"].tolist() == [[0.5, 1, 1.5]]
    assert weighed.channels["old_logprob"].tolist() == [[-1, -1, -1]]
    assert weighed.figures["ppo/returns/mean"] == pytest.approx((3.625 + 4.25 + 3) / 3)
    assert weighed.figures["ppo/val/mean"] == 1
    white = weigh({**config, "whiten_advantages": True}, arrays).channels["advantage"]
    assert white[0] == pytest.approx((np.array([3.125, 3.25, 1.5]) - 2.625) / np.std([3.125, 3.25, 1.5]), rel=1e-6)
    # Rewards 1, 2, 3 in units of their sd .8165, mean 2 kept: .775, 2, 3.225.
    rewards = weigh({**config, "whiten_rewards": True, "lam": 1}, arrays).channels["return"]
    assert rewards[0] == pytest.approx([6, 5.2247, 3.2247], abs=1e-4)


def test_reinforce_takes_off_what_earlier_rounds_led_to_expect():
    algorithm = build_algorithm({"name": "reinforce", "kl_coef": 0})
    first = algorithm.weigh(make_round([[2, 4]]), {})
    assert first.channels["advantage"][:, 0].tolist() == [2, 4]
    assert first.state["baseline"] == 3
    second = algorithm.weigh(make_round([[13, NAN]]), first.state)
    assert second.channels["advantage"][:, 0].tolist() == [10, 0]
    assert second.state["baseline"] == pytest.approx(0.9 * 3 + 0.1 * 13)
    assert second.figures["objective/baseline"] == 3
    failed = algorithm.weigh(make_round([[NAN, NAN]]), first.state)
    assert failed.state == first.state
    plain = weigh({"name": "reinforce", "kl_coef": 0, "baseline": "none"}, make_round([[2, 4]]), {"baseline": 9.0})
    assert plain.channels["advantage"][:, 0].tolist() == [2, 4]


def test_reinforce_pp_counts_the_kl_from_each_token_on_and_whitens_over_the_round():
    arrays = make_round([[1, 3]], lengths=[1, 2], policy=-1.0, reference=[[-1, -1], [-2, -3]])
    # Returns to come at .5 a nat: 1; 3 - .5 - 1 and 3 - 1. Mean 1.5, variance 1/6.
    expected = np.array([[1 - 1.5, 0], [1.5 - 1.5, 2 - 1.5]]) / np.sqrt(1 / 6)
    found = weigh({"name": "reinforce_pp", "kl_coef": 0.5}, arrays).channels["advantage"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_kl_coefficient_adapts_as_alpaca_farms():
    # A KL of 2 nats per row. 2/1 - 1 is clipped to .2, and 2/2.1 - 1 is -.0476.
    arrays = make_round([[1, 2]], reference=-2.0)
    config = {"name": "rloo", "kl_coef": 0.1, "kl_target": 1.0}
    state = weigh(config, arrays).state
    assert state == {"kl_coef": pytest.approx(0.1 * 1.02)}
    weighed = weigh({**config, "kl_target": 2.1}, arrays, state)
    assert weighed.figures["objective/kl_coef"] == pytest.approx(0.102)
    assert weighed.state["kl_coef"] == pytest.approx(0.102 * (1 + 0.1 * (2 / 2.1 - 1)))
    assert weigh({"name": "rloo", "kl_coef": 0.1}, arrays).state == {"kl_coef": 0.1}
    assert weigh(config, make_round([[NAN, NAN]], reference=-2.0), state).state == state


def test_expert_iteration_and_raft_keep_the_best_and_the_first_of_equals():
    arrays = make_round([[1, 5, 5, 2], [NAN, 0, -1, 3], [NAN, NAN, NAN, NAN]])
    best = weigh({"name": "expert_iteration"}, arrays)
    assert np.flatnonzero(best.keep_R).tolist() == [1, 7]
    assert best.channels["weight"].sum(axis=1)[[1, 7, 0]].tolist() == [2, 2, 0]
    assert best.figures["rollouts/kept"] == 2
    assert best.figures["rollouts/kept_reward"] == 4
    assert best.figures["rollouts/failed"] == 5
    half = weigh({"name": "raft", "keep": 0.5}, arrays)
    # Half of 4 is 2; half of the 3 that are left, rounded down, is 1.
    assert np.flatnonzero(half.keep_R).tolist() == [1, 2, 7]
    whole = weigh({"name": "raft", "keep": 0.29, "ranking": "round"}, arrays)
    assert np.flatnonzero(whole.keep_R).tolist() == [1, 2]  # 7 x .29 = 2.03
    assert weigh({"name": "raft", "keep": 0.29, "ranking": "round"}, make_round([np.arange(100.0)])).keep_R.sum() == 29


def test_quark_cuts_equal_quantiles_and_gives_the_rest_to_the_last():
    arrays = make_round([[3, 9, 1, NAN, 7, 5, 0, 8, 2, 6, 4]])
    # 10 rewards in 4 quantiles: 9 8 | 7 6 | 5 4 | 3 2 1 0.
    config = {"name": "quark", "num_quantiles": 4, "best_only": False}
    weighed = weigh(config, arrays)
    numbers = [3, 0, 3, None, 1, 2, 3, 0, 3, 1, 2]
    assert weighed.prefix_R == ["" if number is None else f"<reward_{number}>" for number in numbers]
    assert weighed.keep_R.tolist() == [number is not None for number in numbers]
    algorithm = build_algorithm(config)
    assert algorithm.control_tokens == ("<reward_0>", "<reward_1>", "<reward_2>", "<reward_3>")
    assert algorithm.sampling_prefix == "<reward_0>"
    best = build_algorithm({"name": "quark", "num_quantiles": 4, "pool_rounds": 3})
    assert np.flatnonzero(best.weigh(arrays, {}).keep_R).tolist() == [1, 7]
    assert best.weigh(arrays, {}).prefix_R is None
    assert (best.control_tokens, best.sampling_prefix, best.num_pool_rounds) == ((), None, 3)
    assert best.needs_reference_states
    assert not build_algorithm({"name": "quark", "kl_coef": 0}).needs_reference_states
    nothing = weigh(config, make_round([[1, 2, 3, NAN]]))
    assert not nothing.keep_R.any()
    assert nothing.figures["rollouts/kept"] == 0


def test_reward_conditioning_puts_the_better_half_behind_the_good_token():
    weighed = weigh({"name": "reward_conditioning"}, make_round([[3, 1], [2, NAN], [0, 5]]))
    good, bad = "<|aligned|>", "<|misaligned|>"
    assert weighed.prefix_R == [good, bad, bad, "", bad, good]  # 5 rows, and the even one of 2.5 is 2
    assert build_algorithm({"name": "reward_conditioning"}).sampling_prefix == good


def test_online_dpo_pairs_best_and_worst():
    arrays = make_round([[1, 5, 5, -2], [NAN, 0, NAN, NAN], [4, 4, 4, 4], [NAN, 3, 9, 6]], reference=-2.0)
    weighed = weigh({"name": "online_dpo"}, arrays)
    assert weighed.pairs.tolist() == [[1, 3], [14, 13]]
    assert np.flatnonzero(weighed.keep_R).tolist() == [1, 3, 13, 14]
    assert weighed.channels["reference_logprob"].sum(axis=1).tolist() == [-4 * kept for kept in weighed.keep_R]
    assert weighed.figures["rollouts/pairs"] == 2
    assert weighed.figures["rollouts/tied_pairs"] == weighed.figures["rollouts/constant_groups"] == 1
    assert weighed.figures["rollouts/lone"] == 1
    assert build_algorithm({"name": "online_dpo", "beta": 0.3}).objective() == {
        "name": "DPO",
        "loss_type": "sigmoid",
        "beta": 0.3,
        "label_smoothing": 0.0,
    }
    assert len(weigh({"name": "online_dpo"}, make_round([[NAN, 1], [NAN, 2]])).pairs) == 0


def test_online_dpo_prefers_the_higher_of_two_or_draws():
    arrays = make_round([[1, 5, 2, 2, 9], [7, NAN, 3, 1, 8]])
    weighed = weigh({"name": "online_dpo", "pairing": "higher"}, arrays)
    assert weighed.pairs.tolist() == [[1, 0], [7, 8]]
    assert weighed.figures["rollouts/tied_pairs"] == 1
    arrays = make_round(np.tile([[1.0, 0.0]], (20000, 1)))
    config = {"name": "online_dpo", "pairing": "drawn", "seed": 1}
    first = weigh(config, arrays)
    # sigmoid(1) = .7311, and .0031 is its standard error.
    assert (first.pairs[:, 0] % 2 == 0).mean() == pytest.approx(0.7311, abs=4 * 0.0031)
    assert first.pairs.tolist() == weigh(config, arrays).pairs.tolist()
    assert first.pairs.tolist() != weigh(config, arrays, first.state).pairs.tolist(), "each round draws anew"


# -- What holds for all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing_even_if_it_is_not_a_number(name):
    rng = np.random.default_rng(0)
    rewards, lengths = rng.normal(size=(3, 4)), rng.integers(1, 5, size=12)
    numbers = {key: -rng.random((12, 5)) for key in ("policy", "reference", "values")}
    narrow = make_round(rewards, lengths=lengths, **{key: array[:, :4] for key, array in numbers.items()}, width=4)
    mask = np.arange(5) < lengths[:, None]
    dirty = {key: np.where(mask, array, NAN) for key, array in numbers.items()}
    wide = make_round(rewards, lengths=lengths, **dirty, width=5)
    found, expected = weigh({"name": name}, wide), weigh({"name": name}, narrow)
    assert found.figures == expected.figures
    assert found.state == expected.state
    assert found.keep_R.tolist() == expected.keep_R.tolist()
    for channel, array in found.channels.items():
        assert np.array_equal(array[:, :4], expected.channels[channel])
        assert not array[~mask].any()


@pytest.mark.parametrize("name", ALL)
def test_a_failed_reward_is_left_out_and_counted(name):
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(3, 4))
    rewards[1, 2] = NAN
    arrays = make_round(rewards, reference=-1.5)
    weighed = weigh({"name": name}, arrays)
    assert weighed.figures["rollouts/failed"] == 1
    assert not weighed.keep_R[6]
    assert all(np.isfinite(array).all() and not array[6].any() for array in weighed.channels.values())
    assert np.isfinite(list(weighed.figures.values())).all()
    assert weighed.figures["reward"] == pytest.approx(np.nanmean(rewards))
    if weighed.pairs is not None:
        assert 6 not in weighed.pairs


@pytest.mark.parametrize("name", ALL)
def test_a_round_of_failures_teaches_nothing_and_makes_no_figure_up(name):
    weighed = weigh({"name": name}, make_round(np.full((2, 2), NAN)))
    assert not weighed.keep_R.any()
    assert not any(array.any() for array in weighed.channels.values())
    assert weighed.figures["rollouts/failed"] == 4
    assert "reward" not in weighed.figures
    assert np.isfinite(list(weighed.figures.values())).all()


@pytest.mark.parametrize("name", ALL)
def test_a_round_without_tokens_or_rows_teaches_nothing(name):
    for groups in (2, 0):
        arrays = make_round(np.ones((groups, 2)), lengths=np.zeros(2 * groups, int), width=0)
        assert not weigh({"name": name}, arrays).keep_R.any()


@pytest.mark.parametrize("name", ALL)
def test_constant_groups_are_counted(name):
    weighed = weigh({"name": name}, make_round([[2, 2, 2], [1, 2, 3], [5, NAN, 5], [NAN, NAN, 1]]))
    assert weighed.figures["rollouts/constant_groups"] == 2
    assert weighed.figures["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert weighed.figures["rollouts/lone"] == 1


@pytest.mark.parametrize("name", ["rloo", "grpo", "ppo"])
def test_equal_policies_have_no_kl(name):
    weighed = weigh({"name": name}, make_round([[1, 2]]))
    assert weighed.figures["kl"] == weighed.figures["objective/kl_avg_seq"] == 0


@pytest.mark.parametrize("name", ALL)
def test_the_objective_of_an_algorithm_can_be_built_and_reads_what_it_is_given(name):
    algorithm = build_algorithm({"name": name})
    objective = build_objective(algorithm.objective())
    assert set(objective.channels) <= algorithm.weigh(make_round([[1, 2], [3, 5]]), {}).channels.keys()


def test_log_probabilities_of_older_weights_are_handed_on():
    arrays = make_round([[1, 2]], behaviour_RT=np.full((2, 2), -1.25))
    assert weigh({"name": "rloo"}, arrays).channels["behaviour_logprob"].tolist() == [[-1.25, -1.25]] * 2
    assert "behaviour_logprob" not in weigh({"name": "rloo"}, make_round([[1, 2]])).channels


def test_grpo_refuses_a_loss_whose_gradient_is_not_the_kls():
    for kl, reason in (("k1", "0 in expectation"), ("k3", "KL.reference .. policy.*compat: trl")):
        with pytest.raises(ConfigError, match=reason):
            build_algorithm({"name": "grpo", "kl": kl})
    with pytest.raises(ConfigError, match="0 in expectation"):
        build_algorithm({"name": "grpo", "kl": "k1"}, compat="trl")
    with pytest.raises(ConfigError, match="kl_target adapts"):
        build_algorithm({"name": "grpo", "kl": "k2", "kl_target": 6})
    algorithm = build_algorithm({"name": "grpo", "kl": "k3", "kl_coef": 0.04}, compat="trl")
    objective = algorithm.objective()
    assert (objective["kl_loss"], objective["kl_coef"]) == ("k3", 0.04)
    weighed = algorithm.weigh(make_round([[1, 3]], reference=-2.0), {})
    assert weighed.channels["reference_logprob"].tolist() == [[-2, -2], [-2, -2]]
    # No price in the reward, too.
    assert weighed.channels["advantage"][0, 0] == -weighed.channels["advantage"][1, 0]
    assert weighed.figures["objective/shaped_rewards"] == 2
    assert weighed.figures["objective/kl_coef"] == weighed.state["kl_coef"] == 0.04
    assert "kl_loss" not in build_algorithm({"name": "grpo", "kl": "k2", "kl_coef": 0}).objective()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards_R": np.array([1.0, np.inf])}, "a reward must be finite"),
        ({"rewards_R": np.array([1.0])}, "one of each per row"),
        ({"policy_RT": np.array([[-1.0, NAN], [-1.0, -1.0]])}, "policy_RT must be finite"),
        ({"reference_RT": np.zeros((2, 3))}, "reference_RT has shape"),
        ({"mask_RT": np.full((2, 2), 2)}, "a mask with 2"),
        ({"prompt_R": np.array([0, 1]), "sample_R": np.array([0, 0])}, None),
    ],
)
def test_arrays_that_are_no_round_are_refused(change, message):
    arrays = make_round([[1, 2]])
    if message is None:
        assert dataclasses.replace(arrays, **change).num_samples == 1
        return
    with pytest.raises(DataError, match=message):
        dataclasses.replace(arrays, **change)


def test_rows_out_of_order_are_refused():
    arrays = make_round([[1, 2], [3, 4]])
    for prompts in ([0, 1, 0, 1], [0, 0, 0, 1]):
        with pytest.raises(DataError, match="ordered by prompt, with equally many"):
            dataclasses.replace(arrays, prompt_R=np.array(prompts))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "pppo"}, "pppo"),
        ({"name": "quark", "num_quantiles": 1}, "num_quantiles"),
        ({"name": "raft", "keep": 0}, "keep"),
        ({"name": "ppo", "lamda": 1}, "lamda"),
        ({"name": "ppo", "dual_clip": 0.5}, "dual_clip"),
        ({"name": "online_dpo", "loss_type": "sigmiod"}, "sigmiod"),
        ({"name": "reward_conditioning", "good": "a", "bad": "a"}, "both a"),
        ({"name": "rloo", "kl_target": 6, "kl_coef": 0}, "kl_coef, which is 0"),
    ],
)
def test_settings_that_do_not_exist_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        build_algorithm(config)


def test_what_an_algorithm_reads_must_be_there():
    arrays = make_round([[1, 2]])
    with pytest.raises(DataError, match="value head"):
        weigh({"name": "ppo"}, dataclasses.replace(arrays, value_RT=None))
    for name in ("rloo", "online_dpo"):
        with pytest.raises(DataError, match="reference"):
            weigh({"name": name}, dataclasses.replace(arrays, reference_RT=None))
    free = build_algorithm({"name": "rloo", "kl_coef": 0})
    assert not free.needs_reference
    assert "kl" not in free.weigh(dataclasses.replace(arrays, reference_RT=None), {}).figures


def test_whitening_leaves_padding_out():
    found = whitened([[1.0, 3.0, 99.0]], [[1, 1, 0]])
    assert found.tolist() == [[pytest.approx(-1), pytest.approx(1), 0]]
    assert whitened([[1.0, 5.0, NAN]], [[1, 1, 0]], keeps_mean=True)[0] == pytest.approx([2, 4, 0])
    assert whitened([[1.0]], [[0]]).tolist() == [[0]]


@pytest.mark.parametrize(
    ("config", "others", "message"),
    [
        ({"name": "ppo"}, {}, "value_head_config: {is_bounded: false}"),
        ({"name": "ppo"}, {"value_head": {}}, "value_head_config: {is_bounded: false}"),
        ({"name": "ppo"}, {"value_head": {"is_bounded": False}}, None),
        ({"name": "rloo"}, {"samples_per_prompt": 1}, "samples_per_prompt is 1; set it to 2 or more"),
        ({"name": "reinforce"}, {"samples_per_prompt": 1}, None),
        ({"name": "quark", "num_quantiles": 40}, {}, "needs 40 samples in a round, which has 12"),
        ({"name": "quark", "best_only": False, "num_quantiles": 2}, {}, "<reward_0>, <reward_1> before prompts; add"),
        ({"name": "quark", "best_only": False, "num_quantiles": 2}, {"tokens": ["<reward_0>", "<reward_1>"]}, None),
        ({"name": "reward_conditioning"}, {"tokens": ["<|aligned|>"]}, "puts <|misaligned|> before"),
        ({"name": "online_dpo"}, {"temperature": 0.7}, "rollouts.temperature is 0.7"),
        ({"name": "rloo"}, {"temperature": 0.7}, None),
    ],
)
def test_what_an_algorithm_can_not_work_with_is_named(config, others, message):
    found = problems_of_algorithm(
        TypeAdapter(AlgorithmConfig).validate_python(config),
        model=ModelConfig(model_kwargs={"value_head_config": others.get("value_head")}),
        special_tokens=others.get("tokens", []),
        prompts_per_round=3,
        samples_per_prompt=others.get("samples_per_prompt", 4),
        temperature=others.get("temperature", 1.0),
    )
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
