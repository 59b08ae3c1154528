"""Every configuration that is shipped loads, and says nothing twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

from jobs import pipeline
from phf_ray.config import Config, Quantile, load_config, pipeline_path
from phf_ray.models.shape import planned_shape
from phf_ray.training.memory import memory_per_device

CONFIGS = ROOT / "configs"
TASKS = ("toxicity", "pii", "pep8")
METHODS = ("mle", "conditional", "filtering", "ul", "awr", "rwr")
# As the original's files state them, and the paper's appendix A: learning rate, sequences per step, the rest by name.
PRETRAINING = {
    ("toxicity", "mle"): (5e-4, 64, {}),
    ("toxicity", "conditional"): (5e-4, 64, {"threshold": 5.6e-4, "drop_token_fraction": 0.01}),
    ("toxicity", "filtering"): (5e-4, 64, {"threshold": 7.8e-4}),
    ("toxicity", "ul"): (5e-4, 64, {"threshold": 7.8e-4, "alpha": 1}),
    ("toxicity", "rwr"): (5e-4, 1024, {"beta": 10}),
    ("toxicity", "awr"): (1e-3, 1024, {"alpha": 0.5, "beta": 10}),
    ("pii", "mle"): (5e-4, 64, {}),
    ("pii", "conditional"): (5e-4, 64, {"threshold": 0, "drop_token_fraction": 0.01}),
    ("pii", "filtering"): (5e-4, 64, {"threshold": 2.86e-4}),
    ("pii", "ul"): (5e-4, 64, {"threshold": 0, "alpha": 1}),
    ("pii", "rwr"): (5e-4, 64, {"beta": 10}),
    ("pii", "awr"): (5e-4, 64, {"alpha": 0.5, "beta": 0.1}),
    ("pep8", "mle"): (8e-4, 64, {}),
    ("pep8", "conditional"): (8e-4, 64, {"threshold": 0, "drop_token_fraction": 0.1}),
    ("pep8", "filtering"): (8e-4, 64, {"threshold": 2.361e-3}),
    ("pep8", "ul"): (8e-4, 64, {"threshold": 0, "alpha": 0.01}),
    ("pep8", "rwr"): (1e-3, 64, {"beta": 10}),
    ("pep8", "awr"): (1e-3, 256, {"alpha": 0.05, "beta": 1}),
}
# Where the original has no file, which ours say of themselves, it is as in pretraining.
FINETUNING = {
    **PRETRAINING,
    ("toxicity", "rwr"): (5e-4, 512, {"beta": 10}),
    ("toxicity", "awr"): (1e-3, 512, {"alpha": 0.5, "beta": 10}),
    ("pii", "mle"): (1e-4, 128, {}),
    ("pii", "conditional"): (1e-4, 128, {"threshold": 0, "drop_token_fraction": 0.01}),
    ("pii", "filtering"): (1e-4, 128, {"threshold": 2.86e-4}),
    ("pii", "ul"): (1e-4, 128, {"threshold": 0, "alpha": 1}),
    ("pii", "rwr"): (1e-4, 512, {"beta": 10}),
    ("pii", "awr"): (1e-4, 512, {"alpha": 0.5, "beta": 0.1}),
}
TOKENIZER = {"toxicity": "gpt2", "pii": "gpt2", "pep8": "codeparrot/codeparrot-small"}
STARTS = {  # task -> model that is finetuned, its revision, tokens that it has seen
    "toxicity": ("tomekkorbak/goofy_pasteur", "81a1701e025d2c65ae6e8c2103df559071523ee0", 1_661_599_744),
    "pii": ("tomekkorbak/nervous_wozniak", "9e6c78543a6ff1e4089002c38864d5a9cf71ec90", 1_649_999_872),
    "pep8": ("kejian/mighty-mle", "cf05a2b0558c03b08c78f07662c22989785b9520", 1_649_999_872),
}

ROLLOUTS = {
    *("rollouts", "ppo", "ppo_critic", "ppo_sim", "ppo_human", "rloo", "grpo", "reinforce"),
    *("quark", "expert_iteration", "raft", "online_dpo"),
}
"""Methods of train-rl, and the part that they share."""


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("parent", "suffix"), [("pretrain", ""), ("finetune", "_finetune")])
def test_every_method_of_the_paper_loads(task, method, parent, suffix):
    config = load_config(CONFIGS / task / f"{parent}.yml", CONFIGS / task / f"{method}{suffix}.yml")
    expected = {"ul": "Unlikelihood", "awr": "AWR", "rwr": "RWR"}.get(method, "MLE")
    assert config.objective.name == expected
    assert (config.dataset.conditional_training_config is not None) == (method == "conditional")
    assert (config.dataset.filter_threshold is not None) == (method == "filtering")
    assert (config.dataset.skip_tokens > 0) == (parent == "finetune")
    assert config.model.num_additional_tokens == len(config.tokenizer.special_tokens)


def stated(config: Config) -> dict[str, float]:
    """Threshold, drop fraction, alpha and beta, where the method has them; of a threshold the paper's number."""
    conditional = config.dataset.conditional_training_config
    thresholds = [
        config.dataset.filter_threshold,
        getattr(config.objective, "score_threshold", None),
        None if conditional is None else conditional.threshold,
    ]
    found = {
        "threshold": next((one for one in thresholds if one is not None), None),
        "drop_token_fraction": None if conditional is None else conditional.drop_token_fraction,
        "alpha": getattr(config.objective, "alpha", None),
        "beta": getattr(config.objective, "beta", None),
    }
    return {
        name: value.korbak2023 if isinstance(value, Quantile) else value
        for name, value in found.items()
        if value is not None
    }


@pytest.mark.parametrize("parent", ["pretrain", "finetune"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_values_are_those_of_the_paper(task, method, parent):
    finetunes = parent == "finetune"
    file = CONFIGS / task / f"{method}{'_finetune' if finetunes else ''}.yml"
    config = load_config(CONFIGS / task / f"{parent}.yml", file)
    learning_rate, sequences, values = (FINETUNING if finetunes else PRETRAINING)[task, method]
    training, dataset, model = config.training, config.dataset, config.model
    assert (training.learning_rate, training.effective_batch_size) == (learning_rate, sequences)
    assert stated(config) == values
    name, revision, seen = STARTS[task] if finetunes else (TOKENIZER[task], None, 0)
    assert (model.path_or_name, model.revision, model.from_scratch) == (name, revision, not finetunes)
    assert config.tokenizer.path_or_name == TOKENIZER[task]
    assert (training.num_tokens, dataset.skip_tokens, training.tokens_already_seen) == (3_300_000_000, seen, seen)
    assert (dataset.seq_length, training.weight_decay, training.warmup_ratio, training.seed) == (1024, 0.1, 0.01, 42)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.glob("demo*/*.yml")) if path.stem != "rollouts"],
    ids=lambda path: path.name,
)
def test_demo_configs_load(path):
    # Hindsight learns from two, and weighs them.
    two = ["dataset.datasets=[first,second]"]
    load_config(path.parent / "pretrain.yml", None if path.stem == "pretrain" else path, two)


@pytest.mark.parametrize(
    "path",
    [
        path
        for task in ("alpaca", "rlhf", "coh")
        for path in sorted((CONFIGS / task).glob("*.yml"))
        if path.stem not in {*ROLLOUTS, "pipeline"}
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_methods_of_feedback_load(path):
    config = load_config(path.parent / "task.yml", None if path.stem == "task" else path)
    names = {"dpo": "DPO", "kto": "KTO", "reward_model": "BradleyTerry"}
    # AlpacaFarm has a reward model of simulated and one of human preferences.
    name = path.stem.removesuffix("_sim").removesuffix("_human")
    assert config.objective.name == names.get(name, "MLE")


@pytest.mark.parametrize("name", sorted(ROLLOUTS - {"rollouts"}))
def test_methods_of_rounds_load(name):
    config = load_config(CONFIGS / "alpaca" / "task.yml", CONFIGS / "alpaca" / f"{name}.yml")
    assert config.algorithm.name == ("ppo" if name.startswith("ppo") else name)
    assert (config.critic is not None) == (name == "ppo_critic")
    assert (config.rollouts.temperature, config.rollouts.max_tokens, config.rollouts.max_prompt_tokens) == (1, 300, 192)
    if name.startswith("ppo"):
        # AlpacaFarm's coefficients.
        assert config.algorithm.kl_coef == (0.02 if name == "ppo_human" else 0.0067)


def test_rlhf_has_the_values_of_the_article():
    configs = {
        name: load_config(CONFIGS / "rlhf" / "task.yml", CONFIGS / "rlhf" / f"{name}.yml")
        for name in ("domain", "sft", "reward_model", "ppo")
    }
    assert {name: config.model.path_or_name for name, config in configs.items()} == {
        **dict.fromkeys(("domain", "reward_model", "ppo"), "gpt2"),
        "sft": "facebook/opt-350m",
    }
    lora = {name: config.model.lora for name, config in configs.items()}
    found = {name: one and (one.r, one.alpha, one.dropout) for name, one in lora.items()}
    assert found == {"domain": None, "sft": (16, 32, 0.05), "reward_model": (8, 32, 0.1), "ppo": None}
    assert configs["sft"].dataset.seq_length == 512
    ppo = configs["ppo"]
    assert (ppo.algorithm.name, ppo.training.learning_rate) == ("ppo", 1.41e-5)
    (reward,) = ppo.rollouts.reward
    assert reward.scorer["path"] == "lvwerra/distilbert-imdb"
    assert (reward.scorer["label"], reward.scorer["negate"]) == ("POSITIVE", True), "a positive text is worth more"


@pytest.mark.parametrize(
    ("name", "values"), [("rlhf", ["prompts=configs"]), ("pep8", ["input=jobs"]), ("alpaca", ["p_label_flip=0"])]
)
def test_pipelines_can_run(name, values, tmp_path, capsys):
    assert pipeline.main([name, "--set", *values, "--output", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "state   to do" in capsys.readouterr().out
    assert pipeline_path(name) == CONFIGS / name / "pipeline.yml"


def test_the_example_of_a_billion_weights_has_the_shape_that_it_names():
    config = load_config(CONFIGS / "examples" / "llama_1b_8gpu.yml")
    training = config.training
    assert (training.parallelism, training.precision, training.num_workers) == ("fsdp2", "bf16", 8)
    assert training.torch_compile
    assert training.gradient_checkpointing
    shape = planned_shape(config.model, tokenizer=Words(50_257 + 2))
    assert shape.num_parameters == 1_076_168_704
    assert (shape.num_layers, shape.width, shape.num_rows) == (16, 2048, 50_304)
    memory = memory_per_device(config, shape, has_gpu=True)
    assert memory.total < 80e9, "fits a GPU of 80 GB"
    assert memory.weights == pytest.approx(4 * shape.num_parameters / 8)


class Words:
    """As much of a tokenizer as a shape depends on."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def methods_and_parents() -> list[tuple[Path, Path]]:
    pairs = []
    for task in TASKS:
        for method in METHODS:
            pairs.append((CONFIGS / task / f"{method}.yml", CONFIGS / task / "pretrain.yml"))
            pairs.append((CONFIGS / task / f"{method}_finetune.yml", CONFIGS / task / "pretrain.yml"))
    return pairs


@pytest.mark.parametrize(
    ("method", "parent"), methods_and_parents(), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_no_method_repeats_a_value_of_its_parent(method, parent):
    inherited = dict(leaves(yaml.safe_load(parent.read_text())))
    own = yaml.safe_load(method.read_text()) or {}
    repeated = [path for path, value in leaves(own) if path in inherited and inherited[path] == value]
    # A finetuning method may state a value that equals the pretraining one where the finetune task differs; none does.
    assert repeated == []


@pytest.mark.parametrize(
    "method", [path for path, _ in methods_and_parents()], ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_a_run_that_is_killed_loses_little_and_some_text_is_held_out(method):
    config = load_config(method.parent / ("finetune.yml" if "finetune" in method.stem else "pretrain.yml"), method)
    training = config.training
    assert training.save_steps <= 1000
    assert training.save_steps * training.effective_batch_size * config.dataset.seq_length <= 132_000_000
    assert training.save_total_limit == 3
    assert config.dataset.held_out_fraction == 0.001
