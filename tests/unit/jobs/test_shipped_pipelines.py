"""The shipped pipelines from end to end, on stand-ins of a few thousand weights, in this process and without Ray."""

import importlib
import json
import logging

import pytest
from boards import few_resamples
from jobs_here import work_here
from tiny_models import TEXTS, tiny_gpt2, tiny_tokenizer, write_checkpoint
from transformers import GPT2ForSequenceClassification

from jobs import pipeline
from jobs.commands import module_of
from phf_ray.errors import PhfError
from phf_ray.judging.board import write
from phf_ray.runs.directory import RunDirectory

pytestmark = pytest.mark.timeout(600)
log = logging.getLogger(__name__)

TINY = ("training.effective_batch_size=4", "training.per_device_train_batch_size=4", "training.precision=fp32")
ROUNDS = ("rollouts.rounds=2", "rollouts.prompts_per_round=4", "rollouts.max_tokens=8", "rollouts.epochs=1")


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    """All in this process, in a folder with a space, and without plots."""
    work_here(monkeypatch)
    monkeypatch.setattr(write, "draw_board_plots", lambda board: [])
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    write_checkpoint(tmp_path / "a b" / "base", ours=False, padded=False)


def run(name, *words):
    """Run a shipped pipeline, every stage in this process. Return the stages that ran."""
    ran = []

    def run_stage(command, argv):
        ran.append(command)
        try:
            return importlib.import_module(module_of(command)).main(list(argv)) or 0
        except PhfError as error:
            log.exception("the stage failed")
            return error.exit_code

    with few_resamples():
        assert pipeline.main([name, *words], run_stage=run_stage) == 0
    return ran


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def overrides(**stages):
    return ["--override", *(f"{name}.{one}" for name, given in stages.items() for one in (*TINY, *given))]


def test_the_four_stages_of_rlhf(tmp_path):
    here = tmp_path / "a b"
    texts = [{"text": f"{text} {number}"} for number in range(8) for text in TEXTS]
    pairs = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": f"{n}!"} for n in range(8)]
    model = GPT2ForSequenceClassification(
        type(tiny_gpt2(tiny_tokenizer()).config).from_pretrained(
            here / "base",
            num_labels=2,
            id2label={0: "NEGATIVE", 1: "POSITIVE"},
            label2id={"NEGATIVE": 0, "POSITIVE": 1},
        )
    )
    model.save_pretrained(here / "classifier")
    tiny_tokenizer().save_pretrained(here / "classifier")
    lines(here / "texts.jsonl", texts)
    lines(here / "held_out.jsonl", texts[:2])
    lines(here / "pairs.jsonl", pairs)
    lines(here / "prompts.jsonl", [{"text": f"the {n} "} for n in range(8)])
    words = ["--set", "model=base", "domain=texts.jsonl", "domain_held_out=held_out.jsonl", "texts=texts.jsonl"]
    words += ["comparisons=pairs.jsonl", "prompts=prompts.jsonl", "classifier=classifier"]
    short = ("dataset.seq_length=48", "dataset.held_out_fraction=0")
    # At its first step a learning rate that warms up is 0, and so is a new head.
    learns = (*short, "dataset.seq_length=96", "training.num_epochs=4", "training.learning_rate=0.01")
    words += overrides(domain=short, sft=short, reward=learns, ppo=(*short, *ROUNDS))
    assert len(run("rlhf", *words)) == 6
    runs = here / "out" / "rlhf" / "runs"
    assert any("eval/domain/perplexity" in row for row in RunDirectory(runs / "domain").read_metrics())
    adapters = {
        name: json.loads(next(runs.glob(f"{name}/**/adapter_config.json")).read_text()) for name in ("sft", "reward")
    }
    assert {name: (one["r"], one["lora_alpha"], one["lora_dropout"]) for name, one in adapters.items()} == {
        "sft": (16, 32, 0.05),
        "reward": (8, 32, 0.1),
    }
    rounds = [row for row in RunDirectory(runs / "ppo").read_metrics() if "rollouts/round" in row]
    assert [row["rollouts/round"] for row in rounds] == [0, 1]
    assert all(row["rewards/model/mean"] != 0 and isinstance(row["rollouts/gold"], float) for row in rounds)
    plan = json.loads((runs / "ppo" / "plan.json").read_text())
    assert str(here / "out" / "rlhf" / "merged") in json.dumps(plan), "PPO starts from the finetuned model"
    assert run("rlhf", *words) == []


def test_pretraining_with_human_feedback(tmp_path):
    here = tmp_path / "a b"
    (here / "src").mkdir()
    for number in range(12):
        (here / "src" / f"m{number}.py").write_text("".join(f"a{n}={n} \nb = {n}\n" for n in range(number, number + 9)))
    scenario = "{name: free, num_samples: 4, generate_kwargs: {max_length: 24}}"
    base = ("model.path_or_name=base", "tokenizer.path_or_name=base", "training.num_tokens=1000")
    base += ("dataset.seq_length=48", "dataset.held_out_fraction=0", "training.save_steps=null")
    base += ("model.config_kwargs={}", "generation.scenario_configs=[]")
    words = ["--set", "input=src", "num_samples=4", "seeds='0'"]
    words += overrides(mle=base, conditional=base, report=(f"generation.scenario_configs=[{scenario}]",))
    assert run("pep8", *words) == ["score-corpus", "train-lm", "train-lm", "evaluate-lm"]
    report = json.loads((here / "out" / "pep8" / "report" / "report.json").read_text())
    assert {row["arm"] for row in report["table"]} == {"mle", "conditional:good", "conditional:bad"}
    assert run("pep8", *words) == []


def test_alpaca_farm(tmp_path):
    here = tmp_path / "a b"
    rows = [{"instruction": f"def f{n}(a):", "input": "", "output": f"return {n}"} for n in range(8)]
    lines(here / "rows.jsonl", rows)
    words = ["--set", "model=base", "max_tokens=8", "p_label_flip=0"]
    words += [f"{name}=rows.jsonl" for name in ("demonstrations", "to_compare", "unlabeled", "evaluation")]
    plain = ("dataset.prompt_template=plain", "dataset.seq_length=96", "dataset.max_length=48")
    plain += ("training.parallelism=ddp", "training.num_epochs=1")
    words += overrides(sft=plain, reward=plain, ppo=(*plain, *ROUNDS))
    assert len(run("alpaca", *words)) == 7
    board = json.loads((here / "out" / "alpaca" / "leaderboard" / "leaderboard.json").read_text())
    assert [row["name"] for row in board["models"]] == ["ppo"]
    assert run("alpaca", *words) == []
