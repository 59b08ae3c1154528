"""Configurations by name, from whatever folder a job is started in."""

from pathlib import Path

import pytest
from places import ROOT

from phf_ray.config import load_config, shipped_folder, task_path
from phf_ray.config.shipped import method_names, method_path, shipped_or_own, task_names
from phf_ray.errors import ConfigError
from phf_ray.evaluation.prompts import read_prompts
from phf_ray.models.shape import planned_shape

CONFIGS = ROOT / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_clone_has_them_at_its_top():
    assert shipped_folder() == CONFIGS


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pep8", "pep8/pretrain.yml"),
        ("pep8/finetune", "pep8/finetune.yml"),
        ("examples/llama_1b_8gpu", "examples/llama_1b_8gpu.yml"),
    ],
)
def test_a_task_is_found_by_name(name, file):
    assert task_path(name) == CONFIGS / file
    assert load_config(name) == load_config(CONFIGS / file)


@pytest.mark.parametrize(
    "name",
    ["configs/pep8/finetuning.yml", "pep8/finetuning", str(CONFIGS / "pep8" / "finetuning.yml")],
)
def test_the_original_name_of_the_task_that_finetunes_is_another_name_of_it(name, elsewhere):
    assert load_config(name, "configs/pep8/ul_finetune.yml") == load_config("pep8/finetune", "ul_finetune")
    own = elsewhere / "finetuning.yml"
    own.write_text("training: {seed: 7}\n")
    assert load_config("finetuning.yml").training.seed == 7


@pytest.mark.parametrize("name", ["conditional", "conditional_finetune", "pep8/conditional"])
def test_a_method_is_found_beside_its_task_or_by_both_names(name):
    file = CONFIGS / "pep8" / f"{name.removeprefix('pep8/')}.yml"
    assert method_path(name, task=task_path("pep8/finetune")) == file
    assert load_config("pep8/finetune", name) == load_config(CONFIGS / "pep8" / "finetune.yml", file)


def test_all_names_that_are_listed_are_found():
    assert {"pep8", "pep8/finetune", "toxicity", "pii", "demo"} <= set(task_names())
    for task in task_names():
        load_config(task)
    for method in method_names(task_path("pep8")):
        load_config("pep8", method)


@pytest.mark.parametrize("text", ["mine.yml", "./mine.yml", "folder/mine.yaml", "pep8", "folder/pep8"])
def test_a_path_is_a_path(text, elsewhere):
    file = elsewhere / text
    file.parent.mkdir(exist_ok=True)
    file.write_text("training: {seed: 7}\n")
    assert load_config(text).training.seed == 7
    assert load_config(str(file)).training.seed == 7


def test_a_folder_of_the_users_hides_no_name(elsewhere):
    (elsewhere / "pep8").mkdir()
    assert task_path("pep8") == CONFIGS / "pep8" / "pretrain.yml"


def test_methods_beside_a_task_of_the_users_have_names_too(elsewhere):
    (elsewhere / "task.yml").write_text("extends: pep8\ntraining: {seed: 7}\n")
    (elsewhere / "slow.yaml").write_text("training: {learning_rate: 1.0e-6}\n")
    config = load_config("./task.yml", "slow")
    assert (config.training.seed, config.training.learning_rate) == (7, 1e-6)
    assert config.scorer["class_name"] == "PEP8Scorer"
    with pytest.raises(ConfigError, match=r"no method 'fast'.*the methods of task\.yml are slow; a path works too"):
        load_config("./task.yml", "fast")


@pytest.mark.parametrize(
    ("task", "method", "said"),
    [
        ("pep9", None, r"no task 'pep9' \(did you mean pep8\?\).*pep8/finetune, pii, .*a path works too.*\./pep9\.yml"),
        ("pep8/finetun", None, r"no task 'pep8/finetun' \(did you mean pep8/finetune\?\)"),
        ("pep8", "condtional", r"no method 'condtional' \(did you mean conditional\?\).*awr, .*a path works too"),
        ("pep8", "toxicity/mel", r"no method 'toxicity/mel'"),
        ("nowhere.yml", None, r"nowhere\.yml: No such file.*or a name such as pep8"),
    ],
)
def test_an_unknown_name_is_answered_with_those_that_exist(task, method, said):
    with pytest.raises(ConfigError, match=said) as raised:
        load_config(task, method)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("task", ["pep8", "pii", "toxicity"])
def test_prompts_of_shipped_tasks_are_read_from_any_folder(task, elsewhere):
    path = load_config(task).red_team.prompts_path
    assert path is not None
    assert len(read_prompts(path)) > 10
    (elsewhere / path).parent.mkdir(parents=True)
    (elsewhere / path).write_text('{"text": "own"}\n')
    assert read_prompts(path) == ["own"]


def test_other_paths_are_left_alone():
    for path in ("prompts/pii.jsonl", "/configs/prompts/pii.jsonl", "configs/prompts/none.jsonl", "s3://configs/a"):
        assert shipped_or_own(path) == path


@pytest.mark.parametrize(("size", "millions"), [("124m", 124), ("350m", 350), ("1b", 1000), ("3b", 3000), ("7b", 7000)])
@pytest.mark.parametrize("kind", ["", "_gpt2"])
def test_shapes_of_models_have_the_size_of_their_name(size, millions, kind):
    config = load_config("toxicity", "conditional", model=f"{size}{kind}")
    assert config.model.num_additional_tokens == 2
    shape = planned_shape(config.model, tokenizer=range(50259))
    assert shape.num_parameters == pytest.approx(millions * 1e6, rel=0.35)


def test_a_shape_replaces_the_task_s_and_the_method_goes_over_it(elsewhere):
    config = load_config("demo", "awr", ["model.config_kwargs.n_layer=3"], model="124m_gpt2")
    assert config.model.config_kwargs == {"n_embd": 768, "n_layer": 3, "n_head": 12, "n_positions": 2048}
    assert config.model.model_kwargs.value_head_config is not None
    with pytest.raises(ConfigError, match=r"there is no model '350'.*did you mean 350m"):
        load_config("demo", model="350")
    (elsewhere / "odd.yml").write_text("training: {seed: 1}\n")
    with pytest.raises(ConfigError, match="one section, `model:`; it has training"):
        load_config("demo", model="odd.yml")
