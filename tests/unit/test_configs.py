"""Every configuration that is shipped loads, and says nothing twice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from phf_ray.config import load_config
from phf_ray.models import planned_shape
from phf_ray.pipelines import __file__ as anchor
from phf_ray.pipelines.estimate import memory_per_device

CONFIGS = Path(anchor).parents[2] / "configs"
TASKS = ("toxicity", "pii", "pep8")
METHODS = ("mle", "conditional", "filtering", "ul", "awr", "rwr")
PAPER = {  # (task, method) -> learning rate, sequences per step: reference tables of the paper's appendix A
    ("toxicity", "mle"): (5e-4, 64),
    ("toxicity", "awr"): (1e-3, 1024),
    ("toxicity", "rwr"): (5e-4, 1024),
    ("pii", "mle"): (5e-4, 64),
    ("pii", "awr"): (5e-4, 64),
    ("pep8", "mle"): (8e-4, 64),
    ("pep8", "rwr"): (1e-3, 64),
    ("pep8", "awr"): (1e-3, 256),
}


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


@pytest.mark.parametrize(("task", "method"), sorted(PAPER))
def test_values_are_those_of_the_paper(task, method):
    training = load_config(CONFIGS / task / "pretrain.yml", CONFIGS / task / f"{method}.yml").training
    assert (training.learning_rate, training.effective_batch_size) == PAPER[task, method]
    assert training.num_tokens == 3_300_000_000


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("demo*/*.yml")), ids=lambda path: path.name)
def test_demo_configs_load(path):
    load_config(path.parent / "pretrain.yml", None if path.stem == "pretrain" else path)


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
