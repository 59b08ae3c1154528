"""RewardModelScorer: minus the reward, the same for a text in any company, and nothing drawn at random."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_gpt2, tiny_llama, tiny_tokenizer
from tiny_rewards import write_reward_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.chat import template_source
from phf_ray.scorers.base import ReadsPrompts
from phf_ray.scorers.build import build_scorer

TEXTS = ["The fox jumps.", "a", "import os\n", "over the lazy dog, the fox", "Caf\u00e9 \u65e5\u672c!", "a b c d e f g"]


def open_scorer(folder, **settings):
    return build_scorer({"class_name": "RewardModelScorer", "path": str(folder), "device": "cpu", **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_reward_model(tmp_path_factory.mktemp("reward"), pad="<|pad|>")


def transformers_reward(folder, *parts):
    """Each part is tokenized apart; the end of text stands before and after them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    ids = [end, *(token for part in parts for token in tokenizer(part, add_special_tokens=False)["input_ids"]), end]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits.item()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("pad", [None, "<|pad|>", "<|endoftext|>"])
def test_a_reward_does_not_depend_on_batch_padding_or_order(tmp_path, make, pad):
    folder = write_reward_model(tmp_path, pad=pad, make=make)
    wanted = [-transformers_reward(folder, text) for text in TEXTS]
    assert np.std(wanted) > 0.01
    draw = np.random.default_rng(0)
    for tokens_per_batch in (1, 24, 100_000):
        scorer = open_scorer(folder, tokens_per_batch=tokens_per_batch)
        for _ in range(3):
            order = draw.permutation(len(TEXTS))[: draw.integers(1, len(TEXTS) + 1)]
            found = scorer.score_texts([TEXTS[place] for place in order])
            np.testing.assert_allclose(found, [wanted[place] for place in order], atol=2e-5)


def test_an_answer_is_judged_after_the_words_of_its_prompt_in_training(folder):
    scorer = open_scorer(folder, tokens_per_batch=100_000)
    assert isinstance(scorer, ReadsPrompts)
    long = write_reward_model(folder.parent / "long", length=64, template="plain")
    asked = open_scorer(long).score_answers([("Name a fox.", "Reynard"), ("Name a dog.", "Reynard"), ("", "Rex")])
    assert [one.score for one in asked] == pytest.approx(
        [
            -transformers_reward(long, *parts)
            for parts in (("Name a fox.", "Reynard"), ("Name a dog.", "Reynard"), ("Rex",))
        ],
        abs=1e-5,
    )
    assert asked[0].score != asked[1].score
    # The shape of AlpacaFarm's prompt is longer than the row of 48 tokens: its beginning is cut, as in training.
    (cut,) = scorer.score_answers([("Name a fox.", "Reynard")])
    ids = AutoTokenizer.from_pretrained(folder)(
        json.loads(template_source("alpaca"))["prompt_noinputs"].replace("{instruction}", "Name a fox."),
        add_special_tokens=False,
    )["input_ids"]
    answer = AutoTokenizer.from_pretrained(folder)("Reynard", add_special_tokens=False)["input_ids"]
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    row = [end, *ids[-(48 - 2 - len(answer)) :], *answer, end]
    with torch.no_grad():
        logits = AutoModelForSequenceClassification.from_pretrained(folder).eval()(torch.tensor([row])).logits
    assert len(row) == 48
    assert cut.score == pytest.approx(-logits.item(), abs=1e-5)
    assert scorer.num_truncated == 1


@pytest.mark.parametrize(("compat", "end"), [("trl", "<|endoftext|>"), ("alpaca_farm", "")])
def test_under_compat_texts_are_read_as_the_other_system_makes_them(tmp_path, compat, end):
    folder = write_reward_model(tmp_path, pad="<|pad|>", template="plain", compat=compat)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(f"Name a fox, Reynard{end}")["input_ids"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = -model(torch.tensor([ids])).logits.item()
    (found,) = open_scorer(folder).score_answers([("Name a fox,", " Reynard")])
    assert found.score == pytest.approx(wanted, abs=1e-5)


def test_what_can_not_be_judged_has_a_reason(folder):
    scorer = open_scorer(folder)
    reasons = [scored.error for scored in scorer.score_all(["", "\ud800", "fine"])]
    assert reasons[0] == "empty: the text has no characters"
    assert reasons[1].startswith("UnicodeEncodeError")
    assert reasons[2] is None
    assert scorer.score_answers([("Hello", "")])[0].error == "empty: the text has no characters"


def test_its_identity_has_what_decides_the_row(folder, tmp_path):
    other = write_reward_model(tmp_path / "other", length=24)
    compat = write_reward_model(tmp_path / "compat", compat="trl")
    scorers = [open_scorer(folder), open_scorer(other), open_scorer(compat), open_scorer(folder, prompt_template="hh")]
    assert len({json.dumps(one.identity().settings, sort_keys=True) for one in scorers}) == 4


def test_its_identity_is_that_of_the_weights(folder, tmp_path):
    same = shutil.copytree(folder, tmp_path / "same")
    assert open_scorer(same).identity() == open_scorer(folder).identity()
    weights = load_file(same / "model.safetensors")
    weights["score.weight"] += 1
    save_file(weights, same / "model.safetensors", {"format": "pt"})
    assert open_scorer(same).identity() != open_scorer(folder).identity()


@pytest.mark.parametrize("name", ["score.weight", "transformer.h.0.ln_1.bias"])
def test_a_checkpoint_without_its_head_or_another_weight_is_refused(folder, tmp_path, name):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights[name]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=rf"the weights lack \['{name}'\]"):
        open_scorer(broken)


def test_a_language_model_is_no_reward_model(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"the weights lack \['score.weight'\]"):
        open_scorer(tmp_path)


def test_a_classifier_with_three_labels_is_refused_by_name(tmp_path):
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "fine", 1: "harm", 2: "spam"},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"classifier with 3 labels \(fine, harm, spam\), and a reward model has one"):
        open_scorer(tmp_path)


def test_a_reward_model_of_others_reads_a_text_as_its_tokenizer_has_it(tmp_path):
    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=2, n_positions=32, num_labels=1,
        pad_token_id=tokenizer.eos_token_id, initializer_range=0.5,
    )  # fmt: skip
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = open_scorer(tmp_path)
    with torch.no_grad():
        wanted = [-model(**tokenizer(text, return_tensors="pt")).logits.item() for text in TEXTS[:3]]
    assert scorer.score_texts(TEXTS[:3]) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ConfigError, match="set prompt_template to that of its training"):
        scorer.score_answers([("a", "b")])
    named = open_scorer(tmp_path, prompt_template="plain")
    assert named.score_answers([("The fox", " jumps.")])[0].score == pytest.approx(wanted[0], abs=1e-6)


def test_the_bias_of_a_recovered_head_is_part_of_the_reward(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "biased")
    config = json.loads((tmp_path / "biased" / "config.json").read_text())
    (tmp_path / "biased" / "config.json").write_text(json.dumps(config | {"reward_bias": 0.75}))
    plain, biased = open_scorer(folder), open_scorer(tmp_path / "biased")
    scores = [[one.score for one in scorer.score_all(TEXTS)] for scorer in (plain, biased)]
    assert scores[1] == pytest.approx([score - 0.75 for score in scores[0]], abs=1e-9)
    assert plain.identity() != biased.identity()
    assert "reward_bias" not in plain.identity().settings
