"""Answers drawn by copies of the policy: the same as in the workers, and one round ahead where that is asked for."""

import json
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from kills import Killed, count_calls, killed_after
from ranks import run_on_ranks
from rollout_runs import (
    final_weights,
    prepare_run,
    prepared,
    rollout_config,
    rollout_values,
    round_files,
    run_here,
    write_prompts,
)
from sampling_pools import LeavingPool, PoolHere, run_on_rank_with_pool, run_with_pool
from tiny_adapters import write_base

from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.rollouts.rounds import RoundFiles
from phf_ray.rollouts.shared_weights import share_weights
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training import loop

AHEAD = {"place": "actors", "max_staleness": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("rounds"))


def rows_of(run, name, number):
    return pq.read_table(run / "rollouts" / f"round-{number:05d}" / f"{name}.parquet").to_pylist()


def test_copies_draw_what_the_workers_draw_and_get_the_weights_once_a_round(folder, tmp_path, monkeypatch):
    config = rollout_config(folder, rounds=3)
    run_here(config, tmp_path / "workers", plan=prepared(config, folder))
    config = rollout_config(folder, rounds=3, place="actors")
    begun = count_calls(monkeypatch, PoolHere, "start")
    run_with_pool(config, tmp_path / "actors", plan=prepared(config, folder))
    assert round_files(tmp_path / "actors") == round_files(tmp_path / "workers")
    assert final_weights(tmp_path / "actors") == final_weights(tmp_path / "workers")
    assert len(begun) == 3


def test_a_control_token_stands_before_the_prompts_of_copies_too(folder, tmp_path):
    values = rollout_values(folder, algorithm={"name": "quark", "best_only": False}, rounds=2)
    values["tokenizer"]["special_tokens"] = [f"<reward_{number}>" for number in range(4)]
    values["model"]["num_additional_tokens"] = 4
    config = parse_config(values)
    run_here(config, tmp_path / "workers", plan=prepared(config, folder))
    values["rollouts"]["place"] = "actors"
    config = parse_config(values)
    run_with_pool(config, tmp_path / "actors", plan=prepared(config, folder))
    assert round_files(tmp_path / "actors") == round_files(tmp_path / "workers")


def test_of_an_adapter_the_adapter_alone_is_handed_over(folder, tmp_path, monkeypatch):
    handed = []

    def shared(*given, **named):
        handed.append(share_weights(*given, **named))
        return handed[-1]

    monkeypatch.setattr("phf_ray.rollouts.sampling_places.share_weights", shared)
    base = write_base(tmp_path / "base")
    values = rollout_values(folder, rounds=2)
    values["model"] = {"path_or_name": str(base), "from_scratch": False, "lora": {"r": 4}}
    config = parse_config(values)
    run_here(config, tmp_path / "workers", plan=prepared(config, folder))
    assert not handed
    values["rollouts"]["place"] = "actors"
    config = parse_config(values)
    run_with_pool(config, tmp_path / "actors", plan=prepared(config, folder))
    assert round_files(tmp_path / "actors") == round_files(tmp_path / "workers")
    assert all("lora_" in name for one in handed for name in one.tensors)
    assert len(handed) == 2


# --- One round ahead ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(folder):
    # Steps that move the policy far, so that older weights can be told from newer ones.
    return rollout_config(folder, training={"learning_rate": 0.03}, **AHEAD)


@pytest.fixture(scope="module")
def plan(folder, config):
    return prepared(config, folder)


@pytest.fixture(scope="module")
def whole(folder, config, plan):
    run_with_pool(config, folder / "whole", plan=plan)
    return folder / "whole"


def test_a_round_is_drawn_with_the_weights_of_one_round_earlier_whenever_that_happens(
    folder, tmp_path, config, plan, whole
):
    drew = [{row["weights"] for row in rows_of(whole, "samples", number)} for number in range(4)]
    assert drew == [{"step-00000000"}, {"step-00000000"}, {"step-00000002"}, {"step-00000004"}]
    # The pool of `whole` draws as late as it can.
    run_with_pool(config, tmp_path / "early", plan=plan, at_once=True)
    assert round_files(tmp_path / "early") == round_files(whole)
    assert final_weights(tmp_path / "early") == final_weights(whole)
    # In round 1 nothing was learned yet that could tell it from a run that draws with its newest weights.
    fresh = rollout_config(folder, training={"learning_rate": 0.03}, place="actors")
    run_with_pool(fresh, tmp_path / "fresh", plan=prepared(fresh, folder))
    same = "round-00000/samples.parquet"
    assert round_files(tmp_path / "fresh")[same] == round_files(whole)[same]
    assert answers(tmp_path / "fresh", 1) != answers(whole, 1)


def answers(run, number):
    return [row["completion_ids"] for row in rows_of(run, "samples", number)]


def test_log_probabilities_of_the_weights_that_drew_are_stored_and_are_those_of_the_sampler(whole):
    assert all("behaviour" not in row for name in ("samples", "logprobs") for row in rows_of(whole, name, 0))
    for number in range(1, 4):
        drawn, scored = (rows_of(whole, name, number) for name in ("samples", "logprobs"))
        far = []
        for sample, row in zip(drawn, scored, strict=True):
            assert row["behaviour"] == sample["behaviour"]
            np.testing.assert_allclose(row["behaviour"], sample["sampler"], atol=1e-4)
            far.append(np.abs(np.array(row["behaviour"]) - row["policy"]).max())
        assert max(far) > 0.01, "the weights that drew are those that learn"
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    differences = [row["sampling/sampling_logp_difference/max"] for row in rows if "rollouts/round" in row]
    assert max(differences) < 1e-4, "the weights that drew are compared with those that learn"


def test_tokens_of_older_weights_weigh_by_the_ratio_and_at_most_the_cap(whole, folder, tmp_path):
    def importances(run):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return {row["train/global_step"]: row["ppo/policy/importance"] for row in rows if "train/loss" in row}

    found = importances(whole)
    assert found[1] == found[2] == 1
    for number in range(1, 4):
        ratios = np.concatenate(
            [np.exp(np.array(row["policy"]) - row["behaviour"]) for row in rows_of(whole, "logprobs", number)]
        )
        steps = [found[2 * number + 1], found[2 * number + 2]]
        assert min(steps) <= np.minimum(ratios, 2).mean() <= max(steps)
        assert steps != [1, 1]
    low = rollout_config(folder, training={"learning_rate": 0.03}, **AHEAD, importance_cap=0.5)
    run_with_pool(low, tmp_path / "low", plan=prepared(low, folder))
    assert max(importances(tmp_path / "low")[step] for step in range(3, 9)) <= 0.5


@pytest.mark.parametrize(
    ("owner", "name", "call", "save_steps"),
    [
        (RoundFiles, "write_samples", 1, None),
        (RoundFiles, "write_samples", 2, None),
        (RoundFiles, "write_samples", 3, 3),
        (RoundFiles, "write_logprobs", 2, None),
        (RoundFiles, "write_weighing", 4, 3),
        (PoolHere, "start", 3, None),
        (loop, "train_step", 3, 1),
        (loop, "train_step", 4, 1),
        (loop, "train_step", 5, None),
        (RolloutWorker, "_checkpoint", 2, 1),
    ],
)
def test_a_run_that_draws_ahead_and_is_killed_anywhere_ends_like_one_that_was_not(
    folder, tmp_path, monkeypatch, whole, owner, name, call, save_steps
):
    """Every `save_steps` steps, of which a round has two: also checkpoints amid a round."""
    changes = {"learning_rate": 0.03} | ({} if save_steps is None else {"save_steps": save_steps})
    config = rollout_config(folder, training=changes, **AHEAD)
    plan, run = prepared(config, folder), tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_after(patch, owner, name, call=call)
        with pytest.raises(Killed):
            run_with_pool(config, run, plan=plan)
    before = round_files(run)
    run_with_pool(config, run, plan=plan, at_once=True)
    after = round_files(run)
    assert before.items() <= after.items(), "a stored round was changed"
    assert after == round_files(whole)
    assert final_weights(run) == final_weights(whole)


@pytest.mark.parametrize(("num_rounds", "step"), [(0, 0), (2, 2)])
def test_a_run_whose_copies_have_no_room_can_be_stopped_and_goes_on(
    folder, tmp_path, config, plan, whole, num_rounds, step
):
    """Before the first round, and at a checkpoint that needs the answers of the next one."""
    run = tmp_path / "run"
    with pytest.raises(IncompleteError, match="because it was told to stop"):
        run_with_pool(config, run, plan=plan, open_pool=partial(LeavingPool, num_rounds=num_rounds))
    assert (RunDirectory(run).latest_step() or 0) == step
    run_with_pool(config, run, plan=plan)
    assert round_files(run) == round_files(whole)
    assert final_weights(run) == final_weights(whole)


@pytest.mark.timeout(240)
def test_two_ranks_with_sharded_weights_draw_ahead_what_one_does(folder, tmp_path, config, plan, whole):
    sharded = rollout_config(folder, training={"learning_rate": 0.03, "parallelism": "fsdp2"}, **AHEAD)
    run = tmp_path / "run"
    prepare_run(sharded, run, plan)
    run_on_ranks(partial(run_on_rank_with_pool, sharded, run, plan), world_size=2, directory=tmp_path)
    for number in range(4):
        assert answers(run, number) == answers(whole, number)
        for mine, other in zip(rows_of(run, "logprobs", number), rows_of(whole, "logprobs", number), strict=True):
            assert mine["policy"] == pytest.approx(other["policy"], abs=1e-4)
            assert mine.get("behaviour") == pytest.approx(other.get("behaviour"), abs=1e-4)


def test_a_round_whose_weights_are_gone_is_refused(tmp_path, monkeypatch, config, plan):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_after(patch, loop, "train_step", call=5)
        with pytest.raises(Killed):
            run_with_pool(config, run, plan=plan)
    assert RunDirectory(run).latest_step() == 4
    (run / "rollouts" / "round-00002" / "samples.parquet").unlink()
    with pytest.raises(DataError, match=r"round-00002 lacks samples\.parquet, which step-00000002 drew"):
        run_with_pool(config, run, plan=plan)


def test_a_run_that_stops_before_its_last_round_leaves_no_answers_of_the_next(folder, tmp_path):
    config = rollout_config(folder, training={"learning_rate": 0.03}, **AHEAD, stop={"kl": 1e-6})
    summary = run_with_pool(config, tmp_path / "run", plan=prepared(config, folder))
    assert "KL" in summary["stopped_by"]
    rounds = {name.partition("/")[0] for name in round_files(tmp_path / "run")} - {"rewards.json"}
    # Rounds 0 and 1 were drawn by the reference itself.
    assert rounds == {"round-00000", "round-00001", "round-00002"}


def test_the_kl_of_a_round_is_that_of_the_weights_that_drew_it(whole):
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rounds = [row for row in rows if "rollouts/round" in row]
    kls = [row["kl"] for row in rounds]
    assert kls[:2] == [0, pytest.approx(0, abs=1e-5)]
    per_answer = [np.sum(np.array(row["behaviour"]) - row["reference"]) for row in rows_of(whole, "logprobs", 2)]
    assert kls[2] == pytest.approx(np.mean(per_answer), rel=1e-4)
    assert abs(kls[2]) > 1e-3
    assert [row["objective/kl_sum_seq"] for row in rounds] == pytest.approx(kls, abs=1e-6)


# --- What can't be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"place": "nowhere"}, "set place: workers or place: actors"),
        ({"max_staleness": 1}, "set place: actors"),
        ({**AHEAD, "algorithm": {"name": "raft"}}, "algorithm raft is no policy gradient"),
        ({"place": "actors", "actors": {"min": 3, "max": 2}}, "max=2 is below min=3"),
    ],
)
def test_places_that_can_not_be_are_refused_by_name(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        rollout_config(folder, **changes)


def test_a_run_without_ray_has_no_actors(folder, tmp_path):
    config = rollout_config(folder, place="actors")
    with pytest.raises(ConfigError, match=r"rollouts\.place: actors needs Ray"):
        run_here(config, tmp_path / "run", plan=prepared(config, folder))
