import pytest

from jobs.train_lm import default_run_name, parser


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
