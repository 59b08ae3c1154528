"""README.md of a checkpoint: read as a hub reads it."""

import pytest
from huggingface_hub import ModelCard

from phf_ray.checkpoint import CheckpointInfo, Control, write_info
from phf_ray.config import parse_config
from phf_ray.models.card import model_card

INFO = CheckpointInfo(
    task="pep8",
    objective={"name": "Unlikelihood", "alpha": 0.01},
    thresholds={"objective": 0.0},
    scorer={"name": "pep8", "unit": "violations per character"},
    corpus_hash="0123",
    step=25_177,
    tokens_seen=3_300_000_000,
    versions={"phf-ray": "0.1.0", "torch": "2.13"},
)
METRICS = {
    "eval/bits_per_byte": 0.81234,
    "generation/unconditional/score": 0.0021,
    "KL/KL(GPT3, model)": 110.5,
    "train/loss": 2.5,
    "train/tokens_per_s": 1e5,
    "generation/unconditional/all_samples": {"columns": [], "rows": []},
}


def card(*, info=INFO, metrics=METRICS, checkpoint_path=None, **config):
    values = parse_config(config)
    return model_card(info, config=values, corpora=["scored"], metrics=metrics, checkpoint_path=checkpoint_path)


def test_a_hub_reads_what_it_is_and_what_was_measured():
    data = ModelCard(card(dataset={"datasets": ["owner/corpus", "data/local/scored"]})).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["pretraining-with-human-preferences", "pep8"]
    assert data.datasets == ["owner/corpus"]
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {name: METRICS[name] for name in list(METRICS)[:4]}


def test_a_loss_of_pairs_is_per_pair():
    pairs = INFO.model_copy(update={"objective": {"name": "BradleyTerry"}})
    text = card(info=pairs, objective={"name": "BradleyTerry"})
    assert "| training loss, nats per pair | 2.5 |" in text
    assert "per token" not in text
    assert "| training loss, nats per token | 2.5 |" in card()


def test_a_model_of_answers_judged_one_by_one_says_so():
    text = card(info=INFO.model_copy(update={"objective": {"name": "KTO"}}), objective={"name": "KTO"})
    assert "learned from answers called good or bad" in text
    assert "| training loss per answer | 2.5 |" in text
    assert "pretrained with human preferences" not in text


def test_rows_of_another_system_are_described_as_they_are():
    reward = {"objective": {"name": "BradleyTerry"}, "rows": {"template": "plain", "template_text": "", "length": 8}}
    ours, theirs = (
        card(info=CheckpointInfo.model_validate({**INFO.model_dump(), **reward, "compat": compat}))
        for compat in (None, "alpaca_farm")
    )
    assert "the answer and the end-of-text token" in ours
    assert "without an end" in theirs


def test_a_reader_finds_data_objective_scorer_and_results():
    text = card()
    for part in (
        "# pep8: Unlikelihood",
        "step 25,177 after 3,300,000,000 tokens",
        "| data | scored |",
        '| objective | `{"name": "Unlikelihood", "alpha": 0.01}` |',
        "| thresholds | objective 0 |",
        "| scorer | pep8 (violations per character) |",
        "| held-out bits per byte | 0.8123 |",
        "| samples: unconditional/score | 0.0021 |",
        "| corpus hash | `0123` |",
        "phf-ray 0.1.0, torch 2.13",
    ):
        assert part in text
    assert "tokens_per_s" not in text


@pytest.mark.parametrize(("policy", "words"), [("ban", "must not be sampled"), ("retag", "removed from samples")])
def test_control_tokens_are_explained(policy, words):
    info = INFO.model_copy(update={"control": Control(good="<|aligned|>", bad="<|misaligned|>", policy=policy)})
    control = {"conditional_training_config": {"threshold": 0.0}}
    tokens = {"special_tokens": ["<|aligned|>", "<|misaligned|>"]}
    text = card(info=info, dataset=control, tokenizer=tokens)
    assert "`<|aligned|>`" in text
    assert words in text
    assert "# pep8: conditional training" in text


def test_no_folder_of_this_machine_is_named(tmp_path):
    text = card(
        dataset={"datasets": [str(tmp_path), "./here/scored", "s3://bucket/corpus"]},
        model={"path_or_name": str(tmp_path), "from_scratch": False},
    )
    assert str(tmp_path) not in text
    assert "bucket" not in text
    assert "base_model" not in text


def test_a_model_that_started_from_a_checkpoint_names_that_and_no_base_model(tmp_path):
    model = {"path_or_name": "owner/model", "from_scratch": False}
    assert ModelCard(card(model=model)).data.base_model == "owner/model"
    start = tmp_path / "weights"
    start.mkdir()
    text = card(model=model, checkpoint_path=str(start))
    assert ModelCard(text).data.base_model is None
    assert "| started from | the weights of `weights` |" in text
    write_info(start, INFO)
    text = card(model=model, checkpoint_path=str(start))
    assert "weights of another run (pep8, objective Unlikelihood) at step 25,177, after 3,300,000,000 tokens" in text
    assert str(tmp_path) not in text


def test_before_anything_is_measured_the_card_says_so():
    assert card(metrics={}).endswith("## Results\n\nNone yet.\n")


def test_data_sets_of_the_hub_are_named_by_their_ids():
    names = ["owner/corpus:en@train", "owner/corpus:de", "data/local/scored", "wikitext:small@train"]
    assert ModelCard(card(dataset={"datasets": names})).data.datasets == ["owner/corpus"]
