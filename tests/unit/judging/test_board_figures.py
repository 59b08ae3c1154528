"""The figures of a leaderboard, against numbers by hand and against AlpacaEval's."""

import json
import math
import random
from itertools import combinations

import numpy as np
import pytest
from judged_rows import of_counts, record, rows_of
from places import ROOT

from phf_ray.errors import DataError
from phf_ray.judging.board.figures import build_board
from phf_ray.judging.board.stored import BoardSettings

QUICK = BoardSettings(num_resamples=100)


def board_of(records, **settings):
    return build_board(rows_of(records), QUICK.model_copy(update=settings))


def only(rows):
    (row,) = rows
    return row


def test_the_figures_are_those_of_alpaca_eval():
    golden = json.loads((ROOT / "tests" / "golden" / "alpaca_eval_leaderboard.json").read_text())["models"]
    records = [
        one
        for model, figures in golden.items()
        for one in of_counts(model, figures["n_wins"], figures["n_wins_base"], figures["n_draws"])
    ]
    found = {row["name"]: row for row in board_of(records, num_resamples=2)["models"]}
    assert len(found) == len(golden) == 8
    for name, figures in golden.items():
        assert {key: found[name][key] for key in figures} == pytest.approx(figures, abs=1e-6)


def test_noise_is_no_verdict_and_is_counted():
    judged = [*of_counts("a", 6, 4, 0, source="judge", order="12"), *of_counts("b", 5, 5, 0)]
    noise = [record(number, 2.0, generator_2="a", source="noise") for number in range(100, 110)]
    board, clean = board_of(judged + noise), board_of(judged)
    told = "10 of 30 rows (33%) are label noise, which no judge gave, and count nowhere (a: 10 of 20)"
    assert told in board["warnings"]
    assert board["n_rows_of_noise"] == 10
    board["warnings"].remove(told)
    assert board | {"n_rows_of_noise": 0} == clean
    with pytest.raises(DataError, match=r"none of the 10 rows has a preference \(noise x 10\)"):
        board_of(noise)


def test_one_model():
    board = board_of(of_counts("model", 135, 115, 1, price=0.5))
    row = only(board["models"])
    assert row["win_rate"] == pytest.approx(53.98406, abs=5e-6)
    assert row["standard_error"] == pytest.approx(3.14590, abs=5e-6)
    assert row["clustered_standard_error"] == pytest.approx(row["standard_error"])
    assert row["interval"] == pytest.approx([53.98 - 6.17, 53.98 + 6.12], abs=0.1)
    assert row["discrete_win_rate"] == row["win_rate"]
    assert row["price"] == pytest.approx(251 * 0.5)
    assert board["differences"] == []
    assert board["references"][0]["name"] == "reference"


def test_degrees_count_whole_in_the_discrete_rate_alone():
    row = only(board_of([record(0, 1.75), record(1, 1.25), record(2, 1.75), record(3, 1.5)])["models"])
    assert row["win_rate"] == pytest.approx(100 * (0.75 + 0.25 + 0.75 + 0.5) / 4)
    assert row["discrete_win_rate"] == pytest.approx(62.5)


def test_length_is_of_the_models_answers_cut_to_whole_characters():
    board = board_of([record(0, 2.0, output_2="ab", output_1="abcd"), record(1, 1.0, output_2="abc", output_1="")])
    assert only(board["models"])["avg_length"] == 2
    assert only(board["references"])["avg_length"] == 2


def test_copies_change_no_figure_and_narrow_no_interval():
    once, twice = board_of(of_counts("model", 30, 20, 3)), board_of(of_counts("model", 30, 20, 3) * 2)
    first, second = only(once["models"]), only(twice["models"])
    assert (second["n_total"], second["n_rows"]) == (53, 106)
    assert {**first, "n_rows": 106} == second
    assert once["ratings"] == twice["ratings"]


def test_rows_of_one_prompt_widen_the_interval():
    apart = of_counts("model", 100, 60, 0)
    alike = [{**one, "instruction": f"prompt {number // 8}"} for number, one in enumerate(apart)]
    wide, narrow = (only(board_of(records)["models"]) for records in (alike, apart))
    assert wide["standard_error"] == narrow["standard_error"]
    assert wide["clustered_standard_error"] > 2.5 * narrow["clustered_standard_error"]
    assert wide["interval"][0] < narrow["interval"][0]
    assert "of 20 prompts, a 95% interval covers less" in wide["interval_note"]


def test_failures_count_nowhere_and_are_told_by_reason():
    failed = [
        record(number, None, error=f"timeout: {number} s" if number % 2 else "not_parsed")
        for number in range(1000, 1005)
    ]
    row = only(board_of(of_counts("model", 30, 20, 0) + failed)["models"])
    assert (row["win_rate"], row["n_total"], row["n_failed"]) == (60.0, 50, 5)
    assert row["failures"] == {"not_parsed": 3, "timeout": 2}


def test_a_model_without_a_judged_row_has_no_figure_and_no_zero():
    board = board_of([*of_counts("model", 3, 2, 0), record(0, None, generator_2="silent", error="timeout")])
    row = board["models"][-1]
    assert (row["name"], row["win_rate"], row["standard_error"], row["n_failed"]) == ("silent", None, None, 1)
    assert row["length_controlled_reason"]
    pair = only(board["differences"])
    assert (pair["difference"], pair["p_value_holm"]) == (None, None)
    assert "no prompt on which both were judged" in pair["reason"]


def test_no_judged_row_at_all_is_an_error_with_the_reasons():
    with pytest.raises(DataError, match=r"none of the 3 rows has a preference \(timeout x 2, no reason given x 1\)"):
        board_of([record(0, None, error="timeout"), record(1, None, error="timeout"), record(2, None)])


def test_draws_alone():
    board = board_of([record(number, 1.5, output_2="x" * number) for number in range(30)])
    row = only(board["models"])
    assert (row["win_rate"], row["standard_error"], row["n_draws"]) == (50.0, 0.0, 30)
    assert row["interval"] is None
    assert "all rows say the same" in row["interval_note"]
    assert row["length_controlled_win_rate"] == pytest.approx(50)
    assert [player["bradley_terry"] for player in board["ratings"]["players"]] == pytest.approx([1000, 1000])
    assert "annotator judge says the same of all 30 pairs: a draw" in board["warnings"][0]


def test_length_control_is_none_with_a_reason_where_length_decides_alone():
    records = [
        record(number, 2.0 if number % 2 else 1.0, output_1="x" * 10, output_2="x" * (20 if number % 2 else 5))
        for number in range(20)
    ]
    row = only(board_of(records)["models"])
    assert row["length_controlled_win_rate"] is None
    assert "length separates wins from losses" in row["length_controlled_reason"]


def test_length_control_takes_length_out():
    # 15 rows are longer and win 80%, 5 are shorter and win 40%: the raw rate is 70%.
    pattern = [(5, number < 12) for number in range(15)] + [(-5, number < 2) for number in range(5)]
    records = [
        record(number, 2.0 if wins else 1.0, output_1="x" * 10, output_2="y" * (10 + longer))
        for number, (longer, wins) in enumerate(pattern)
    ]
    row = only(board_of(records)["models"])
    assert row["win_rate"] == pytest.approx(70)
    assert row["length_controlled_win_rate"] == pytest.approx(62.0204, abs=1e-3)


def test_two_players_at_three_to_one_are_190_points_apart():
    board = board_of(of_counts("model", 75, 25, 0))
    ratings = {row["name"]: row["bradley_terry"] for row in board["ratings"]["players"]}
    assert ratings["model"] - ratings["reference"] == pytest.approx(190.85, abs=0.01)
    assert board["ratings"]["bradley_terry_reason"] is None
    elo = {row["name"]: row["elo"] for row in board["ratings"]["players"]}
    assert elo["model"] > elo["reference"]


def test_intervals_of_ratings_resample_prompts_and_not_battles():
    """8 copies of every prompt's verdict, by 8 annotators, say no more than one."""
    once = of_counts("model", 60, 40, 0)
    copies = [{**one, "annotator": f"judge {number}"} for one in once for number in range(8)]

    def width(records):
        player = board_of(records)["ratings"]["players"][0]
        return np.ptp(player["bradley_terry_interval"]), np.ptp(player["elo_interval"])

    (narrow, _), (wide, elo) = width(once), width(copies)
    assert wide == pytest.approx(narrow, rel=1e-6)
    assert elo > 0


def test_models_that_never_met_have_no_ratings():
    records = [*of_counts("model", 6, 4, 0), *of_counts("apart", 5, 5, 0, generator_1="other")]
    ratings = board_of(records)["ratings"]
    assert all(row["bradley_terry"] is None and row["elo"] is None for row in ratings["players"])
    assert "4 players fall into 2 groups" in ratings["bradley_terry_reason"]
    assert "1 model" in ratings["bradley_terry_reason"], "the numbers of the players are explained"
    assert "no battles link" in ratings["elo_reason"]


def test_a_model_that_never_lost_has_elo_alone():
    ratings = board_of(of_counts("model", 10, 0, 0))["ratings"]
    assert [row["bradley_terry"] for row in ratings["players"]] == [None, None]
    assert ratings["bradley_terry_reason"]
    assert ratings["players"][0]["name"] == "model"
    assert ratings["players"][0]["elo"] > 1000


def test_rare_losses_leave_ratings_without_intervals():
    ratings = board_of(of_counts("model", 40, 1, 0))["ratings"]
    assert ratings["players"][0]["bradley_terry"] > 1000
    assert ratings["players"][0]["bradley_terry_interval"] is None
    assert "resamples of the prompts have no ratings" in ratings["bradley_terry_interval_reason"]


def test_the_matrix_has_each_pair_once():
    round_robin = [
        record(number, preference, generator_1=first, generator_2=second, output_1=first, output_2=second)
        for first, second in combinations("cab", 2)
        for number, preference in enumerate([2.0] * 3 + [1.0])
    ]
    found = {(row["first"], row["second"]): row["win_rate"] for row in board_of(round_robin)["matrix"]}
    # c-a: a wins 75%, a-b: b wins 75%, c-b: b wins 75%.
    assert found == {("a", "b"): 25.0, ("a", "c"): 75.0, ("b", "c"): 75.0}


def test_differences_are_paired_by_prompt_and_corrected_for_all_pairs():
    rng = np.random.default_rng(0)
    skill = {"a": 0.5, "b": 0.5, "c": 0.85}
    records = [
        record(prompt, 1.0 + float(rng.random() < chance), generator_2=name, output_2=f"{name}{prompt}")
        for prompt in range(200)
        for name, chance in skill.items()
    ]
    rows = {(row["first"], row["second"]): row for row in board_of(records)["differences"]}
    assert len(rows) == 3
    assert (rows["a", "c"]["significant"], rows["b", "c"]["significant"]) == (True, True)
    assert rows["a", "b"]["significant"] is False
    assert rows["a", "c"]["p_value_holm"] >= 2 * rows["a", "c"]["p_value"]
    assert rows["a", "b"]["n_prompts"] == 200
    assert rows["a", "c"]["difference"] < 0


def test_a_difference_counts_only_prompts_of_both_against_the_same_opponent():
    records = [
        *of_counts("a", 5, 3, 0),
        *of_counts("b", 4, 1, 0),
        *(record(number, 2.0, generator_1="another", generator_2="b") for number in range(4, 8)),
    ]
    row = only(board_of(records)["differences"])
    assert row["n_prompts"] == 5
    assert "against several models" in " ".join(board_of(records)["warnings"])


def test_baselines_that_know_nothing():
    records = [
        record(number, 2.0 if number % 4 else 1.0, output_1="x" * 10, output_2="y" * (20 if number % 4 else 30))
        for number in range(400)
    ]
    found = {row["name"]: row for row in board_of(records)["baselines"]}
    assert found["longer"]["agreement"] == pytest.approx(0.75)
    assert found["constant"]["agreement"] == pytest.approx(0.25)
    assert found["random"]["agreement"] == pytest.approx(0.5, abs=0.08)
    assert found["longer"]["n_decided"] == 400
    assert found["longer"]["interval"][0] < 0.75 < found["longer"]["interval"][1]


def test_equal_lengths_are_half_right_and_draws_of_the_judge_are_left_out():
    records = [record(0, 2.0, output_1="ab", output_2="cd"), record(1, 1.5)]
    longer = board_of(records)["baselines"][0]
    assert (longer["agreement"], longer["n_decided"]) == (0.5, 1)


def both_orders(number, first, second):
    return [record(number, first, order="12"), record(number, second, order="21")]


ISSUE_TABLE = [(1.0, 1.0)] * 55 + [(2.0, 2.0)] * 25 + [(1.0, 2.0)] * 15 + [(2.0, 1.0)] * 5
"""100 pairs: 55 consistently answer 1, 25 answer 2, 15 always the first, 5 always the second."""


@pytest.mark.parametrize("form", ["rows by order", "mirrored rows", "one row for both"])
def test_consistency_under_swapped_order(form):
    records = []
    for number, (first, second) in enumerate(ISSUE_TABLE):
        one = record(number, first)
        if form == "rows by order":
            records += both_orders(number, first, second)
        elif form == "mirrored rows":
            turned = {"output_1": one["output_2"], "output_2": one["output_1"]}
            records += [one, {**one, **turned, "generator_1": "model", "generator_2": "reference",
                              "preference": 3 - second}]  # fmt: skip
        else:
            mean = (first + second) / 2
            records.append(
                {**one, "preference": mean, "order": "both", "preference_12": first, "preference_21": second}
            )
    row = only(board_of(records)["consistency"])
    assert (row["annotator"], row["n_pairs"]) == ("judge", 100)
    assert row["consistency"] == pytest.approx(0.8)
    assert row["position_bias"] == pytest.approx(0.1)
    assert row["p_value"] == pytest.approx(0.04139, abs=5e-6)


def test_rows_that_no_judge_saw_are_in_no_order():
    records = [record(0, 1.0, order="21"), record(0, 2.0), record(1, 1.0, order="12"), record(1, 1.0, order="21")]
    assert only(board_of(records)["consistency"])["n_pairs"] == 1
    assert board_of(of_counts("model", 3, 3, 0, order="12"))["consistency"] == []


def test_agreement_with_humans_by_hand():
    # Kappa of [[20, 5], [10, 15]] is .4; 35 of 50 agree.
    table = [(1.0, 1.0)] * 20 + [(1.0, 2.0)] * 5 + [(2.0, 1.0)] * 10 + [(2.0, 2.0)] * 15
    records = [record(number, judge, human_preference=human) for number, (judge, human) in enumerate(table)]
    found = {row["name"]: row for row in board_of(records + of_counts("unlabelled", 3, 2, 0))["human"]}
    assert found["judge"]["accuracy"] == pytest.approx(0.7)
    assert found["judge"]["kappa"] == pytest.approx(0.4)
    assert found["judge"]["n_decided"] == 50
    assert found["judge"]["accuracy_interval"][0] < 0.7 < found["judge"]["accuracy_interval"][1]
    assert found["judge"]["kappa_interval"][0] < 0.4 < found["judge"]["kappa_interval"][1]
    assert found["constant"]["accuracy"] == pytest.approx(0.6)
    assert {name for name, row in found.items() if row["is_baseline"]} == {"longer", "constant", "random"}


def test_a_win_rate_is_corrected_for_the_errors_that_human_labels_show():
    # Right in 15 of 20 where humans prefer answer 2, in 20 of 30 where they prefer answer 1; humans prefer 40%.
    table = [(1.0, 1.0)] * 20 + [(1.0, 2.0)] * 5 + [(2.0, 1.0)] * 10 + [(2.0, 2.0)] * 15
    board = board_of(record(number, judge, human_preference=human) for number, (judge, human) in enumerate(table))
    assert board["judge_errors"] == pytest.approx({"sensitivity": 0.75, "specificity": 2 / 3})
    assert only(board["models"])["win_rate"] == 50
    assert only(board["models"])["corrected_win_rate"] == pytest.approx(40)
    assert only(board_of(of_counts("model", 3, 2, 0))["models"])["corrected_win_rate"] is None


def test_each_annotator_of_a_pool_is_held_against_the_humans():
    records = [record(number, 2.0, human_preference=2.0, annotator="good") for number in range(10)]
    records += [record(number, 1.0, human_preference=2.0, annotator="bad") for number in range(10, 20)]
    found = {row["name"]: row["accuracy"] for row in board_of(records)["human"]}
    assert (found["good"], found["bad"], found["all annotators"]) == (1.0, 0.0, 0.5)


def test_a_judge_that_is_no_better_than_length_is_named():
    records = [
        record(number, 1.0 + number % 2, human_preference=2.0, output_1="a", output_2="longer") for number in range(10)
    ]
    assert any(
        "no more often than a judge that takes the longer answer" in one for one in board_of(records)["warnings"]
    )


def test_a_judge_that_always_prefers_a_position_is_named():
    # As shown, the second answer always wins; half of the pairs were shown swapped.
    records = [record(number, 2.0 if number % 2 else 1.0, order="12" if number % 2 else "21") for number in range(40)]
    (warning,) = board_of(records)["warnings"]
    assert "says 'the second is better' of 40 of 40 pairs (100.0%)" in warning
    assert board_of(of_counts("model", 20, 20, 0, order="12"))["warnings"] == []


def test_many_failures_are_a_warning_with_the_share():
    records = of_counts("model", 10, 5, 0) + [record(number, None, error="timeout") for number in range(100, 105)]
    assert "annotator judge gave no preference for 5 of 20 rows (25%)" in board_of(records)["warnings"]


def test_the_win_rate_by_length_covers_every_judged_pair_once():
    rng = random.Random(0)
    records = [
        record(number, rng.choice([1.0, 2.0]), output_2="y" * rng.randint(1, 90), output_1="x" * 40)
        for number in range(100)
    ]
    rows = board_of([*records, record(1000, None)])["by_length_difference"]
    assert sum(row["n_total"] for row in rows) == 100
    assert [row["longer_by"] for row in rows] == sorted(row["longer_by"] for row in rows)
    assert len(rows) == 5


def test_the_order_of_rows_means_nothing():
    records = [*of_counts("a", 20, 11, 2, price=0.1), *of_counts("b", 9, 14, 1), record(700, None, generator_2="b")]
    for number in range(40):
        records += both_orders(2000 + number, 1 + number / 97, 1 + number / 61)
    shuffled = records.copy()
    random.Random(1).shuffle(shuffled)
    assert board_of(records) == board_of(shuffled)


def test_no_figure_is_nan():
    json.dumps(board_of([record(0, 2.0)]), allow_nan=False)
    row = only(board_of([record(0, 2.0)])["models"])
    assert (row["win_rate"], row["standard_error"], row["interval"]) == (100.0, None, None)
    assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())


def test_published_rows_are_beside_and_marked():
    board = board_of(of_counts("model", 3, 2, 0), show_published=True)
    assert [row["name"] for row in board["models"]] == ["model"]
    rates = {(row["name"], row["version"]): row["win_rate"] for row in board["published"]}
    assert rates["RLHF PPO", "v0.1"] == pytest.approx(46.63761, abs=1e-5)
    assert rates["alpaca-farm-ppo-human", "v0.2"] == 41.24
    assert len(rates) == 12
    assert any("annotators that were retired" in warning for warning in board["warnings"])
    for row in board["published"]:
        if row["n_wins"] is not None:
            counts = (row["n_wins"] + row["n_draws"] / 2) / row["n_total"]
            assert row["win_rate"] == pytest.approx(100 * counts, abs=5e-3)
            assert row["n_total"] == row["n_wins"] + row["n_wins_base"] + row["n_draws"]
