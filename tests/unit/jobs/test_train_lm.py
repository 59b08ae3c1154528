import pytest

from jobs.train_lm import default_run_name, parser
from phf_ray.storage.data_set_names import absolute_source


@pytest.mark.parametrize(
    ("task", "method", "name"),
    [
        ("configs/toxicity/pretrain.yml", "configs/toxicity/mle.yml", "toxicity-mle"),
        ("pep8", None, "pep8"),
        ("pep8/finetune", "ul_finetune", "pep8-finetune-ul_finetune"),
        ("pep8/finetuning", None, "pep8-finetune"),
    ],
)
def test_a_run_is_named_after_its_task_and_method(task, method, name):
    assert default_run_name(task, method) == name


def test_task_and_method_are_all_that_a_run_needs():
    arguments = parser().parse_args(["--task", "toxicity", "--method", "mle"])
    assert (arguments.run_name, arguments.storage_path) == (None, "runs")


def test_data_sets_of_the_hub_keep_their_names_and_folders_becomeabsolute_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "scored").mkdir(parents=True)
    for name in ("tomekkorbak/detoxify-pile-chunk3-0-50000", "s3://bucket/scored"):
        assert absolute_source(name) == name
    assert absolute_source("data/scored") == str(tmp_path / "data" / "scored")
    assert absolute_source("data/none") == str(tmp_path / "data" / "none")
