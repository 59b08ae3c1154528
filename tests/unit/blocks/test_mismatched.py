"""Behind each labelled answer stands its prompt with the answer of another prompt."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_example_rows import build, prepared
from tiny_models import tiny_tokenizer

from phf_ray.blocks import mismatched
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.mismatched import lenders
from phf_ray.blocks.plan import plan_blocks
from phf_ray.blocks.shards import decode_shard
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import TokenKind

SAY = {"prompt": "say ", "completion": "it", "label": True}


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 4).map(str), max_size=30))
def test_whoever_lends_has_another_prompt_and_lends_once_if_no_prompt_is_too_common(prompts):
    found = lenders(prompts)
    commonest = max(Counter(prompts).values(), default=0)
    if len(set(prompts)) < 2:
        assert found == [None] * len(prompts)
        return
    assert all(prompts[place] != prompts[other] for place, other in enumerate(found))
    if 2 * commonest <= len(prompts):
        assert sorted(found) == list(range(len(prompts)))


def test_if_no_prompt_occurs_twice_the_example_before_lends_as_in_trl():
    assert lenders(["a", "b", "c", "d"]) == [3, 0, 1, 2]
    assert lenders(["a", "a", "b", "b"]) == [2, 3, 0, 1]


@pytest.fixture
def config(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def make(objective=None, **dataset):
        return parse_config(
            {
                "tokenizer": {"path_or_name": str(tmp_path / "tokenizer")},
                "dataset": {"seq_length": 64, "prompt_template": "plain", **dataset},
                "training": {"document_mask": True},
                "objective": {"name": "KTO", **(objective or {})},
            }
        )

    return make


def texts_of(root, file):
    """(label, text, learned text) of each row, in order."""
    tokenizer = tiny_tokenizer()
    blocks = decode_shard((root / file).read_bytes(), source=file)
    found = []
    for ids, kinds, labels in zip(blocks.input_ids, blocks.token_kinds, blocks.channels["label"], strict=True):
        begins = np.flatnonzero(kinds == TokenKind.END_OF_TEXT)
        for begin, end in zip(begins, [*begins[1:], len(kinds)], strict=True):
            own = slice(begin, end)
            kept, learned = kinds[own] != TokenKind.PAD, kinds[own] == TokenKind.PLAIN
            (label,) = set(labels[own][kept])
            found.append((label, tokenizer.decode(ids[own][kept]), tokenizer.decode(ids[own][learned])))
    return found


def test_blocks_hold_each_answer_with_its_label_and_then_a_mismatched_one(config, tmp_path, monkeypatch):
    monkeypatch.setattr(mismatched, "WINDOW", 4)
    rows = [{"prompt": f"{number}: ", "chosen": f"yes {number}", "rejected": f"no {number}"} for number in range(9)]
    corpus = prepared(tmp_path, rows, "--to", "kto")
    root = tmp_path / "blocks"
    root /= build(config(held_out_fraction=0.3, seq_length=100), corpus, tmp_path).rpartition("/")[2]
    manifest = read_block_manifest(str(root))
    sides = []
    for shards in (manifest.shards, manifest.held_out_shards):
        found = [row for shard in shards for row in texts_of(root, shard.file)]
        answers, others = found[0::2], found[1::2]
        for (label, text, learned), (zero, other_text, other_learned) in zip(answers, others, strict=True):
            prompt = text.removesuffix(learned)
            assert (label, learned.startswith("yes")) in ((1.0, True), (-1.0, False))
            assert (zero, other_text) == (0.0, prompt + other_learned)
            assert f"{prompt[-3]}" not in other_learned, "another prompt's answer"
        assert sorted(learned for *_, learned in answers) == sorted(learned for *_, learned in others)
        sides.append({learned for *_, learned in found})
    assert sides[0].isdisjoint(sides[1]), "what is held out lends nothing"
    assert len(sides[0]) + len(sides[1]) == 18
    assert manifest.documents["kept"] + manifest.documents["dropped"]["held_out"] == 18


def test_without_a_kl_no_mismatched_answers_are_stored(config, tmp_path):
    rows = [{**SAY, "label": label} for label in (True, False)]
    corpus = prepared(tmp_path, rows)
    root = build(config({"loss_type": "apo_zero_unpaired"}), corpus, tmp_path)
    manifest = read_block_manifest(root)
    found = texts_of(tmp_path / "blocks" / root.rpartition("/")[2], manifest.shards[0].file)
    assert sorted(label for label, *_ in found) == [-1, 1]
    with pytest.raises(DataError, match=r"no row .* is left to learn from .*no_other_prompt.: 2"):
        build(config(), corpus, tmp_path)


def test_an_answer_that_fills_a_row_is_no_ones_mismatched_answer(config, tmp_path):
    rows = [{"prompt": f"{number} ", "completion": f"{number}", "label": number > 1} for number in range(4)]
    rows.append({"prompt": "long ", "completion": "very " * 60, "label": True})
    root = build(config(), prepared(tmp_path, rows), tmp_path)
    manifest = read_block_manifest(root)
    assert manifest.documents == {"kept": 4, "dropped": {"prompt_has_no_room": 1}}
    found = texts_of(tmp_path / "blocks" / root.rpartition("/")[2], manifest.shards[0].file)
    assert len(found) == 8
    assert not any("very" in text for _, text, _ in found)


@pytest.mark.parametrize(
    ("rows", "objective", "dataset", "says"),
    [
        ([{"prompt": "a", "completion": "b"}], {}, {}, "KTO learns from answers with a label, but .* examples without"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, {}, "holds comparisons without; make them with"),
        ([SAY, {**SAY, "completion": "so"}], {}, {}, "all 2 answers of .* are labelled good, .* use objective MLE"),
        ([{**SAY, "label": False}], {}, {}, "all 1 answers of .* are labelled bad, .*; add the others$"),
        ([SAY, {**SAY, "label": False}], {}, {"learn": "all"}, "dataset.learn: all, but objective KTO judges answers"),
        ([SAY, {**SAY, "label": False}], {}, {"max_length": 40}, "40 x 2 answers do not fit .* seq_length to 80"),
        ([SAY, {**SAY, "label": False}], {"name": "MLE"}, {}, "would learn both alike.* or use objective KTO"),
        ([SAY, {**SAY, "label": False}], {"name": "DPO"}, {}, "DPO learns from comparisons"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(config, tmp_path, rows, objective, dataset, says):
    corpus = prepared(tmp_path, rows)
    settings = config(objective, **dataset)
    with pytest.raises(ConfigError, match=says):
        plan_blocks(
            settings,
            corpora=[str(corpus)],
            tokenizer=load_tokenizer(settings.tokenizer),
            output_root=str(tmp_path / "blocks"),
        )


def test_unequal_labels_are_warned_of_with_the_weights_that_balance_them(config, tmp_path, caplog):
    rows = [{"prompt": f"{number} ", "completion": "x", "label": number < 2} for number in range(8)]
    corpus = prepared(tmp_path, rows)
    build(config(), corpus, tmp_path)
    assert "2 good and 6 bad answers" in caplog.text
    assert "set objective.desirable_weight to 3 to 4" in caplog.text
    caplog.clear()
    build(config({"desirable_weight": 3.5}), corpus, tmp_path)
    build(config({"undesirable_weight": 0.3}), corpus, tmp_path)
    assert "good and" not in caplog.text
