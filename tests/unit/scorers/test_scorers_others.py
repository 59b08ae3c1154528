import numpy as np
import pytest
import tokenizers
import torch
import transformers

from phf_ray.errors import ConfigError
from phf_ray.records import Scored, Span
from phf_ray.scorers.base import FindsSpans
from phf_ray.scorers.build import build_scorer


def test_listed_words_are_counted_per_character():
    scorer = build_scorer({"class_name": "WordListScorer", "words": ["damn", "bloody hell", "hell", "c++"]})
    text = "Damn! Bloody hell, shell, c++ hello"
    assert isinstance(scorer, FindsSpans)
    assert scorer.spans(text) == [Span("word", 0, 4), Span("word", 6, 17), Span("word", 26, 29)]
    assert scorer.score_all([text, "fine", ""]) == [
        Scored(3 / len(text)),
        Scored(0.0),
        Scored(None, "empty: the text has no characters"),
    ]


def test_a_word_list_comes_from_a_file_too(tmp_path):
    (tmp_path / "words.txt").write_text("# not a word\nfoo\n\n bar \n")
    scorer = build_scorer({"class_name": "WordListScorer", "path": str(tmp_path / "words.txt"), "ignore_case": False})
    assert [span.begin for span in scorer.spans("foo FOO bar baz")] == [0, 8]
    same = build_scorer({"class_name": "WordListScorer", "words": ["bar", "foo"], "ignore_case": False})
    other = build_scorer({"class_name": "WordListScorer", "words": ["bar"], "ignore_case": False})
    assert scorer.identity() == same.identity() != other.identity()


def test_a_word_list_without_words_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="give either words or a path"):
        build_scorer({"class_name": "WordListScorer"})
    with pytest.raises(ConfigError, match="give at least one word"):
        build_scorer({"class_name": "WordListScorer", "path": str(tmp_path / "empty.txt")})
    with pytest.raises(ConfigError, match="can't be read"):
        build_scorer({"class_name": "WordListScorer", "path": str(tmp_path / "none.txt")})


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A tiny BERT with three labels."""
    folder = tmp_path_factory.mktemp("reward")
    vocabulary = {
        token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "text"])
    }
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, id2label={0: "fine", 1: "harm", 2: "spam"},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label": "harm", "activation": "softmax"}, lambda logits: logits.softmax(-1)[1]),
        ({"label": 2}, lambda logits: logits.sigmoid()[2]),
        ({"label": 0, "activation": "none", "negate": True}, lambda logits: -logits[0]),
    ],
)
def test_a_classifier_scores_by_the_output_and_activation_of_the_config(reward_model, settings, expected):
    scorer = build_scorer(
        {"class_name": "SequenceClassifierScorer", "path": str(reward_model), "device": "cpu", **settings}
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(reward_model)
    texts = ["good text", "bad", "bad bad text good", "good " * 40]
    with torch.no_grad():
        wanted = [
            float(expected(model(**tokenizer(text, return_tensors="pt", truncation=True)).logits[0])) for text in texts
        ]
    np.testing.assert_allclose(scorer.score_texts(texts), wanted, atol=1e-5)
    assert scorer.num_truncated == 1
    assert np.std(wanted) > 1e-3


@pytest.mark.parametrize("special", [{}, {"eos_token": "<end>"}, {"eos_token": "<end>", "pad_token": "<pad>"}])
def test_a_causal_model_scores_texts_together_as_one_at_a_time(tmp_path, special):
    vocabulary = {"<end>": 0, "<pad>": 1, "good": 2, "bad": 3, "text": 4, "?": 5}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=16, **special)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=6, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=1, bos_token_id=None,
        eos_token_id=0 if special else None,
    )  # fmt: skip
    model = transformers.GPT2ForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    model.save_pretrained(tmp_path)
    texts = ["good", "good bad text text bad", "text bad good"]
    with torch.no_grad():
        wanted = [float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]
    scorer = build_scorer(
        {"class_name": "SequenceClassifierScorer", "path": str(tmp_path), "device": "cpu", "activation": "none"}
    )
    np.testing.assert_allclose(scorer.score_texts(texts), wanted, atol=1e-5)
    np.testing.assert_allclose([scorer.score_texts([text])[0] for text in texts], wanted, atol=1e-5)
    assert np.std(wanted) > 1e-3


def test_a_cut_text_on_which_the_model_fails_is_not_counted(reward_model, monkeypatch):
    scorer = build_scorer({"class_name": "SequenceClassifierScorer", "path": str(reward_model), "device": "cpu"})

    def out_of_memory(token_ids):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(scorer._classifier, "_run", out_of_memory)
        with pytest.raises(RuntimeError):
            scorer.score_texts(["good " * 40])
    assert scorer.num_truncated == 0
    scorer.score_texts(["good " * 40])
    assert scorer.num_truncated == 1


def test_settings_that_change_the_score_change_the_identity(reward_model):
    config = {"class_name": "SequenceClassifierScorer", "path": str(reward_model), "device": "cpu"}
    identities = [
        build_scorer({**config, **settings}).identity()
        for settings in ({}, {"label": "fine"}, {"label": 1}, {"activation": "softmax"}, {"negate": True})
    ]
    assert identities[0] == identities[1]
    assert all(identity != identities[0] for identity in identities[2:])


def test_an_output_or_a_model_that_is_not_there_is_refused(reward_model, tmp_path):
    with pytest.raises(ConfigError, match=r"choose one of \['fine', 'harm', 'spam'\]"):
        build_scorer({"class_name": "SequenceClassifierScorer", "path": str(reward_model), "label": "rude"})
    with pytest.raises(ConfigError, match=r"sequence classifier.*give the folder of one"):
        build_scorer({"class_name": "SequenceClassifierScorer", "path": str(tmp_path)})
