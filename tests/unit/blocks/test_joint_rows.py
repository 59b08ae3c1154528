"""Rows under `compat: trl` are those of TRL's own trainers, and under `alpaca_farm` those of its source."""

import json

import places
import pytest
from test_example_rows import build, prepared
from tiny_models import tiny_tokenizer
from trl_case import TEXT_LENGTH, TEXTS, make_text_tokenizer

from phf_ray.blocks.example_rows import ExampleSettings, FeedbackPart, UnitReader
from phf_ray.blocks.stats import PackingStats
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError
from phf_ray.feedback.reader import list_feedback_parts
from phf_ray.records import TokenKind

GOLDEN = json.loads((places.GOLDEN / "trl.json").read_text())["rows"]
PAIRS = [dict(zip(("prompt", "chosen", "rejected"), texts, strict=True)) for texts in TEXTS]


def rows_of(corpus, *, compat, begins=False, for_reward=False, kind="comparisons", template="plain"):
    settings = ExampleSettings(kind, template, "", TEXT_LENGTH, "completions", compat=compat, for_reward=for_reward)
    tokenizer, stats = make_text_tokenizer(begins=begins), PackingStats()
    reader = UnitReader(settings, tokenizer, held_out_fraction=0.0)
    parts = [FeedbackPart(part, 1) for part in list_feedback_parts(str(corpus))]
    units = [unit.rows for part in parts for unit in reader.units(part, stats=stats)]
    return units, stats, tokenizer


def shown(row):
    """(ids, number of those that are given, the first among them)."""
    assert row.kinds[0] == TokenKind.END_OF_TEXT
    num_given = 1 + int((row.kinds == TokenKind.GIVEN).sum())
    assert (row.kinds[num_given:] == TokenKind.PLAIN).all()
    return [row.ids.tolist(), num_given]


@pytest.mark.parametrize("begins", [False, True])
def test_pairs_are_those_of_trl_and_so_is_what_is_cut_or_left_out(tmp_path, begins):
    corpus = prepared(tmp_path, PAIRS)
    units, stats, _ = rows_of(corpus, compat="trl", begins=begins)
    found = [[shown(row) for row in unit] for unit in units]
    wanted = GOLDEN[str(begins)]["dpo"]
    half = len(wanted) // 2
    assert sorted(found) == sorted([list(pair) for pair in zip(wanted[:half], wanted[half:], strict=True)])
    assert stats.num_documents_dropped == {"prompt_has_no_room": 1}
    assert stats.num_cut == {"completions": 1}

    units, stats, _ = rows_of(corpus, compat="trl", begins=begins, for_reward=True)
    found = [[row.ids.tolist() for row in unit] for unit in units]
    wanted = [ids for ids, _ in GOLDEN[str(begins)]["reward"]]
    half = len(wanted) // 2
    assert sorted(found) == sorted([list(pair) for pair in zip(wanted[:half], wanted[half:], strict=True)])
    assert stats.num_documents_dropped.total() == 2
    assert stats.num_documents_dropped["too_long"] >= 1


def test_alpaca_farm_ends_what_is_finetuned_on_and_not_the_texts_of_a_reward_model(tmp_path):
    corpus = prepared(tmp_path, PAIRS[1:3])
    for for_reward in (False, True):
        units, _, tokenizer = rows_of(corpus, compat="alpaca_farm", for_reward=for_reward, begins=True)
        begin = f"{tokenizer.bos_token}say"
        texts = [[tokenizer.decode(row.ids) for row in unit] for unit in units]
        assert all(text.startswith(begin) for unit in texts for text in unit)
        short = [text for unit in texts for text in unit if "hole" in text or text.endswith("no")]
        assert len(short) == (1 if not for_reward else 2)
        assert all(text.endswith(tokenizer.eos_token) != for_reward for text in short if "hole" in text)
    # What is too long loses its end, and is no reason to leave the pair out.
    assert max(len(row.ids) for unit in units for row in unit) == TEXT_LENGTH


def test_mismatched_rows_begin_as_the_others_and_are_cut_at_the_end(tmp_path):
    rows = [{"prompt": texts[0], "completion": texts[1], "label": True} for texts in TEXTS[:3]]
    corpus = prepared(tmp_path, rows)
    settings = ExampleSettings(
        "examples", "plain", "", TEXT_LENGTH, "completions", has_labels=True, has_mismatched=True, compat="trl"
    )
    tokenizer = make_text_tokenizer(begins=True)
    reader = UnitReader(settings, tokenizer, held_out_fraction=0.0)
    (part,) = (FeedbackPart(part, 1) for part in list_feedback_parts(str(corpus)))
    units = list(reader.whole_units(reader.units(part, stats=PackingStats()), stats=PackingStats()))
    assert len(units) == 3
    for row, other in units:
        given = row.ids[row.kinds != TokenKind.PLAIN].tolist()
        assert other.ids[other.kinds != TokenKind.PLAIN].tolist() == given
        assert other.ids[0] == tokenizer.bos_token_id
        assert len(other.ids) <= TEXT_LENGTH
    assert {tokenizer.decode(other.ids[other.kinds == TokenKind.PLAIN])[:6] for _, other in units} == {
        tokenizer.decode(row.ids[row.kinds == TokenKind.PLAIN])[:6] for row, _ in units
    }


@pytest.fixture
def config(tmp_path):
    tiny_tokenizer(control=True).save_pretrained(tmp_path / "tokenizer")

    def make(compat, **objective):
        return parse_config(
            {
                "tokenizer": {"path_or_name": str(tmp_path / "tokenizer")},
                "dataset": {"seq_length": 64, "prompt_template": "plain"},
                "training": {"document_mask": True},
                "objective": objective or {"name": "MLE"},
                "compat": compat,
            }
        )

    return make


def test_blocks_of_one_compat_are_not_those_of_another(config, tmp_path):
    corpus = prepared(tmp_path, PAIRS)
    roots = [
        build(config(compat, name=name), corpus, tmp_path)
        for name in ("DPO", "BradleyTerry")
        for compat in (None, "trl", "alpaca_farm")
    ]
    # Without compat, all that learn from pairs share their blocks.
    assert roots[0] == roots[3]
    assert len(set(roots)) == 5


def test_what_the_other_systems_do_not_know_is_refused(config, tmp_path):
    pairs = prepared(tmp_path / "pairs", PAIRS)
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    chats = prepared(tmp_path / "chats", [{"messages": messages}])
    labelled = prepared(tmp_path / "labelled", PAIRS, "--to", "kto")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Text.")
    for settings, corpus, says in (
        (config("korbak2023", name="DPO"), pairs, "compat: korbak2023 knows no feedback"),
        (config("trl"), chats, "compat: trl knows no conversations with several answers"),
        (config("alpaca_farm", name="KTO"), labelled, "compat: alpaca_farm knows no objective KTO"),
        (config("trl"), tmp_path / "text", "compat: trl is for feedback"),
    ):
        with pytest.raises(ConfigError, match=says):
            build(settings, corpus, tmp_path)
