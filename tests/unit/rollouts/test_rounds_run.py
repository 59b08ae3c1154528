"""Runs of rounds: what is refused, what is left out and told, and when they stop."""

import json
import shutil
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from ranks import run_on_ranks
from rollout_runs import (
    final_weights,
    prepare_run,
    prepared,
    rollout_config,
    rollout_values,
    run_here,
    run_on_rank,
    write_prompts,
)
from tiny_adapters import write_base

from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError, IncompleteError
from phf_ray.objectives.weighted_likelihood import WeightedLikelihood
from phf_ray.rollouts.driver import prepare_rollouts
from phf_ray.rollouts.forward import Forward
from phf_ray.rollouts.policies import Reference
from phf_ray.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_prompts(tmp_path_factory.mktemp("rounds"))


def round_rows(run, name, number=0):
    return pq.read_table(run / "rollouts" / f"round-{number:05d}" / f"{name}.parquet").to_pylist()


def round_metrics(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "rollouts/round" in row]


def test_the_first_round_is_the_references_and_its_first_minibatch_has_ratio_1(folder, tmp_path):
    config = rollout_config(folder, rounds=1)
    told = []
    run_here(config, tmp_path / "run", plan=prepared(config, folder), sinks=[told.append])
    assert [row["rollouts/round"] for row in told if "rollouts/round" in row] == [0], "whoever watches gets the round"
    for row in round_rows(tmp_path / "run", "logprobs"):
        assert row["policy"] == row["reference"]
        assert len(row["policy"]) > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["kl"] == 0
    assert rows[0]["sampling/sampling_logp_difference/max"] < 1e-4
    assert (rows[1]["ppo/policy/ratio"], rows[1]["ppo/policy/approxkl"]) == (1, 0)
    assert rows[2]["ppo/policy/ratio"] != 1


def test_a_sampler_that_disagrees_with_training_is_told(folder, tmp_path, monkeypatch, caplog):
    original = Forward.logprobs
    monkeypatch.setattr(
        Forward, "logprobs", lambda self, *given: [row - np.float32(0.5) for row in original(self, *given)]
    )
    config = rollout_config(folder, rounds=1)
    run_here(config, tmp_path / "run", plan=prepared(config, folder))
    assert "differ by 0.5 nats a token on average" in caplog.text
    assert round_metrics(tmp_path / "run")[0]["sampling/sampling_logp_difference/mean"] == pytest.approx(0.5, abs=1e-4)


def test_log_probabilities_are_those_of_the_sampling_temperature(folder, tmp_path):
    """At temperature 2 they are flatter: the same answers scored at both differ as logits / 2 say."""
    cold, hot = rollout_config(folder, rounds=1), rollout_config(folder, rounds=1, temperature=2.0)
    for name, config in (("cold", cold), ("hot", hot)):
        run_here(config, tmp_path / name, plan=prepared(config, folder))
    uniform = -np.log(300)
    spread = {
        name: np.mean(
            [np.abs(np.array(row["policy"]) - uniform).mean() for row in round_rows(tmp_path / name, "logprobs")]
        )
        for name in ("cold", "hot")
    }
    assert spread["hot"] < 0.7 * spread["cold"]


def test_too_many_failed_rewards_stop_the_run_and_only_these_are_asked_again(folder, tmp_path):
    reward = {"class_name": "rollout_rewarders:Away", "settings": {"folder": str(tmp_path)}}
    config = rollout_config(folder, rounds=1, reward=reward)
    plan, run = prepared(config, folder), tmp_path / "run"
    (tmp_path / "away").touch()
    with pytest.raises(IncompleteError, match=r"round 0: 6 of 12 answers have no reward.*6 x Away: server_away"):
        run_here(config, run, plan=plan)
    drawn = round_rows(run, "samples")
    (tmp_path / "away").unlink()
    run_here(config, run, plan=plan)
    assert round_rows(run, "samples") == drawn
    assert len((tmp_path / "asked").read_text()) == 12 + 6
    assert all(
        row["reward"] == len(sample["completion"])
        for row, sample in zip(round_rows(run, "rewards"), drawn, strict=True)
    )


def test_few_failed_rewards_are_null_with_a_reason_and_not_learned(folder, tmp_path, caplog):
    reward = {"class_name": "rollout_rewarders:NotANumber", "name": "own"}
    config = rollout_config(folder, rounds=1, reward=reward)
    run_here(config, tmp_path / "run", plan=prepared(config, folder))
    first, *others = round_rows(tmp_path / "run", "rewards")
    assert (first["reward"], first["reward_own"]) == (None, None)
    assert first["error"] == "own: not_finite: the reward is nan"
    assert all(row["error"] is None for row in others)
    assert "answers without a reward are not learned: 1 x own" in caplog.text
    assert round_metrics(tmp_path / "run")[0]["rollouts/failed"] == 1


def test_groups_without_a_difference_are_counted_and_told_once_and_change_nothing(folder, tmp_path, caplog):
    config = rollout_config(
        folder,
        rounds=2,
        reward={"class_name": "rollout_rewarders:Constant"},
        algorithm={"name": "rloo", "kl_coef": 0.0},
        training={"weight_decay": 0.0},
    )
    run = tmp_path / "run"
    run_here(config, run, plan=prepared(config, folder))
    assert [row["rollouts/constant_groups"] for row in round_metrics(run)] == [4, 4]
    assert caplog.text.count("all answers to 4 of 4 prompts have the same reward") == 1
    first, last = (run / "checkpoints" / f"step-{step:08d}" / "model.safetensors" for step in (2, 4))
    assert first.read_bytes() == last.read_bytes()


def test_a_run_stops_before_it_learns_a_round_that_is_too_far_from_the_reference(folder, tmp_path):
    config = rollout_config(folder, rounds=8, stop={"kl": 0.02}, training={"learning_rate": 0.02})
    run = tmp_path / "run"
    plan = prepared(config, folder)
    summary = run_here(config, run, plan=plan)
    last = round_metrics(run)[-1]
    assert last["kl"] > 0.02 >= max(row["kl"] for row in round_metrics(run)[:-1])
    assert "above 0.02" in summary["stopped_by"]
    assert summary["step"] == 2 * last["rollouts/round"] < 16
    assert RunDirectory(run).latest_step() == summary["step"]


@pytest.mark.parametrize(
    ("penalty", "paid"), [({"reward": -99.0}, lambda reward: -99.0), ({"subtract": 5.0}, lambda reward: reward - 5)]
)
def test_an_answer_that_did_not_end_pays_for_it(folder, tmp_path, penalty, paid):
    config = rollout_config(folder, rounds=1, penalty=penalty)
    run = tmp_path / "run"
    run_here(config, run, plan=prepared(config, folder))
    pairs = list(zip(round_rows(run, "samples"), round_rows(run, "rewards"), strict=True))
    assert {sample["finish_reason"] for sample, _ in pairs} == {"stop", "length"}
    for sample, reward in pairs:
        own = reward["reward_shorter"]
        assert reward["reward"] == (own if sample["finish_reason"] == "stop" else paid(own))


def test_prompts_longer_than_the_context_leaves_are_left_out_and_told(folder, tmp_path, caplog):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in ("one", "two", "one", "word " * 60))
    )
    config = rollout_config(folder, prompts=str(tmp_path / "prompts.jsonl"), prompts_per_round=2)
    plan = prepared(config, tmp_path)
    assert plan.plan.num_prompts == 2
    assert dict(plan.left_out) == {"duplicate": 1, "too_long": 1}
    assert "1 of 4 prompts are left out: they are longer" in caplog.text
    with pytest.raises(ConfigError, match=r"rollouts.prompts_per_round=4, but there are 2 prompts"):
        prepared(rollout_config(folder, prompts=str(tmp_path / "prompts.jsonl")), tmp_path)
    with pytest.raises(ConfigError, match=r"rollouts.max_tokens=63 leaves no room .* at most 62"):
        prepared(rollout_config(folder, max_tokens=63), tmp_path)


def test_a_control_token_takes_its_place_in_the_context(folder, tmp_path):
    """The longest prompt and its answer fill the context by themselves: there is no room for the token."""
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": c * 4}) + "\n" for c in "abcde") + '{"prompt": "a"}\n'
    )
    changes = {"prompts": [str(tmp_path / "prompts.jsonl")], "max_tokens": 64 - 5, "prompts_per_round": 1, "rounds": 2}
    values = values_of(folder, "reward_conditioning")
    values["rollouts"] |= changes
    plan = prepared(config := parse_config(values), tmp_path)
    assert (plan.plan.num_prompts, plan.plan.longest_row) == (1, 1 + 2 + 59)
    run_here(config, tmp_path / "run", plan=plan)
    assert [row["error"] for row in round_rows(tmp_path / "run", "samples", 1)] == [None] * 3
    values["rollouts"]["max_tokens"] = 62
    with pytest.raises(ConfigError, match=r"leaves no room .* at most 61"):
        prepared(parse_config(values), tmp_path)
    assert prepared(rollout_config(folder, **changes), tmp_path).plan.longest_row == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"place": "http://localhost:8000"}, "a server has no fresh weights of the policy"),
        ({"stop": {"gold_patience": 3}}, "add rollouts.gold"),
        ({"stop": {"kl": 3}, "reports_kl": False}, "set reports_kl: true"),
        ({"samples_per_prompt": 1}, r"samples_per_prompt is 1; set it to 2 or more"),
        ({"minibatches": 13}, "of 12 answers a round"),
        ({"algorithm": {"name": "ppo"}}, "value_head_config"),
        ({"algorithm": {"name": "quark", "num_quantiles": 13}}, "needs 13 samples in a round, which has 12"),
        (
            {"algorithm": {"name": "quark", "best_only": False}},
            "puts <reward_0>, .* add it to tokenizer.special_tokens",
        ),
        ({"algorithm": {"name": "online_dpo"}, "temperature": 0.7}, r"rollouts\.temperature is 0\.7"),
        ({"penalty": {"reward": -1.0, "subtract": 1.0}}, "set one of them"),
    ],
)
def test_settings_that_can_not_be_are_refused_by_name(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        rollout_config(folder, **changes)


def test_sections_of_rounds_come_together_and_have_an_objective_of_their_own(folder):
    values = rollout_values(folder)
    with pytest.raises(ConfigError, match="section rollouts needs section algorithm"):
        parse_config({key: value for key, value in values.items() if key != "algorithm"})
    with pytest.raises(ConfigError, match="section objective has no use"):
        parse_config(values | {"objective": {"name": "DPO"}})


def test_pairs_need_rows_of_their_own(folder):
    algorithm = {"name": "online_dpo"}
    with pytest.raises(ConfigError, match=r"set training\.document_mask: true"):
        prepared(rollout_config(folder, algorithm=algorithm), folder)


# --- Kinds of models and algorithms -------------------------------------------------------------------------------


def values_of(folder, name, **settings):
    values = rollout_values(folder, algorithm={"name": name, **settings}, rounds=3)
    values["training"]["document_mask"] = name == "online_dpo"
    if name == "ppo":
        values["model"]["model_kwargs"] = {"value_head_config": {"is_bounded": False}}
    if name in ("quark", "reward_conditioning"):
        tokens = [f"<reward_{i}>" for i in range(4)] if name == "quark" else ["<|aligned|>", "<|misaligned|>"]
        values["tokenizer"]["special_tokens"] = tokens
        values["model"]["num_additional_tokens"] = len(tokens)
    return values


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ppo", {}),
        ("grpo", {}),
        ("reinforce", {}),
        ("reinforce_pp", {}),
        ("raft", {}),
        ("expert_iteration", {}),
        ("quark", {"best_only": False, "pool_rounds": 2}),
        ("reward_conditioning", {}),
        ("online_dpo", {}),
    ],
)
def test_every_algorithm_learns_three_rounds(folder, tmp_path, name, settings):
    config = parse_config(values_of(folder, name, **settings))
    run = tmp_path / "run"
    summary = run_here(config, run, plan=prepared(config, folder))
    assert summary["step"] == 6
    first, last = (run / "checkpoints" / f"step-{step:08d}" / "model.safetensors" for step in (2, 6))
    assert first.read_bytes() != last.read_bytes()
    card = (run / summary["checkpoint"] / "README.md").read_text()
    assert f"# test: {name}" in card
    assert "learned from rewards of its own answers" in card
    values = [row["value"] for row in round_rows(run, "logprobs")]
    assert all((value is not None) == (name == "ppo") for value in values)
    if name in ("quark", "reward_conditioning"):
        control = {300, 301, 302, 303}
        assert not any(control & set(row["completion_ids"]) for row in round_rows(run, "samples", 2))
        info = json.loads((run / summary["checkpoint"] / "phf.json").read_text())
        assert info["control"]["good"] in ("<reward_0>", "<|aligned|>")


def test_more_minibatches_than_pairs_or_kept_rows_are_steps_without_targets(folder, tmp_path):
    for name in ("online_dpo", "expert_iteration"):
        values = values_of(folder, name)
        values["rollouts"] |= {"rounds": 1, "minibatches": 12}
        run = tmp_path / name
        assert run_here(config := parse_config(values), run, plan=prepared(config, folder))["step"] == 12


def test_rows_that_are_not_kept_cost_no_time(folder, tmp_path):
    config = parse_config(values_of(folder, "expert_iteration"))
    run = tmp_path / "run"
    run_here(config, run, plan=prepared(config, folder))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    # The best answer of three, to 4 prompts in each of 3 rounds.
    assert last["objective/train/docs_used"] == 3 * 4


@pytest.mark.parametrize(
    ("pool_rounds", "save_steps", "newest"),
    [
        # Round 1 is under way in step 3, and is learned again with round 2.
        pytest.param(1, 3, 3, id="under way"),
        pytest.param(2, None, 4, id="in the pool"),
    ],
)
def test_a_learned_round_is_never_made_again(folder, tmp_path, pool_rounds, save_steps, newest):
    values = values_of(folder, "quark", pool_rounds=pool_rounds)
    values["training"]["save_steps"] = save_steps
    config, run = parse_config(values), tmp_path / "run"
    plan = prepared(config, folder)
    run_here(config, run, plan=plan)
    (run / "summary.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > newest:
            shutil.rmtree(checkpoint)
    (run / "rollouts" / "round-00001" / "samples.parquet").unlink()
    with pytest.raises(DataError, match=r"round-00001 lacks samples\.parquet, but the newest checkpoint has learned"):
        run_here(config, run, plan=plan)


def test_figures_of_a_round_are_not_those_of_the_pool(folder, tmp_path):
    config, run = parse_config(values_of(folder, "quark", pool_rounds=3)), tmp_path / "run"
    run_here(config, run, plan=prepared(config, folder))
    for number, row in enumerate(round_metrics(run)):
        rewards = [one["reward"] for one in round_rows(run, "rewards", number)]
        assert row["reward"] == pytest.approx(np.mean(rewards))
        assert row["rollouts/constant_groups"] <= 4


def test_the_exact_kl_leaves_out_tokens_that_the_checkpoint_lacks(folder, tmp_path, monkeypatch):
    write_base(tmp_path / "sft")
    told = []
    original = WeightedLikelihood.compare_with

    def compare_with(self, reference, *, num_tokens):
        told.append(num_tokens)
        original(self, reference, num_tokens=num_tokens)

    monkeypatch.setattr(WeightedLikelihood, "compare_with", compare_with)
    values = values_of(folder, "quark", best_only=False, num_quantiles=2)
    # The checkpoint says how many are new.
    values["model"]["num_additional_tokens"] = 0
    config = parse_config(values | {"tokenizer": {"special_tokens": ["<reward_0>", "<reward_1>"]}}).with_tokenizer_of(
        str(tmp_path / "sft")
    )
    plan = prepare_rollouts(
        config,
        tokenizer=load_tokenizer(config.tokenizer),
        checkpoint_path=str(tmp_path / "sft"),
        folder=str(tmp_path / "prompts"),
    )
    run_here(config, tmp_path / "run", plan=plan)
    assert told == [len(load_tokenizer(config.tokenizer)) - 2]


def test_an_adapter_shares_its_base_with_the_reference(folder, tmp_path, monkeypatch):
    write_base(tmp_path / "base")
    values = rollout_values(folder, rounds=3)
    values["tokenizer"] = {"path_or_name": str(tmp_path / "base")}
    values["model"] = {"path_or_name": str(tmp_path / "base"), "from_scratch": False, "lora": {"r": 4, "alpha": 8}}
    values["training"]["learning_rate"] = 0.05
    config = parse_config(values)
    shared = []
    original = Reference.logprobs
    monkeypatch.setattr(
        Reference, "logprobs", lambda self, *given: (shared.append(self.is_shared), original(self, *given))[1]
    )
    run = tmp_path / "run"
    run_here(config, run, plan=prepared(config, tmp_path))
    assert shared == [True] * 3
    metrics = round_metrics(run)
    assert metrics[0]["kl"] == 0
    assert metrics[2]["kl"] != 0
    names = {path.name for path in (run / "checkpoints" / "step-00000006").iterdir()}
    assert "adapter_model.safetensors" in names


@pytest.mark.timeout(240)
def test_sharded_weights_are_gathered_to_sample_and_learn_as_whole_ones_do(folder, tmp_path):
    runs = {}
    for kind in ("ddp", "fsdp2"):
        config = rollout_config(folder, rounds=2, training={"parallelism": kind})
        run, plan = tmp_path / kind, prepared(config, folder)
        prepare_run(config, run, plan)
        (tmp_path / f"{kind}-ranks").mkdir()
        run_on_ranks(partial(run_on_rank, config, run, plan), world_size=2, directory=tmp_path / f"{kind}-ranks")
        runs[kind] = run
    for number in range(2):
        ours, theirs = ([row["completion_ids"] for row in round_rows(run, "samples", number)] for run in runs.values())
        assert ours == theirs
    assert len(final_weights(runs["ddp"])) == len(final_weights(runs["fsdp2"]))
