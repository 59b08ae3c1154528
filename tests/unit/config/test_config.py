import pytest
import yaml

from phf_ray.config import (
    REPLACED,
    AWRConfig,
    MLEConfig,
    Quantile,
    RWRConfig,
    UnlikelihoodConfig,
    load_config,
    merge,
    parse_config,
)
from phf_ray.errors import ConfigError


def write(path, values):
    path.write_text(yaml.safe_dump(values) if isinstance(values, dict) else values, encoding="utf-8")
    return path


def test_overrides_win_over_method_and_method_over_task(tmp_path):
    task = write(tmp_path / "task.yml", {"training": {"learning_rate": 1.0, "seed": 1, "weight_decay": 0.5}})
    method = write(tmp_path / "method.yml", {"training": {"learning_rate": 2.0, "seed": 2}})
    training = load_config(task, method, ["training.seed=3"]).training
    assert (training.weight_decay, training.learning_rate, training.seed) == (0.5, 2.0, 3)


def test_numbers_that_yaml_reads_as_text_become_numbers(tmp_path):
    task = write(tmp_path / "task.yml", "training:\n  learning_rate: 1e-3\n  num_tokens: 3e9\n")
    training = load_config(task, None, ["training.weight_decay=2e-1"]).training
    assert (training.learning_rate, training.num_tokens, training.weight_decay) == (0.001, 3_000_000_000, 0.2)


def test_overrides_take_lists_null_and_values_with_an_equals_sign(tmp_path):
    task = write(tmp_path / "task.yml", {"training": {"save_steps": 5}})
    config = load_config(
        task,
        None,
        ["dataset.datasets=[a, b]", "training.save_steps=null", "tokenizer.path_or_name=dir/x=y"],
    )
    assert config.dataset.datasets == ("a", "b")
    assert config.training.save_steps is None
    assert config.tokenizer.path_or_name == "dir/x=y"


def test_all_errors_are_reported_at_once_with_what_to_write_instead():
    with pytest.raises(ConfigError) as raised:
        parse_config({"training": {"fp16": True, "lerning_rate": 1}, "datset": {}, "model": {"gpt2_config_kwargs": {}}})
    message = str(raised.value)
    assert "training.precision: bf16 or fp32" in message
    assert "did you mean 'learning_rate'?" in message
    assert "did you mean 'dataset'?" in message
    assert "use model.config_kwargs" in message


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"name": "DPO", "betta": 0.1}, r"objective\.betta: unknown key; did you mean 'beta'"),
        ({"name": "KTO", "betta": 0.1}, r"objective\.betta: unknown key; did you mean 'beta'"),
        ({"name": "BradleyTerry", "centering": 1}, r"objective\.centering: unknown key; did you mean 'centring'"),
        ({"name": "KTO", "desirable_weight": 0, "undesirable_weight": 0}, "nothing is learned"),
    ],
)
def test_what_is_wrong_with_an_objective_is_named(objective, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"objective": objective})


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"name": "rloo", "clipp": 0.1}, r"algorithm\.clipp: unknown key; did you mean 'clip'"),
        ({"name": "rloo", "scale_rewards": False}, r"scale_rewards: unknown key; another algorithm has it, the one"),
        (
            {"name": "ppo", "critic": {"model": "."}, "value_coef": 0},
            "value_coef is 0, so the critic would learn nothing; raise it",
        ),
        ({"name": "ppo", "critic": {"modle": "."}}, r"algorithm\.critic\.modle: unknown key; did you mean 'model'"),
    ],
)
def test_what_is_wrong_with_an_algorithm_is_named(algorithm, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"algorithm": algorithm})


def test_unknown_key_inside_a_list_of_sections_is_placed():
    with pytest.raises(
        ConfigError, match=r"scenario_configs\.0\.generate_kwargs\.topp: unknown key; did you mean 'top_p'"
    ):
        parse_config({"generation": {"scenario_configs": [{"name": "a", "generate_kwargs": {"topp": 1}}]}})


@pytest.mark.parametrize("key", sorted(REPLACED))
def test_every_replaced_key_is_refused_with_its_replacement(key):
    parts = key.split(".")
    if parts[:2] == ["model", "config_kwargs"]:
        pytest.skip("a free-form section: refused when the model is built")
    values = {parts[-1]: 1}
    for part in reversed(parts[:-1]):
        values = {part: [{"name": "s", **values}] if part == "scenario_configs" else values}
    if "objective" in values:
        values["objective"]["name"] = "AWR"
    with pytest.raises(ConfigError) as raised:
        parse_config(values)
    assert REPLACED[key] in str(raised.value)


def test_threshold_is_a_number_or_a_quantile_and_zero_is_a_number():
    zero = parse_config({"objective": {"name": "Unlikelihood", "score_threshold": 0}}).objective
    soft = parse_config({"objective": {"name": "Unlikelihood", "score_threshold": None}}).objective
    median = parse_config({"objective": {"name": "Unlikelihood", "score_threshold": {"quantile": 0.5}}}).objective
    assert isinstance(zero, UnlikelihoodConfig)
    assert (zero.score_threshold, soft.score_threshold, median.score_threshold) == (0.0, None, Quantile(quantile=0.5))


def test_changing_the_objective_drops_the_old_ones_keys():
    assert merge({"objective": {"name": "AWR", "alpha": 0.5}}, {"objective": {"name": "MLE"}}) == {
        "objective": {"name": "MLE"}
    }
    assert merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}) == {"a": {"x": 1, "y": 3}}


def test_another_algorithm_or_kind_of_reward_drops_the_old_ones_keys():
    ppo = {"algorithm": {"name": "ppo", "kl_coef": 0.02, "whiten_rewards": True}}
    assert merge(ppo, {"algorithm": {"name": "rloo"}}) == {"algorithm": {"name": "rloo"}}
    assert merge(ppo, {"algorithm": {"kl_coef": 1}})["algorithm"]["whiten_rewards"] is True
    shipped = {"rollouts": {"rounds": 80, "reward": {"model": "reward_model", "weight": 2.0}}}
    by_url = merge(shipped, {"rollouts": {"reward": {"url": "http://localhost:1"}}})
    assert by_url == {"rollouts": {"rounds": 80, "reward": {"url": "http://localhost:1"}}}
    same_kind = merge(shipped, {"rollouts": {"reward": {"model": "mine"}}})
    assert same_kind["rollouts"]["reward"] == {"model": "mine", "weight": 2.0}
    assert merge(shipped, {"rollouts": {"reward": {"weight": 3.0}}})["rollouts"]["reward"]["model"] == "reward_model"


def test_a_name_elsewhere_is_a_key_like_any_other(tmp_path):
    assert merge(
        {"generation": {"scorer_config": {"name": "a", "class_name": "X"}}},
        {"generation": {"scorer_config": {"name": "b"}}},
    ) == {"generation": {"scorer_config": {"name": "b", "class_name": "X"}}}


def test_overrides_of_a_new_objective_count_in_any_order(tmp_path):
    task = tmp_path / "task.yml"
    task.write_text("objective: {name: Unlikelihood, alpha: 0.1}\n")
    for overrides in (["objective.name=RWR", "objective.beta=3"], ["objective.beta=3", "objective.name=RWR"]):
        objective = load_config(task, overrides=overrides).objective
        assert isinstance(objective, RWRConfig)
        assert objective.beta == 3


def test_conditional_training_needs_its_tokens_in_the_tokenizer():
    with pytest.raises(ConfigError, match=r"special_tokens lacks the control tokens \['<\|aligned\|>'"):
        parse_config({"dataset": {"conditional_training_config": {"threshold": 0}}})


def test_awr_with_alpha_one_names_rwr_except_under_compat():
    values = {"objective": {"name": "AWR", "alpha": 1, "fixed_value": 0.0}}
    with pytest.raises(ConfigError, match="name: RWR"):
        parse_config(values)
    assert isinstance(parse_config({**values, "compat": "korbak2023"}).objective, AWRConfig)
    assert isinstance(parse_config({"objective": {"name": "RWR"}}).objective, RWRConfig)


def test_extends_is_a_chain_and_a_circle_is_refused(tmp_path):
    write(tmp_path / "base.yml", {"training": {"seed": 1, "weight_decay": 0.0}})
    child = write(tmp_path / "child.yml", {"extends": "base.yml", "training": {"seed": 2}})
    training = load_config(child).training
    assert (training.seed, training.weight_decay) == (2, 0.0)
    circle = write(tmp_path / "circle.yml", {"extends": "circle.yml"})
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(circle)


@pytest.mark.parametrize(
    ("text", "match"),
    [("a: [", "not valid YAML"), ("- 1", "expected sections"), (b"\xff\xfe", "not valid YAML")],
)
def test_a_broken_file_is_named(tmp_path, text, match):
    path = tmp_path / "broken.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=match) as raised:
        load_config(path)
    assert "broken.yml" in str(raised.value)


def test_a_missing_file_and_an_override_without_value_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yml"):
        load_config(tmp_path / "nowhere.yml")
    path = write(tmp_path / "task.yml", {})
    with pytest.raises(ConfigError, match=r"write section\.key=value"):
        load_config(path, None, ["training.seed"])
    assert isinstance(load_config(path).objective, MLEConfig)


def test_weights_are_one_per_data_set():
    values = {"dataset": {"datasets": ["a", "b"], "weights": [3, 1]}}
    assert parse_config(values).dataset.weights == (3.0, 1.0)
    for weights in ([1], [0, 0], [1, -1]):
        with pytest.raises(ConfigError, match="weights"):
            parse_config({"dataset": {"datasets": ["a", "b"], "weights": weights}})


def test_pushing_needs_a_name():
    with pytest.raises(ConfigError, match=r"push_to_hub: true needs hub_model_id"):
        parse_config({"training": {"push_to_hub": True}})
    assert parse_config({"training": {"push_to_hub": True, "hub_model_id": "owner/model"}}).training.hub_private_repo
    assert not parse_config({}).training.push_to_hub


def test_means_over_tokens_have_no_quantile_and_no_original():
    dataset = {"filter_average": "tokens", "filter_threshold": {"quantile": 0.5}}
    with pytest.raises(ConfigError, match="give the threshold as a number"):
        parse_config({"dataset": dataset})
    with pytest.raises(ConfigError, match="use segments with compat"):
        parse_config({"dataset": dataset | {"filter_threshold": 0.1}, "compat": "korbak2023"})
    parse_config({"dataset": dataset | {"filter_threshold": 0.1}})


def test_setting_one_key_of_the_gpu_pool_keeps_its_gpu():
    pools = parse_config({"scoring": {"pools": {"gpu": {"max": 2}, "cpu": {"max": 3}}}}).scoring.pools
    assert (pools.gpu.max, pools.gpu.num_gpus, pools.cpu.num_gpus) == (2, 1.0, 0.0)
    assert parse_config({"scoring": {"pools": {"gpu": {"num_gpus": 0.25}}}}).scoring.pools.gpu.num_gpus == 0.25
