"""PPO with a critic: a model of its own, started from a reward model, learned beside the policy."""

import json
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from kills import Killed, killed_after
from ranks import run_on_ranks
from rollout_runs import (
    final_weights,
    prepare_run,
    prepared,
    rollout_values,
    round_files,
    run_here,
    run_on_rank,
    write_prompts,
)
from tiny_adapters import write_base
from tiny_models import tiny_gpt2, tiny_tokenizer
from tiny_rewards import write_reward_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from phf_ray.config import ModelConfig, parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.models.actor_critic import ActorCritic
from phf_ray.models.build import build_model
from phf_ray.models.critic import load_critic
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.build import build_objective
from phf_ray.records import TokenKind
from phf_ray.rollouts.critics import resumed_critic
from phf_ray.rollouts.estimate import describe_rounds
from phf_ray.rollouts.rounds import RoundFiles
from phf_ray.runs.directory import RunDirectory
from phf_ray.training import loop
from phf_ray.training.batches import MicroBatch
from phf_ray.training.schedule import theoretical_loss
from phf_ray.training.snapshot import take_snapshot
from phf_ray.training.state import TrainState, build_optimizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_prompts(tmp_path_factory.mktemp("critic"))
    write_reward_model(folder / "reward")
    return folder


def critic_values(folder, *, critic=None, training=None, **rollouts):
    algorithm = {"name": "ppo", "kl_coef": 0.01, "critic": {"model": str(folder / "reward"), **(critic or {})}}
    values = rollout_values(folder, algorithm=algorithm, **{"rounds": 2, **rollouts})
    values["training"] |= training or {}
    return values


@pytest.fixture(scope="module")
def config(folder):
    return parse_config(critic_values(folder))


@pytest.fixture(scope="module")
def plan(folder, config):
    return prepared(config, folder)


@pytest.fixture(scope="module")
def whole(folder, config, plan):
    run_here(config, folder / "whole", plan=plan)
    return folder / "whole"


def round_rows(run, name, number=0):
    return pq.read_table(run / "rollouts" / f"round-{number:05d}" / f"{name}.parquet").to_pylist()


def prompt_ids(prompt):
    tokenizer = tiny_tokenizer()
    return [tokenizer.eos_token_id, *tokenizer(prompt)["input_ids"]]


def checkpoint_of(run, step):
    return run / "checkpoints" / f"step-{step:08d}"


# --- Where it starts ------------------------------------------------------------------------------------------------


def first_values(run):
    """Stored values of the first round, and what a classifier of transformers says of the tokens before each."""
    for sample, row in zip(round_rows(run, "samples"), round_rows(run, "logprobs"), strict=True):
        ids = [*prompt_ids(sample["prompt"]), *sample["completion_ids"]]
        begin = len(ids) - len(sample["completion_ids"])
        yield [ids[:place] for place in range(begin, len(ids))], row["value"]


def test_values_begin_as_what_the_reward_model_says_of_the_text_so_far(folder, whole):
    judge = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    compared = 0
    for texts, values in first_values(whole):
        with torch.no_grad():
            said = [judge(torch.tensor([ids])).logits.item() for ids in texts]
        assert values == pytest.approx(said, abs=1e-5)
        compared += len(values)
    assert compared > 50
    assert np.std([value for _, values in first_values(whole) for value in values]) > 0.1


def test_the_bias_of_a_recovered_reward_model_counts(folder, tmp_path):
    write_reward_model(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | {"reward_bias": 2.5}))
    policy = LanguageModel(tiny_gpt2(tiny_tokenizer()))
    ids, kinds = torch.arange(6)[None], torch.full((1, 6), int(TokenKind.PLAIN), dtype=torch.uint8)
    plain, raised = (
        ActorCritic(policy, load_critic(source, tokenizer=tiny_tokenizer())).eval().predict_values(ids, kinds)
        for source in (folder / "reward", tmp_path)
    )
    assert torch.allclose(raised, plain + 2.5)


@pytest.mark.parametrize("kind", ["language model", "alpaca_farm"])
def test_a_new_head_says_0(folder, tmp_path, kind):
    write_base(tmp_path / "base")
    values = critic_values(
        folder, critic={"model": str(tmp_path / "base")} if kind == "language model" else {}, rounds=1
    )
    config = parse_config(values | ({"compat": "alpaca_farm"} if kind == "alpaca_farm" else {}))
    run = tmp_path / "run"
    run_here(config, run, plan=prepared(config, tmp_path))
    assert {value for _, values in first_values(run) for value in values} == {0}
    learned = AutoModelForSequenceClassification.from_pretrained(checkpoint_of(run, 2) / "critic")
    assert learned.score.weight.abs().max() > 0


def test_the_loss_that_a_model_of_this_size_could_have_is_that_of_the_policy(whole):
    policy = AutoModelForCausalLM.from_pretrained(checkpoint_of(whole, 2))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["train/global_step"] == 2 and "train/loss" in row]
    expected = theoretical_loss(policy.num_parameters(), num_tokens=row["train/tokens_seen"])
    assert row["train/theoretical_loss"] == pytest.approx(expected, rel=1e-12)


# --- What it learns ---------------------------------------------------------------------------------------------------


def test_the_two_losses_reach_one_model_each(folder):
    policy = LanguageModel(tiny_gpt2(tiny_tokenizer()))
    model = ActorCritic(policy, load_critic(folder / "reward", tokenizer=tiny_tokenizer()))
    model.disable_dropout()
    kinds = torch.full((2, 8), int(TokenKind.PLAIN), dtype=torch.uint8)
    kinds[:, 0] = int(TokenKind.END_OF_TEXT)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, kinds.shape, generator=generator)
    names = ("advantage", "old_logprob", "return", "old_value")

    def gradients(**changed):
        channels = {name: torch.randn(kinds.shape, generator=torch.Generator().manual_seed(1)) for name in names}
        channels["old_logprob"] = model.predict_logprobs(ids, kinds)
        channels |= {name: torch.full(kinds.shape, value) for name, value in changed.items()}
        objective = build_objective({"name": "PolicyGradient", "value_coef": 0.1, "value_clip": 100.0})
        model.zero_grad()
        MicroBatch(ids, torch.zeros(kinds.shape), kinds, 0, channels).through(model, objective).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    def moved(first, second):
        return {name.partition(".")[0] for name in first if not torch.equal(first[name], second[name])}

    before = gradients()
    assert {name.partition(".")[0] for name, gradient in before.items() if gradient.abs().max() > 0} == {
        "backbone",
        "critic",
    }
    assert moved(before, gradients(advantage=3.0)) == {"backbone"}
    assert moved(before, gradients(**{"return": 3.0})) == {"critic"}


def test_a_round_learned_equals_the_same_in_plain_torch_with_two_models(folder, tmp_path):
    """Two epochs of one minibatch: in the second, ratios are not 1 and values have moved."""
    settings = {"learning_rate": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5, "adam_epsilon": EPSILON}
    values = critic_values(
        folder,
        critic={"learning_rate": 0.002},
        training=settings | {"save_steps": 1},
        rounds=1,
        epochs=2,
        minibatches=1,
    )
    write_base(tmp_path / "policy")
    values["model"] = {"path_or_name": str(tmp_path / "policy"), "from_scratch": False}
    values["algorithm"] |= {"gamma": 0.9, "lam": 0.8, "value_coef": 0.3, "value_clip": 0.05, "clip": 0.05}
    config, run = parse_config(values), tmp_path / "run"
    run_here(config, run, plan=prepared(config, tmp_path))

    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    critic = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if (p.ndim >= 2) == decays], "lr": rate, "weight_decay": decay}
            for model, rate in ((policy, 0.01), (critic, 0.002))
            for decays, decay in ((True, 0.1), (False, 0.0))
        ],
        eps=EPSILON,
    )
    rows = by_hand_rows(run, gamma=0.9, lam=0.8, kl_coef=0.01)
    for step in (1, 2):
        loss, num_tokens = 0.0, sum(len(row["old"]) for row in rows)
        for row in rows:
            ids, begin = torch.tensor([row["ids"]]), row["begin"]
            logps = policy(ids).logits[0, begin - 1 : -1].log_softmax(-1)
            logp = logps.gather(1, ids[0, begin:, None]).squeeze(1)
            hidden = critic.transformer(ids).last_hidden_state[0, begin - 1 : -1]
            value = critic.score(hidden).squeeze(1)
            ratio = (logp - row["old"]).exp()
            loss = loss + torch.maximum(-row["advantage"] * ratio, -row["advantage"] * ratio.clamp(0.95, 1.05)).sum()
            clipped = row["value"] + (value - row["value"]).clamp(-0.05, 0.05)
            losses = torch.maximum((value - row["return"]) ** 2, (clipped - row["return"]) ** 2)
            loss = loss + 0.3 * losses.sum() / 2
        optimizer.zero_grad()
        (loss / num_tokens).backward()
        torch.nn.utils.clip_grad_norm_([*policy.parameters(), *critic.parameters()], 0.5)
        optimizer.step()
        ours = AutoModelForCausalLM.from_pretrained(checkpoint_of(run, step))
        our_critic = AutoModelForSequenceClassification.from_pretrained(checkpoint_of(run, step) / "critic")
        for mine, theirs in ((ours, policy), (our_critic, critic)):
            for (name, one), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
                assert torch.allclose(one, other, rtol=1e-4, atol=2e-6), name


EPSILON = 0.01
"""With a small one, Adam moves weights by the sign of gradients that are nothing but noise."""


def by_hand_rows(run, *, gamma, lam, kl_coef):
    """Advantages and returns of each stored answer, by the definition of GAE; advantages whitened over all tokens."""
    rows = []
    tables = [round_rows(run, name) for name in ("samples", "rewards", "logprobs")]
    for sample, reward, logprobs in zip(*tables, strict=True):
        ids = [*prompt_ids(sample["prompt"]), *sample["completion_ids"]]
        old, reference, value = (torch.tensor(logprobs[name]) for name in ("policy", "reference", "value"))
        rewards = -kl_coef * (old - reference)
        rewards[-1] += reward["reward"]
        advantage, ahead, after = torch.zeros_like(value), 0.0, 0.0
        for place in reversed(range(len(value))):
            ahead = rewards[place] + gamma * after - value[place] + gamma * lam * ahead
            advantage[place], after = ahead, value[place]
        rows.append(
            {"ids": ids, "begin": len(ids) - len(old), "old": old, "value": value, "advantage": advantage}
            | {"return": advantage + value}
        )
    everything = torch.cat([row["advantage"] for row in rows])
    for row in rows:
        row["advantage"] = (row["advantage"] - everything.mean()) / (everything.std(unbiased=False) + 1e-8)
    return rows


def test_the_critics_own_learning_rate_is_its_own(folder, tmp_path):
    """One step of Adam moves a weight by the rate."""
    ends = {}
    for rate in (None, 1e-5):
        config = parse_config(
            critic_values(
                folder, critic={"learning_rate": rate}, training={"weight_decay": 0.0}, rounds=1, minibatches=1
            )
        )
        run = tmp_path / str(rate)
        run_here(config, run, plan=prepared(config, folder))
        end = AutoModelForSequenceClassification.from_pretrained(checkpoint_of(run, 1) / "critic").score.weight
        start = AutoModelForSequenceClassification.from_pretrained(folder / "reward").score.weight
        ends[rate] = ((end - start).abs().max().item(), final_weights(run))
    assert ends[None][0] == pytest.approx(0.003, rel=1e-2)
    assert ends[1e-5][0] == pytest.approx(1e-5, rel=1e-2)
    assert ends[None][1] == ends[1e-5][1], "the policy's rate has changed"


# --- What is stored ---------------------------------------------------------------------------------------------------


def test_the_policy_stays_a_language_model_and_the_critic_stands_beside_it(whole):
    checkpoint = checkpoint_of(whole, 4)
    _, told = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    critic, told_of_critic = AutoModelForSequenceClassification.from_pretrained(
        checkpoint / "critic", output_loading_info=True
    )
    for one in (told, told_of_critic):
        assert not one["missing_keys"]
        assert not one["unexpected_keys"]
    assert critic.config.num_labels == 1
    assert not (checkpoint / "value_head.safetensors").exists()
    weights = (checkpoint / "critic" / "model.safetensors").read_bytes()
    assert weights != (checkpoint_of(whole, 2) / "critic" / "model.safetensors").read_bytes()


def test_a_checkpoint_has_all_of_the_critic_and_what_is_handed_out_has_none(folder, tmp_path):
    write_base(tmp_path)
    config = ModelConfig(path_or_name=str(tmp_path), from_scratch=False, lora={"r": 4})
    critic = load_critic(folder / "reward", tokenizer=tiny_tokenizer())
    # Of an adapter's model only what trains is stored.
    critic.backbone.register_buffer("scale", torch.ones(1))
    model = ActorCritic(build_model(config, tokenizer=tiny_tokenizer(), seed=0), critic)
    state = TrainState(model, build_optimizer(model, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8))
    stored = {name for name in take_snapshot(state).model if name.startswith("critic.")}
    assert stored == {f"critic.{name}" for name in critic.state_dict()}
    handed_out = take_snapshot(state, with_optimizer=False).model
    assert handed_out.keys() == {
        name for name, each in model.backbone.named_parameters("backbone") if each.requires_grad
    }


def test_weights_to_evaluate_have_no_critic_at_the_step_of_a_checkpoint_either(folder, tmp_path):
    values = critic_values(folder, rounds=1)
    values["generation"] = {"every_n_steps": 1, "scenario_configs": [{"name": "all"}]}
    config, run = parse_config(values), tmp_path / "run"
    run_here(config, run, plan=prepared(config, tmp_path))
    weights = [run / "evaluations" / f"step-{step:08d}" / "weights" for step in (1, 2)]
    assert all((folder / "model.safetensors").is_file() for folder in weights)
    assert not any((folder / "critic").exists() for folder in weights)
    assert (checkpoint_of(run, 2) / "critic").is_dir()


def kill(monkeypatch, owner, name, *, call, config, run, plan):
    with monkeypatch.context() as patch:
        killed_after(patch, owner, name, call=call)
        with pytest.raises(Killed):
            run_here(config, run, plan=plan)


def everything_learned(run):
    """Weights of both, and the optimizer's state."""
    checkpoint = RunDirectory(run).latest_checkpoint()
    files = ("model.safetensors", "critic/model.safetensors", "training_state/optimizer.safetensors")
    return [(checkpoint / name).read_bytes() for name in files]


@pytest.mark.parametrize(("owner", "name", "call"), [(RoundFiles, "write_logprobs", 2), (loop, "train_step", 3)])
def test_a_killed_run_ends_byte_for_byte(tmp_path, monkeypatch, config, plan, whole, owner, name, call):
    run = tmp_path / "run"
    kill(monkeypatch, owner, name, call=call, config=config, run=run, plan=plan)
    run_here(config, run, plan=plan)
    assert round_files(run) == round_files(whole)
    assert everything_learned(run) == everything_learned(whole)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_workers_go_on_where_one_was_killed(folder, tmp_path, monkeypatch, config, plan, whole, parallelism):
    """The answers of the last round are stored, so that both learn the same."""
    run = tmp_path / "run"
    kill(monkeypatch, RoundFiles, "write_rewards", call=2, config=config, run=run, plan=plan)
    before = round_files(run)
    two = parse_config(critic_values(folder, training={"parallelism": parallelism, "num_workers": 2}))
    (tmp_path / "ranks").mkdir()
    prepare_run(two, run, plan)
    run_on_ranks(partial(run_on_rank, two, run, plan), world_size=2, directory=tmp_path / "ranks")
    assert before.items() <= round_files(run).items()
    for one, other in zip(round_rows(run, "logprobs", 1), round_rows(whole, "logprobs", 1), strict=True):
        assert one["value"] == pytest.approx(other["value"], abs=1e-4)
    ours, theirs = checkpoint_of(run, 4), checkpoint_of(whole, 4)
    for kind, part in ((AutoModelForCausalLM, "."), (AutoModelForSequenceClassification, "critic")):
        mine, other = (kind.from_pretrained(one / part) for one in (ours, theirs))
        for (name, first), second in zip(mine.named_parameters(), other.parameters(), strict=True):
            assert (first - second).abs().mean() < 1e-4, name


def test_beside_an_adapter_the_whole_critic_learns_and_goes_on(folder, tmp_path, monkeypatch):
    write_base(tmp_path / "base")
    values = critic_values(folder)
    values["tokenizer"] = {"path_or_name": str(tmp_path / "base")}
    values["model"] = {"path_or_name": str(tmp_path / "base"), "from_scratch": False, "lora": {"r": 4, "alpha": 8}}
    config = parse_config(values)
    plan = prepared(config, tmp_path)
    run_here(config, tmp_path / "whole", plan=plan)
    run = tmp_path / "run"
    kill(monkeypatch, loop, "train_step", call=3, config=config, run=run, plan=plan)
    run_here(config, run, plan=plan)
    for name in ("adapter_model.safetensors", "critic/model.safetensors", "training_state/optimizer.safetensors"):
        mine, other = (checkpoint_of(one, 4) / name for one in (run, tmp_path / "whole"))
        assert mine.read_bytes() == other.read_bytes(), name
    assert not (checkpoint_of(run, 4) / "model.safetensors").exists()
    critic = AutoModelForSequenceClassification.from_pretrained(checkpoint_of(run, 4) / "critic")
    start = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    for (name, one), other in zip(critic.named_parameters(), start.parameters(), strict=True):
        assert not torch.equal(one, other), name


def test_a_checkpoint_that_has_lost_its_critic_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"step-00000004 has no critic/, which was learned beside its policy; restore it"
    ):
        resumed_critic(tmp_path / "step-00000004", tokenizer=tiny_tokenizer())


# --- What is refused ------------------------------------------------------------------------------------------------


def test_a_critic_with_other_tokens_is_refused(folder, tmp_path):
    tokenizer = tiny_tokenizer(vocab_size=290)
    tiny_gpt2(tokenizer).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    config = parse_config(critic_values(folder, critic={"model": str(tmp_path / "other")}))
    with pytest.raises(
        ConfigError, match=r"algorithm\.critic\.model .*other: \d+ of the policy's 300 tokens have no or"
    ):
        prepared(config, tmp_path)


def test_a_critic_that_is_none_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"algorithm\.critic\.model nowhere: no such directory"):
        prepared(parse_config(critic_values(folder, critic={"model": "nowhere"})), tmp_path)
    write_reward_model(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        prepared(parse_config(critic_values(folder, critic={"model": str(tmp_path / "cut")})), tmp_path)
    several = AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", num_labels=3, ignore_mismatched_sizes=True
    )
    write_reward_model(tmp_path / "biased")
    described = json.loads((tmp_path / "biased" / "config.json").read_text())
    for bias in ("much", None, float("inf")):
        (tmp_path / "biased" / "config.json").write_text(json.dumps(described | {"reward_bias": bias}))
        with pytest.raises(DataError, match=rf"biased: reward_bias in config\.json is {bias!r}; write a number"):
            prepared(parse_config(critic_values(folder, critic={"model": str(tmp_path / "biased")})), tmp_path)
    several.save_pretrained(tmp_path / "several")
    tiny_tokenizer().save_pretrained(tmp_path / "several")
    with pytest.raises(DataError, match="several is a classifier with 3 labels, and a reward model has one"):
        prepared(parse_config(critic_values(folder, critic={"model": str(tmp_path / "several")})), tmp_path)


def test_values_have_one_source(folder):
    values = critic_values(folder)
    values["model"]["model_kwargs"] = {"value_head_config": {"is_bounded": False}}
    with pytest.raises(ConfigError, match=r"set model\.model_kwargs\.value_head_config: null, or remove the critic"):
        parse_config(values)
    with pytest.raises(ConfigError, match=r"algorithm\.critic\.learning_rate follows .*; raise that from 0"):
        parse_config(critic_values(folder, critic={"learning_rate": 1e-5}, training={"learning_rate": 0.0}))


def test_a_changed_critic_is_refused_by_name(folder, tmp_path, monkeypatch):
    write_reward_model(tmp_path / "reward")
    config = parse_config(critic_values(folder, critic={"model": str(tmp_path / "reward")}))
    run = tmp_path / "run"
    kill(monkeypatch, loop, "train_step", call=3, config=config, run=run, plan=prepared(config, folder))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    torch.nn.init.ones_(model.score.weight)
    model.save_pretrained(tmp_path / "reward")
    with pytest.raises(ConfigError, match=r"the weights of the model that the critic starts from \(plan\.critic\)"):
        run_here(config, run, plan=prepared(config, folder))


def test_the_estimate_counts_the_critic_and_prompts_fit_both(folder, tmp_path, plan, config):
    from phf_ray.blocks.tokenizer import load_tokenizer
    from phf_ray.models.shape import planned_shape

    shape = planned_shape(config.model, tokenizer=load_tokenizer(config.tokenizer))
    critic = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    number = sum(parameter.numel() for parameter in critic.parameters())
    assert plan.critic.shape.num_parameters == plan.critic.shape.num_trained == number
    assert f"critic       {number:,}, {number:,} trained" in list(describe_rounds(config, plan, shape=shape))

    small = tiny_gpt2(tiny_tokenizer())
    small.config.n_positions = 14
    type(small)(small.config).save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    narrow = parse_config(critic_values(folder, critic={"model": str(tmp_path / "small")}))
    with pytest.raises(ConfigError, match=r"all 12 prompts are longer than 2 tokens"):
        prepared(narrow, tmp_path)
