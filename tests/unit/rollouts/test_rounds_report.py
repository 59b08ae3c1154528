"""The report of a run of rounds: its figures are those of the stored rows, and what it refuses."""

import json
import math

import pytest
from rollout_rounds import HOSTILE, rollout_row, write_overoptimized_run, write_round

from jobs import rollouts_report, train_rl
from phf_ray.errors import ConfigError, DataError
from phf_ray.rollouts.figures import round_figures
from phf_ray.rollouts.guard.read import read_figures, read_round
from phf_ray.rollouts.guard.samples import choose_samples
from phf_ray.rollouts.guard.stop import StopRules, first_stop
from phf_ray.rollouts.rounds import RoundFiles, RowKey, StoredLogprobs

ROUNDS = 9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "over"
    run.mkdir()
    write_overoptimized_run(run, num_rounds=ROUNDS, num_prompts=12, stop={"gold_patience": 2, "kl": 9.0})
    assert rollouts_report.main(["--run", str(run), "--alpaca-farm"]) == 0
    return run


def test_the_figures_of_the_report_are_those_of_the_rows(run):
    report = json.loads((run / "report.json").read_text())
    assert len(report["rounds"]) == ROUNDS
    for number, figures in enumerate(report["rounds"]):
        rows = read_round(run, number)
        golds = [row.gold for row in rows]
        assert figures["gold"]["mean"] == pytest.approx(math.fsum(golds) / len(golds))
        rewards = [row.reward for row in rows if row.reward is not None]
        assert figures["reward"]["mean"] == pytest.approx(math.fsum(rewards) / len(rewards))
        kls = [sum(row.policy) - sum(row.reference) for row in rows]
        assert figures["kl"]["mean"] == pytest.approx(math.fsum(kls) / len(kls), abs=1e-6)
        assert figures["truncated"] == sum(row.finish_reason == "length" for row in rows) / len(rows)
        assert figures["failures"] == ({"timeout": 1} if number == 2 else {})
    means = [figures["gold"]["mean"] for figures in report["rounds"]]
    assert report["gold_peak"]["round"] == means.index(max(means))
    assert report["gold_peak"]["weights"] == f"step-{2 * means.index(max(means)):08d}"


def test_the_page_has_the_reports_figures_and_decision(run):
    page = (run / "report.html").read_text()
    report = json.loads((run / "report.json").read_text())
    for figures in report["rounds"]:
        gold = figures["gold"]
        assert f"<td>{gold['mean']:.3g} +- {gold['interval']['high'] - gold['mean']:.2g}</td>" in page
    assert report["stop"]["rule"] == "kl"
    assert f"Stopped before the updates of round {report['stop']['round']} (rule: kl). " in page
    assert report["stop"]["reasons"][0].removeprefix("round") in page


def test_a_resumed_run_decides_as_one_that_was_not(run):
    rules = StopRules(gold_patience=2, kl=9.0)
    number, decision = first_stop(read_figures(run), rules)
    assert first_stop(read_figures(run, until=number), rules) == (number, decision)
    assert first_stop(read_figures(run, until=number - 1), rules) is None


def test_hostile_text_is_escaped(run):
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page


def test_what_is_stored_is_read_as_it_was_written(tmp_path):
    rows = [
        rollout_row("a", 0, reward=1.5, gold=0.5, rewards={"x": 1.0}, logprobs=[(-0.5, -1.0)], completion=HOSTILE),
        rollout_row("a", 1, completion=None, reward=None, num_tokens=0, finish_reason=None, error="not_drawn: no room",
                    rewards={"x": None}),
    ]  # fmt: skip
    write_round(tmp_path, 0, rows, figures={"reward": 1.5})
    found = read_round(tmp_path, 0)
    assert [(row.completion, row.reward, row.rewards, row.error) for row in found] == [
        (row.completion, row.reward, dict(row.rewards), row.error) for row in rows
    ]
    assert found[0].policy == [-0.5]
    (figures,) = read_figures(tmp_path)
    assert figures == round_figures(0, found, weighed={"reward": 1.5, "kl_coef": 0.05})


def test_a_reward_stored_as_nan_is_one_that_failed(tmp_path):
    write_round(tmp_path, 0, [rollout_row("a", reward=math.nan, gold=math.nan), rollout_row("b", reward=2.0, gold=1.0)])
    (figures,) = read_figures(tmp_path)
    assert (figures.reward.mean, figures.gold.mean, figures.num_without_reward, figures.num_without_gold) == (
        2,
        1,
        1,
        1,
    )


def test_a_round_under_way_does_not_count_and_a_gap_is_an_error(tmp_path):
    for number in range(3):
        write_round(tmp_path, number, [rollout_row("a"), rollout_row("b")])
    (tmp_path / "rollouts/round-00002/weighed.json").unlink()
    assert [figures.round for figures in read_figures(tmp_path)] == [0, 1]
    (tmp_path / "rollouts/round-00000/weighed.json").unlink()
    with pytest.raises(DataError, match=r"round 0 is not there or has no weighed.json, but round 1 has one"):
        read_figures(tmp_path)


def test_answers_of_several_rounds_to_the_same_prompts_stand_side_by_side(run):
    rounds = read_figures(run)
    choice = choose_samples(rounds, lambda number: read_round(run, number))
    assert choice.are_same_prompts
    assert len(choice.groups) == 6
    for group in choice.groups:
        assert len({answer.row.prompt_id for answer in group}) == 1
        numbers = [answer.round for answer in group]
        assert numbers == sorted(numbers)
        assert numbers[-1] - numbers[0] == 6
    again = choose_samples(rounds, lambda number: read_round(run, number))
    assert again == choice
    assert choose_samples(rounds, lambda number: read_round(run, number), seed=1) != choice


def test_without_prompts_that_come_back_samples_are_drawn_from_the_first_the_last_and_the_peak(tmp_path):
    write_overoptimized_run(tmp_path, num_rounds=8, num_prompts=8, repeats=False)
    rounds = read_figures(tmp_path)
    choice = choose_samples(rounds, lambda number: read_round(tmp_path, number))
    assert not choice.are_same_prompts
    numbers = [group[0].round for group in choice.groups]
    golds = [figures.gold.mean for figures in rounds]
    assert {0, 7, golds.index(max(golds))} <= {*numbers}
    assert len(numbers) == 4
    assert [len(group) for group in choice.groups] == [6] * 4


def test_rounds_as_alpaca_farm_writes_them(run):
    found = json.loads((run / "rollouts/step_1.json").read_text())
    rows = read_round(run, 0)
    assert found == [{"queries": row.prompt, "responses": row.completion, "rewards": row.reward} for row in rows]
    assert not (run / "rollouts/step_0.json").exists()
    assert (run / f"rollouts/step_{ROUNDS}.json").exists()


@pytest.mark.parametrize("has_gold", [True, False])
def test_a_run_of_one_round_without_reference_gold_or_tokens_has_a_page(tmp_path, has_gold):
    rows = [rollout_row("a", reward=None, completion=None, finish_reason=None, error="not_drawn: x"), rollout_row("b")]
    if has_gold:
        rows[1] = rollout_row("b", gold=1.0)
    write_round(tmp_path, 0, rows)
    assert rollouts_report.main(["--run", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert ("gold-by-round" in page) == has_gold
    assert "against its distance" not in page
    assert "No rule would stop the run" in page


def test_what_is_no_run_of_rounds_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"--run .*nowhere is no directory; give that of a run of phf train-rl"):
        rollouts_report.main(["--run", str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="holds no rounds"):
        rollouts_report.main(["--run", str(tmp_path)])
    (tmp_path / "rollouts").mkdir()
    with pytest.raises(ConfigError, match="holds no finished round yet"):
        rollouts_report.main(["--run", str(tmp_path)])


def test_damaged_files_are_named(tmp_path):
    write_round(tmp_path, 0, [rollout_row("a", logprobs=[(-1.0, -1.0)]), rollout_row("b")])
    files = RoundFiles(tmp_path, 0)
    keys = [RowKey("a", 0), RowKey("b", 0)]
    files.write_logprobs([StoredLogprobs(key, [-1.0, -2.0]) for key in keys])
    with pytest.raises(
        DataError, match=r"logprobs.parquet: prompt a, sample 0 has 2 log-probabilities of the policy for 1"
    ):
        read_round(tmp_path, 0)
    files.write_logprobs([StoredLogprobs(key, None) for key in keys[:1]])
    with pytest.raises(DataError, match=r"logprobs.parquet is not what this run wrote"):
        read_round(tmp_path, 0)
    (files.path / "samples.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"samples.parquet is not what a run writes"):
        read_round(tmp_path, 0)


def test_training_draws_the_page_at_its_end_and_only_tells_what_hinders_it(tmp_path, caplog):
    train_rl.draw_page(tmp_path)
    assert "there is no new page of the rounds" in caplog.text
    assert "holds no rounds" in caplog.text
    write_round(tmp_path, 0, [rollout_row("a"), rollout_row("b")])
    train_rl.draw_page(tmp_path)
    assert (tmp_path / "report.html").exists()
