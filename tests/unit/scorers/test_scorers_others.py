import time

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


def found(words, text, **settings):
    scorer = build_scorer({"class_name": "WordListScorer", "words": words, **settings})
    spans = scorer.spans(text)
    assert scorer.score_all([text]) == [Scored(len(spans) / len(text))]
    return [text[span.begin : span.end] for span in spans]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("begin", ["", "\ufeff"])
def test_a_word_list_of_a_windows_editor_has_the_same_words(tmp_path, begin, end):
    path = tmp_path / "words.txt"
    path.write_bytes((begin + end.join(["foo", "# no word", "", "bar baz"]) + end).encode())
    scorer = build_scorer({"class_name": "WordListScorer", "path": str(path)})
    assert [span.begin for span in scorer.spans("foo, bar baz, # no word")] == [0, 5]
    assert scorer.identity() == build_scorer({"class_name": "WordListScorer", "words": ["bar baz", "foo"]}).identity()


@pytest.mark.parametrize(
    ("word", "text", "expected"),
    [
        # Scripts without spaces, in the list or around a word.
        ("\u574f\u86cb", "\u4f60\u8fd9\u4e2a\u574f\u86cb\u771f\u574f", ["\u574f\u86cb"]),
        ("\u30d0\u30ab", "\u304a\u524d\u306f\u30d0\u30ab\u3060", ["\u30d0\u30ab"]),
        ("\u0e02\u0e22\u0e30", "\u0e04\u0e19\u0e02\u0e22\u0e30\u0e2a\u0e31\u0e07\u0e04\u0e21", ["\u0e02\u0e22\u0e30"]),
        ("idiot", "\u4f60\u8fd9\u4e2aidiot\u574f", ["idiot"]),
        ("idiot", "idiots \u4e2aidiots, xidiot", []),
        # A vowel sign belongs to its word, at either end.
        ("\u0915\u092e", "\u0915\u092e\u0940 \u0915\u092e", ["\u0915\u092e"]),
        ("\u0928", "\u0926\u093f\u0928 \u0928", ["\u0928"]),
        ("cafe", "cafe\u0301 cafe", ["cafe"]),
        # Accents, composed or not, on either side; Korean letters, too.
        ("caf\u00e9", "a caf\u00e9, Cafe\u0301 cafe", ["caf\u00e9", "Cafe\u0301"]),
        ("cafe\u0301", "a caf\u00e9, Cafe\u0301 cafe", ["caf\u00e9", "Cafe\u0301"]),
        ("\ubc14\ubcf4", "\u1102\u1165 \u1107\u1161\u1107\u1169!", ["\u1107\u1161\u1107\u1169"]),
        # Cases that change the length.
        ("stra\u00dfe", "STRASSE Stra\u00dfe stra\u00dfen", ["STRASSE", "Stra\u00dfe"]),
        ("strasse", "\u00df Stra\u00dfe", ["Stra\u00dfe"]),
        ("\u03bf\u03b4\u03cc\u03c2", "\u039f\u0394\u038c\u03a3", ["\u039f\u0394\u038c\u03a3"]),
        # What editors write for an apostrophe and a hyphen.
        ("don't", "Don\u2019t don\u02bct DON'T don", ["Don\u2019t", "don\u02bct", "DON'T"]),
        ("don\u2019t", "Don't", ["Don't"]),
        ("half-wit", "half\u2011wit", ["half\u2011wit"]),
        # White space in phrases.
        ("a hell", "a\nhell A\r\n  hell a\u00a0hell ahell", ["a\nhell", "A\r\n  hell", "a\u00a0hell"]),
        (" bloody  hell ", "bloody hell", ["bloody hell"]),
        # A variation selector is no letter.
        ("\u2764", "a \u2764\ufe0f b", ["\u2764"]),
        ("[-]", "a [-] b", ["[-]"]),
    ],
)  # fmt: skip
def test_a_listed_word_is_found_however_it_is_written(word, text, expected):
    assert found([word], text) == expected


def test_with_cases_only_the_case_counts():
    assert found(["Caf\u00e9"], "Cafe\u0301 cafe\u0301 caf\u00e9", ignore_case=False) == ["Cafe\u0301"]


def test_the_longest_word_counts_in_any_script():
    assert found(["a", "a\u7247", "a b"], "a\u7247 a b a") == ["a\u7247", "a b", "a"]


def test_many_marks_in_a_row_do_not_take_minutes():
    started = time.process_time()
    assert found(["a"], "a b" + "\u0301\u0316" * 300_000 + " a") == ["a", "a"]
    assert time.process_time() - started < 60


def test_a_word_list_without_words_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="give either words or a path"):
        build_scorer({"class_name": "WordListScorer"})
    with pytest.raises(ConfigError, match="give at least one word"):
        build_scorer({"class_name": "WordListScorer", "path": str(tmp_path / "empty.txt")})
    with pytest.raises(ConfigError, match="give at least one word"):
        build_scorer({"class_name": "WordListScorer", "words": [" "]})
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
