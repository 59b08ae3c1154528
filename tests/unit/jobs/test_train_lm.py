import json

import pytest

from jobs import build_blocks
from jobs.train_lm import default_run_name, main, parser
from phf_ray.config import load_config
from phf_ray.errors import ConfigError
from phf_ray.runs.directory import RunDirectory
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


def test_data_sets_of_the_hub_keep_their_names_and_folders_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "scored").mkdir(parents=True)
    for name in ("tomekkorbak/detoxify-pile-chunk3-0-50000", "s3://bucket/scored"):
        assert absolute_source(name) == name
    assert absolute_source("data/scored") == str(tmp_path / "data" / "scored")
    assert absolute_source("data/none") == str(tmp_path / "data" / "none")


@pytest.mark.parametrize("job", ["train_lm", "build_blocks"])
def test_text_without_scores_is_refused_before_ray_starts_where_a_setting_reads_them(job, tmp_path, monkeypatch):
    monkeypatch.setattr(f"jobs.{job}.start_ray", lambda: pytest.fail("Ray was started"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Text.")
    values = {"dataset": {"datasets": [str(tmp_path / "texts")]}, "objective": {"name": "RWR"}}
    (tmp_path / "task.yml").write_text(json.dumps(values))
    arguments = ["--task", str(tmp_path / "task.yml")]
    run = build_blocks.main
    if job == "train_lm":
        run, arguments = main, [*arguments, "--storage-path", str(tmp_path / "runs")]
    with pytest.raises(ConfigError, match=r"texts has no scores, which objective\.name: RWR needs.*phf score-corpus"):
        run(arguments)
    assert not (tmp_path / "runs" / "blocks").exists()


def test_a_run_of_an_earlier_version_keeps_the_tokenizer_with_which_it_began(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    values = {"dataset": {"datasets": ["nothing"]}, "model": {"from_scratch": False, "path_or_name": "owner/model"}}
    (tmp_path / "task.yml").write_text(json.dumps(values))
    arguments = ["--task", str(tmp_path / "task.yml"), "--storage-path", str(tmp_path), "--run-name", "run"]
    seen = []
    monkeypatch.setattr("jobs.train_lm.check_adapters", lambda config, **_: seen.append(config.tokenizer.path_or_name))
    monkeypatch.setattr("jobs.train_lm._train", lambda *_, **__: pytest.exit("trained"))
    monkeypatch.setattr("jobs.train_lm._print_plan", lambda *_, **__: None)
    assert main([*arguments, "--dry-run"]) == 0
    before = load_config(str(tmp_path / "task.yml")).model_dump(mode="json")
    RunDirectory(tmp_path / "run").prepare(config=before, plan={})
    assert main([*arguments, "--dry-run"]) == 0
    assert seen == ["owner/model", "gpt2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "gpt=https://a.example,key_env=UNSET_KEY"}, "the environment variable UNSET_KEY holds no key"),
        ({"reference": "./none"}, r"kl_gpt3_callback\.reference"),
        ({"reference_samples": "none.jsonl"}, "none.jsonl: no such file"),
    ],
)
def test_a_reference_of_the_kl_is_checked_before_ray_starts(settings, message, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.train_lm.start_ray", lambda: pytest.fail("Ray was started"))
    (tmp_path / "texts.txt").write_text("Text.")
    values = {"dataset": {"datasets": [str(tmp_path / "texts.txt")]}, "kl_gpt3_callback": settings}
    (tmp_path / "task.yml").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        main(["--task", str(tmp_path / "task.yml"), "--storage-path", str(tmp_path / "runs")])


def test_a_reference_that_no_step_asks_for_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("jobs.train_lm.start_ray", lambda: (_ for _ in ()).throw(InterruptedError))
    (tmp_path / "texts.txt").write_text("Text.")
    never = {"every_n_steps": None, "run_on_train_end": False, "run_on_train_start": False}
    kl = {"reference_samples": "none.jsonl", **never}
    values = {"dataset": {"datasets": [str(tmp_path / "texts.txt")]}, "kl_gpt3_callback": kl}
    (tmp_path / "task.yml").write_text(json.dumps(values))
    with pytest.raises(InterruptedError):
        main(["--task", str(tmp_path / "task.yml"), "--storage-path", str(tmp_path / "runs")])
