"""A run of rounds that is stopped anywhere ends like one that was not: the same files of rounds, the same weights."""

import json
from functools import partial

import numpy as np
import pytest
from kills import Killed, count_calls, killed_after
from ranks import run_on_ranks
from rollout_rewarders import Meanwhile
from rollout_runs import (
    final_weights,
    prepare_run,
    prepared,
    rollout_config,
    round_files,
    run_here,
    run_on_rank,
    write_prompts,
)

from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.rollouts.identity import check_rewards_identity
from phf_ray.rollouts.rounds import RoundFiles
from phf_ray.rollouts.sampling_places import Workers
from phf_ray.rollouts.worker import RolloutWorker
from phf_ray.runs.directory import RunDirectory
from phf_ray.training import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("rounds"))


@pytest.fixture(scope="module")
def config(folder):
    return rollout_config(folder)


@pytest.fixture(scope="module")
def plan(folder, config):
    return prepared(config, folder)


@pytest.fixture(scope="module")
def whole(folder, config, plan):
    run_here(config, folder / "whole", plan=plan)
    return folder / "whole"


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (RoundFiles, "write_samples", 1),
        (RoundFiles, "write_samples", 3),
        (RoundFiles, "write_rewards", 2),
        (RoundFiles, "write_logprobs", 2),
        (RoundFiles, "write_weighing", 4),
        (loop, "train_step", 5),
        (loop, "train_step", 6),
        (RolloutWorker, "_checkpoint", 2),
    ],
)
def test_a_run_killed_anywhere_ends_byte_for_byte_like_one_that_was_not(
    tmp_path, monkeypatch, config, plan, whole, owner, name, call
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_after(patch, owner, name, call=call)
        with pytest.raises(Killed):
            run_here(config, run, plan=plan)
    assert not (run / "summary.json").exists()
    before = round_files(run)
    drawn = count_calls(monkeypatch, Workers, "draw")
    run_here(config, run, plan=plan)
    after = round_files(run)
    assert before.items() <= after.items(), "a stored round was changed"
    assert len(drawn) == 4 - sum(file.endswith("samples.parquet") for file in before), "a round was drawn again"
    assert after == round_files(whole)
    assert final_weights(run) == final_weights(whole)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kinds = [(row["train/global_step"], "rollouts/round" in row) for row in rows]
    assert len(kinds) == len(set(kinds)) == 4 + 8, "a row is missing or there twice"


def test_a_run_told_to_stop_ends_between_steps_or_stages_and_goes_on_from_there(
    tmp_path, monkeypatch, config, plan, whole
):
    """In the middle of a round's updates: the checkpoint there goes on with the stored round."""
    run = tmp_path / "run"
    original = loop.train_step

    def stop_in_the_third_step(state, *arguments, **named):
        if state.step == 2:
            RunDirectory(run).request_stop()
            named["stop"] = True
        return original(state, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stop_in_the_third_step)
        with pytest.raises(IncompleteError, match="told to stop"):
            run_here(config, run, plan=plan)
    assert RunDirectory(run).latest_step() in (3, 4)
    run_here(config, run, plan=plan)
    assert round_files(run) == round_files(whole)
    assert final_weights(run) == final_weights(whole)


def test_every_prompt_of_every_round_is_answered_once_and_an_epoch_has_each_prompt_once(whole, plan):
    import pyarrow.parquet as pq

    asked = []
    for path in sorted((whole / "rollouts").glob("round-*/samples.parquet")):
        rows = pq.read_table(path).to_pylist()
        keys = [(row["prompt_id"], row["sample"]) for row in rows]
        assert len(keys) == len(set(keys)) == 12
        asked.append({key[0] for key in keys})
    assert len(set().union(*asked[:3])) == 12, "three rounds of 4 are an epoch of the 12 prompts"


def test_a_damaged_file_of_a_round_is_refused_by_name(tmp_path, monkeypatch, config, plan):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_after(patch, RoundFiles, "write_rewards", call=1)
        with pytest.raises(Killed):
            run_here(config, run, plan=plan)
    path = run / "rollouts" / "round-00000" / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"round-00000/samples\.parquet is not what this run wrote"):
        run_here(config, run, plan=plan)


def test_other_settings_prompts_or_rewards_are_refused_by_name(folder, tmp_path, monkeypatch, config, plan):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_after(patch, loop, "train_step", call=4)
        with pytest.raises(Killed):
            run_here(config, run, plan=plan)
    with pytest.raises(ConfigError, match=r"rollouts\.temperature: 1\.0 in the run, 0\.7 now"):
        run_here(rollout_config(folder, temperature=0.7), run, plan=plan)
    with pytest.raises(ConfigError, match=r"rollouts\.reward"):
        run_here(rollout_config(folder, reward={"rule": "longer"}), run, plan=plan)
    other = tmp_path / "other"
    other.mkdir()
    (other / "prompts.jsonl").write_text(
        '{"prompt": "one"}\n' * 1 + '{"prompt": "two"}\n{"prompt": "3"}\n{"prompt": "4"}'
    )
    (folder / "prompts.jsonl").rename(folder / "aside")
    try:
        (folder / "prompts.jsonl").write_bytes((other / "prompts.jsonl").read_bytes())
        changed = prepared(config, tmp_path)
    finally:
        (folder / "aside").rename(folder / "prompts.jsonl")
    with pytest.raises(ConfigError, match="the prompts of the rounds"):
        run_here(config, run, plan=changed)
    identity = run / "rollouts" / "rewards.json"
    identity.write_text(identity.read_text().replace('"shorter"', '"other"', 1))
    with pytest.raises(ConfigError, match="holds a run with other rewards"):
        run_here(config, run, plan=plan)


def test_a_second_start_takes_over_and_the_first_one_says_so(folder, tmp_path, monkeypatch):
    config = rollout_config(folder, reward={"class_name": "rollout_rewarders:Meanwhile"}, rounds=2)
    plan, whole, run = prepared(config, tmp_path), tmp_path / "whole", tmp_path / "run"
    run_here(config, whole, plan=plan)
    monkeypatch.setattr(Meanwhile, "happens", lambda: run_here(config, run, plan=plan))
    with pytest.raises(IncompleteError, match="another start of the run took over"):
        run_here(config, run, plan=plan)
    assert Meanwhile.happens is None
    assert final_weights(run) == final_weights(whole)
    assert round_files(run) == round_files(whole)


def test_answers_alone_take_other_rewards(tmp_path):
    folder = tmp_path / "rollouts" / "round-00000"
    folder.mkdir(parents=True)
    (folder / "samples.parquet").touch()
    check_rewards_identity(tmp_path, {"rewards": {"mine": "before"}, "gold": None})
    check_rewards_identity(tmp_path, {"rewards": {"mine": "mended"}, "gold": None})
    (folder / ".unfinished-rewards.parquet").touch()
    with pytest.raises(ConfigError, match="'mended' in the run, 'other' now"):
        check_rewards_identity(tmp_path, {"rewards": {"mine": "other"}, "gold": None})


# --- Ranks ---------------------------------------------------------------------------------------------------------


def run_on_two(config, run, plan, directory):
    directory.mkdir(parents=True)
    prepare_run(config, run, plan)
    run_on_ranks(partial(run_on_rank, config, run, plan), world_size=2, directory=directory)


@pytest.mark.timeout(240)
def test_two_workers_draw_the_same_answers_as_one_and_their_log_probabilities_agree(
    folder, tmp_path, config, plan, whole
):
    run = tmp_path / "two"
    run_on_two(config, run, plan, tmp_path / "first")
    name = "round-00000/samples.parquet"
    assert round_files(run)[name] == round_files(whole)[name]
    assert tokens(run) == tokens(whole)
    for number in range(4):
        ours, theirs = logprobs(run, number), logprobs(whole, number)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, abs=1e-5)
    again = tmp_path / "again"
    run_on_two(config, again, plan, tmp_path / "second")
    assert round_files(again) == round_files(run)
    assert final_weights(again) == final_weights(run)


@pytest.mark.timeout(240)
def test_a_round_stored_by_one_worker_stays_as_it_is_when_two_go_on(tmp_path, monkeypatch, config, plan, whole):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_after(patch, RoundFiles, "write_rewards", call=2)
        with pytest.raises(Killed):
            run_here(config, run, plan=plan)
    before = round_files(run)
    run_on_two(config, run, plan, tmp_path / "ranks")
    after = round_files(run)
    assert before.items() <= after.items()
    assert tokens(run) == tokens(whole)


def tokens(run):
    import pyarrow.parquet as pq

    return [
        pq.read_table(path, columns=["prompt_id", "sample", "completion_ids"]).to_pylist()
        for path in sorted((run / "rollouts").glob("round-*/samples.parquet"))
    ]


def logprobs(run, number):
    import pyarrow.parquet as pq

    rows = pq.read_table(run / "rollouts" / f"round-{number:05d}" / "logprobs.parquet").to_pylist()
    return [np.array(row["policy"]) for row in rows]
