"""When a run stops: on curves made for it."""

import pytest
from rollout_rounds import gold_curve, gold_round, rollout_row

from phf_ray.errors import ConfigError
from phf_ray.rollouts.figures import round_figures
from phf_ray.rollouts.guard.stop import StopRules, decide, first_stop, gold_fall, gold_peak

RISE_AND_FALL = [0.1 * k for k in range(8)] + [0.7 - 0.1 * k for k in range(1, 9)]
"""Highest at round 7."""


def test_a_kl_above_its_bound_stops_and_the_round_is_not_learned():
    rounds = [gold_round(k, [0.0, 0.0], kl=kl) for k, kl in enumerate((0.0, 4.0, 4.5))]
    assert first_stop(rounds, StopRules(kl=4.5)) is None
    number, decision = first_stop(rounds, StopRules(kl=4.2))
    assert (number, decision.rule, decision.stops, decision.learns) == (3, "kl", True, False)
    assert decision.reasons == ("round 2 has a KL of 4.5 nats, above 4.2",)


def test_the_last_round_is_learned_before_the_run_stops():
    rounds = [gold_round(k, [0.0, 0.0]) for k in range(3)]
    assert [decide(rounds[:k], StopRules(rounds=3)).rule for k in (1, 2, 3)] == [None, None, "rounds"]
    assert decide(rounds, StopRules(rounds=3)).learns
    assert decide(rounds, StopRules(rounds=3, kl=1.0)).reasons == (
        "3 of 3 rounds are done",
        "round 2 has a KL of 0 nats, not above 1",
    )


def test_without_a_reference_a_kl_is_not_decided_and_says_so():
    rounds = [round_figures(0, [rollout_row()])]
    decision = decide(rounds, StopRules(kl=1.0))
    assert not decision.stops
    assert decision.reasons == ("round 0 has no KL, because it has no log-probabilities of a reference",)


def test_gold_that_falls_stops_the_run_after_its_peak():
    rounds = gold_curve(RISE_AND_FALL, num_prompts=64, noise=0.2)
    number, decision = first_stop(rounds, StopRules(gold_patience=3))
    assert decision.rule == "gold"
    assert not decision.learns
    assert gold_peak(rounds).round == 7
    # The first three rounds after the peak have a mean of .5, the best three before them, 5 to 7, one of .6; the noise
    # of their difference is .2 sqrt(2 / 192) = .02.
    assert number == 11
    assert "below it by more than the noise" in decision.reasons[0]
    fall = gold_fall(rounds[:number], 3)
    assert (fall.peak, fall.last) == ((5, 7), (8, 10))
    assert fall.peak_mean == pytest.approx(sum(rounds[k].gold.mean for k in (5, 6, 7)) / 3)


def test_noise_alone_rarely_stops_a_run():
    stopped = [
        first_stop(gold_curve([0.0] * 24, num_prompts=8, noise=1.0, seed=seed), StopRules(gold_patience=3)) is not None
        for seed in range(40)
    ]
    # At 5%, more than 6 of 40 have a probability under 1%. A rule that only counts rounds since the peak stops all.
    assert sum(stopped) <= 6


def test_a_fall_within_the_noise_says_so():
    rounds = gold_curve([0.3, 0.3, 0.2, 0.2], num_prompts=4, noise=1.0, seed=3)
    fall = gold_fall(rounds, 2)
    assert fall.is_beyond_noise is False
    rising = gold_curve([0.0, 0.0, 9.0, 9.0], num_prompts=4, noise=0.1)
    assert str(gold_fall(rising, 2)).endswith("no lower")


def test_the_level_grows_stricter_with_the_number_of_rounds_that_could_be_the_best():
    # By hand: two windows of one round, 3 prompts each, values mean +- 1: standard error of each mean
    # sqrt(3/2 * (1 + 0 + 1)) / 3 = .57735, of the difference of 6 clusters sqrt(6/5 * 4/9) = .73030.
    # t(5) is 3.8100 at 1 - .025/4 (one earlier round: 2.7824) and 4.9825 at 1 - .025/12 (two: 3.6387).
    def rounds(*means):
        return [gold_round(k, [mean - 1, mean, mean + 1]) for k, mean in enumerate(means)]

    assert gold_fall(rounds(2.77, 0), 1).is_beyond_noise is False
    assert gold_fall(rounds(2.79, 0), 1).is_beyond_noise is True
    assert gold_fall(rounds(0, 2.79, 0), 1).is_beyond_noise is False
    assert gold_fall(rounds(0, 3.65, 0), 1).is_beyond_noise is True


def test_rounds_without_gold_are_passed_over_and_too_few_decide_nothing():
    rounds = gold_curve([5.0, 5.0, 0.0, 0.0], num_prompts=8, noise=0.1)
    between = round_figures(9, [rollout_row()])
    with_gaps = [rounds[0], between, rounds[1], rounds[2], between, rounds[3]]
    assert gold_fall(with_gaps, 2) == gold_fall(rounds, 2)
    decision = decide([rounds[0], between, rounds[1]], StopRules(gold_patience=2))
    assert decision.reasons == ("2 rounds have gold rewards; gold is compared from 4 rounds on",)


def test_one_prompt_says_nothing_of_the_noise():
    rounds = [gold_round(k, [gold]) for k, gold in enumerate((1.0, 0.0))]
    assert gold_fall(rounds, 1).is_beyond_noise is None
    assert not decide(rounds, StopRules(gold_patience=1)).stops


def test_a_decision_depends_on_the_rounds_so_far_alone():
    rules = StopRules(kl=50.0, gold_patience=3, rounds=16)
    rounds = gold_curve(RISE_AND_FALL, num_prompts=64, noise=0.2)
    number, decision = first_stop(rounds, rules)
    again = gold_curve(RISE_AND_FALL, num_prompts=64, noise=0.2)[:number]
    assert first_stop(again, rules) == (number, decision)
    assert all(not decide(rounds[:k], rules).stops for k in range(number))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"kl": 0.0}, "give more than 0"),
        ({"kl": float("nan")}, "give more than 0"),
        ({"gold_patience": 0}, "gold_patience 0 is no number of rounds; give 1 or more"),
        ({"rounds": 0}, "rounds 0 is no number"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, message):
    with pytest.raises(ConfigError, match=message):
        StopRules(**rules)
