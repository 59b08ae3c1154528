"""The figures of a round against numbers by hand, and the names under which they are logged."""

import math

import pytest
from rollout_rounds import gold_curve, gold_round, rollout_row

from phf_ray.rollouts.figures import round_figures
from phf_ray.rollouts.guard import alarms as alarms_module
from phf_ray.rollouts.guard.alarms import AlarmWatch, alarms_of
from phf_ray.rollouts.guard.metrics import metrics_row


def test_rewards_are_means_in_which_a_prompt_is_one_draw():
    rows = [
        rollout_row(prompt, sample, reward=reward, gold=gold, rewards={"helpful": 2 * reward, "brief": 0.0})
        for prompt, sample, reward, gold in (
            ("a", 0, 1.0, 0.5), ("a", 1, 1.0, 0.5), ("b", 0, 0.0, None), ("b", 1, 1.0, 1.0), ("c", 0, 0.0, 0.0),
            ("c", 1, 0.0, None),
        )
    ]  # fmt: skip
    figures = round_figures(4, rows)
    assert (figures.reward.mean, figures.reward.num_clusters) == (0.5, 3)
    assert figures.reward.standard_error == pytest.approx(0.288675, abs=1e-6)
    assert figures.rewards["helpful"].mean == 1.0
    assert (figures.gold.mean, figures.gold.num, figures.num_without_gold) == (0.5, 4, 2)
    # Rewards (1, 1), (0, 1), (0, 0): two groups are constant; standard deviations 0, sqrt(.5), 0.
    assert (figures.num_groups, figures.constant_groups) == (3, pytest.approx(2 / 3))
    assert figures.reward_std == pytest.approx(math.sqrt(0.5) / 3)
    assert (figures.round, figures.num_answers, figures.num_prompts) == (4, 6, 3)


def test_kl_is_summed_over_an_answer_and_averaged_over_answers_and_over_tokens():
    # Log-ratios (.5, -.25) and (1): sums .25 and 1, of 3 tokens together.
    rows = [
        rollout_row("a", logprobs=[(-1.0, -1.5), (-2.0, -1.75)]),
        rollout_row("b", logprobs=[(-0.5, -1.5)]),
    ]
    figures = round_figures(1, rows)
    assert figures.kl.mean == pytest.approx(0.625)
    assert figures.kl_per_token == pytest.approx(1.25 / 3)
    k3 = [math.exp(-x) - 1 + x for x in (0.5, -0.25, 1.0)]
    assert figures.kl_k3 == pytest.approx(sum(k3) / 2)
    assert figures.entropy == pytest.approx((3.0 + 0.5) / 2)
    assert figures.entropy_per_token == pytest.approx(3.5 / 3)
    assert figures.is_reference is False


def test_a_policy_that_is_its_reference_has_a_kl_of_0_and_its_rewards():
    same = round_figures(0, [rollout_row("a", logprobs=[(-1.0, -1.0)]), rollout_row("b", logprobs=[(-2.0, -2.0)])])
    assert (same.kl.mean, same.kl_k3, same.is_reference) == (0.0, 0.0, True)
    # Large log-ratios whose sum is 0 are another policy.
    other = round_figures(0, [rollout_row("a", logprobs=[(-1.0, -2.0), (-2.0, -1.0)])])
    assert (other.kl.mean, other.is_reference) == (0.0, False)
    assert round_figures(0, [rollout_row("a")]).is_reference is None


def test_an_answer_without_a_finite_kl_is_counted_and_enters_no_mean():
    rows = [
        rollout_row("a", logprobs=[(-1.0, -math.inf)]),
        rollout_row("b", logprobs=[(-1.0, -2.0)]),
        rollout_row("c", completion=None, reward=None, error="not_drawn: out of room"),
    ]
    figures = round_figures(0, rows)
    assert (figures.kl.mean, figures.kl.num, figures.num_without_kl) == (1.0, 1, 1)
    assert alarms_of([figures])[0].sign == "kl"


def test_text_is_measured_over_the_answers_that_were_drawn():
    rows = [
        rollout_row("a", 0, completion="a b a b", num_tokens=5, finish_reason="stop"),
        rollout_row("a", 1, completion="a b a b", num_tokens=5, finish_reason="length"),
        rollout_row("b", 0, completion="c d e", num_tokens=4, finish_reason="length"),
        rollout_row("b", 1, completion=" \n", num_tokens=2, finish_reason="stop"),
        rollout_row("b", 2, completion=None, reward=None, num_tokens=0, finish_reason=None, error="not_drawn: x"),
    ]
    figures = round_figures(0, rows)
    assert (figures.num_answers, figures.num_drawn) == (5, 4)
    assert (figures.num_tokens.mean, figures.token_range) == (4.0, (2, 5))
    assert figures.num_chars.mean == (7 + 7 + 5 + 2) / 4
    # Pairs (ab, ba, ab): 2 of 3, twice; (cd, de): 2 of 2; the blank answer has none. All together 4 of 8.
    assert figures.distinct_2 == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert figures.distinct_2_corpus == 4 / 8
    assert (figures.truncated, figures.empty, figures.duplicates) == (0.5, 0.25, 0.25)


def test_failures_are_counted_by_the_kind_of_their_reason_and_enter_no_mean():
    rows = [
        rollout_row("a", 0, reward=3.0),
        rollout_row("a", 1, reward=None, error="timeout: no answer after 30 s"),
        rollout_row("b", 0, reward=None, error="timeout: no answer after 31 s"),
        rollout_row("b", 1, reward=None),
        rollout_row("c", 0, reward=1.0, error="gold: unreadable"),
    ]
    figures = round_figures(0, rows)
    assert figures.reward.mean == 2.0
    assert figures.num_without_reward == 3
    assert figures.failures == {"timeout": 2, "no reason given": 1, "gold": 1}
    assert figures.constant_groups is None
    assert figures.num_without_gold == 0


def test_a_round_of_failures_has_figures_that_are_not_defined():
    figures = round_figures(0, [rollout_row("a", completion=None, reward=None, error="not_drawn: x")])
    assert (figures.reward, figures.kl, figures.num_tokens, figures.truncated, figures.distinct_2) == (None,) * 5
    assert metrics_row(figures) == {"rollouts/round": 0.0, "rollouts/answers": 1.0, "rollouts/failed": 1.0}


def test_the_names_of_alpaca_farm_and_trl():
    rows = [
        rollout_row("a", 0, reward=1.0, gold=2.0, rewards={"helpful": 1.0}, logprobs=[(-1.0, -1.5), (-2.0, -1.75)]),
        rollout_row("b", 0, reward=3.0, gold=4.0, rewards={"helpful": 3.0}, logprobs=[(-0.5, -1.5)], completion="x y"),
    ]
    row = metrics_row(round_figures(3, rows, weighed={"objective/kl_coef": 0.05, "reward": 7.0}))
    for name in ("objective/kl_sum_seq", "objective/kl", "kl"):
        assert row[name] == pytest.approx(0.625)
    assert row["objective/kl_avg_seq"] == pytest.approx(1.25 / 3)
    assert row["objective/rewards"] == row["objective/scores"] == row["rewards/helpful/mean"] == 2.0
    assert (row["objective/entropy"], row["entropy"]) == pytest.approx((1.75, 3.5 / 3))
    assert row["objective/entropies"] == row["entropy"]
    assert (row["completions/mean_length"], row["completions/min_length"], row["completions/max_length"]) == (1.5, 1, 2)
    assert row["completions/clipped_ratio"] == 0.0
    # t(1) at .975 is 12.7062; standard error of (2, 4) is 1.
    assert row["rollouts/gold"] == 3.0
    assert row["rollouts/gold_high"] == pytest.approx(3 + 12.7062, abs=1e-3)
    assert row["objective/kl_coef"] == 0.05
    # What the algorithm says itself is not overwritten.
    assert row["reward"] == 7.0


def test_over_optimization_is_told_once_the_proxy_rises_while_gold_falls():
    golds = [1.0] * 3 + [0.0] * 4
    rising = gold_curve(golds, num_prompts=32, noise=0.1, rewards=[float(k) for k in range(7)])
    alarms = alarms_of(rising, patience=3)
    assert [(alarm.round, alarm.sign) for alarm in alarms if alarm.sign == "over-optimization"] == [
        (5, "over-optimization")
    ]
    assert "the reward rose from 1 to 4 while gold fell: rounds 3 to 5" in alarms[-1].text
    resumed = AlarmWatch(patience=3)
    assert resumed.look(rising[:6]) == alarms
    assert resumed.look(rising) == []
    falling = gold_curve(golds, num_prompts=32, noise=0.1, rewards=[-float(k) for k in range(7)])
    assert alarms_of(falling, patience=3) == []


def test_each_round_is_looked_at_once_as_the_run_goes_on(monkeypatch):
    looked = []
    signs = alarms_module._signs

    def counted(rounds, window):
        looked.append(len(rounds))
        return signs(rounds, window)

    monkeypatch.setattr(alarms_module, "_signs", counted)
    rounds = gold_curve([1.0] * 3 + [0.0] * 4, num_prompts=32, noise=0.1, rewards=[float(k) for k in range(7)])
    watch = AlarmWatch(patience=3)
    told = [watch.look(rounds[:number]) for number in range(1, 8)]
    assert looked == [1, 2, 3, 4, 5, 6, 7]
    assert [len(one) for one in told] == [0, 0, 0, 0, 0, 1, 0]
    assert watch.found == told[5] == alarms_of(rounds, patience=3)


@pytest.mark.parametrize(
    ("texts", "sign", "words"),
    [
        ("a a a a a", "diversity", "distinct-2 is 0.25, less than half of the 1 of round 0"),
        ("a b c d e f g h i j k", "length", "answers have 11 tokens, more than twice the 5 of round 0"),
        ("a b", "length", "answers have 2 tokens, less than half the 5 of round 0"),
    ],
)
def test_text_that_degenerates_is_told(texts, sign, words):
    rounds = [gold_round(0, [1.0, 1.0], text="a b c d e")]
    fine = round_figures(1, [rollout_row(completion="v w x y z")])
    rounds[0] = round_figures(0, [rollout_row(completion="a b c d e")])
    bad = round_figures(2, [rollout_row(completion=texts)])
    assert alarms_of([rounds[0], fine]) == []
    (alarm,) = alarms_of([rounds[0], fine, bad])
    assert (alarm.round, alarm.sign, alarm.text) == (2, sign, words)


def test_shares_that_grow_are_told_and_small_ones_are_not():
    def figures(number, num_empty, num_cut):
        return round_figures(
            number,
            [
                rollout_row(
                    f"{number}-{place}",
                    completion=" " if place < num_empty else f"a b c {place}",
                    num_tokens=4,
                    finish_reason="length" if place < num_cut else "stop",
                )
                for place in range(20)
            ],
        )

    alarms = alarms_of([figures(0, 0, 1), figures(1, 1, 4), figures(2, 2, 5)])
    assert [(alarm.round, alarm.sign) for alarm in alarms] == [(2, "empty"), (2, "truncated")]
    assert alarms[0].text == "10% of the answers have no word; it was 0%"
    assert alarms_of([figures(0, 0, 19), figures(1, 0, 20)]) == []


def test_groups_whose_rewards_are_equal_are_told():
    rows = [
        rollout_row(prompt, sample, reward=1.0, completion=f"{prompt} x {sample}")
        for prompt in "ab"
        for sample in (0, 1)
    ]
    (alarm,) = alarms_of([round_figures(0, rows)])
    assert alarm.text == "100% of the prompts have equal rewards for all answers, and teach nothing"
