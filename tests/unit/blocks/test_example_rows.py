"""Rows of feedback corpora as token rows: what is given, what is learned, what is left out and counted."""

import json

import numpy as np
import pytest
from tiny_models import BAD, END_OF_TEXT, GOOD, tiny_tokenizer

from jobs import build_blocks
from jobs.prepare_feedback import main as prepare_feedback
from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.example_rows import ExampleSettings, FeedbackPart, UnitReader
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.stats import PackingStats
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.reader import list_feedback_parts
from phf_ray.records import MARGIN, TokenKind

GIVEN, LEARNED = int(TokenKind.GIVEN), int(TokenKind.PLAIN)


def prepared(folder, rows, *options):
    folder.mkdir(exist_ok=True)
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_feedback(["--input", str(source), "--output", str(folder / "feedback"), *options])
    return folder / "feedback"


def units_of(corpus, *, kind="examples", template="plain", length=64, learn="completions", held_out=0.0):
    found, stats = read_units(corpus, ExampleSettings(kind, template, "", length, learn, good=GOOD, bad=BAD), held_out)
    tokenizer = tiny_tokenizer(control=True)
    return [(unit.is_held_out, [shown(tokenizer, row) for row in unit.rows]) for unit in found], stats


def read_units(corpus, settings, held_out=0.0):
    tokenizer = tiny_tokenizer(control=True)
    reader = UnitReader(settings, tokenizer, held_out_fraction=held_out)
    stats = PackingStats()
    found = []
    for part in list_feedback_parts(str(corpus)):
        found += reader.units(FeedbackPart(part, 1), stats=stats)
    return found, stats


def shown(tokenizer, row):
    """Each run of equal kinds as (kind, text)."""
    borders = np.flatnonzero(np.diff(row.kinds)) + 1
    runs = zip(np.split(row.ids, borders), np.split(row.kinds, borders), strict=True)
    return [(int(kinds[0]), tokenizer.decode(ids)) for ids, kinds in runs]


def test_a_pair_is_the_chosen_answer_and_then_the_rejected_one_whatever_its_stored_order(tmp_path):
    rows = [{"prompt": f"{number}?", "chosen": " good", "rejected": " bad"} for number in range(6)]
    found, _ = units_of(prepared(tmp_path, rows), kind="comparisons")
    assert len(found) == 6
    for _, (chosen, rejected) in found:
        assert [text for _, text in chosen][-1] == f" good{END_OF_TEXT}"
        assert [text for _, text in rejected][-1] == f" bad{END_OF_TEXT}"
        assert chosen[0] == (int(TokenKind.END_OF_TEXT), END_OF_TEXT)
        assert chosen[1][0] == GIVEN
        assert chosen[2][0] == LEARNED


def test_ties_and_unknown_labels_are_no_pairs_and_are_counted(tmp_path):
    rows = [
        {"instruction": "a", "output_1": "b", "output_2": "c", "preference": preference} for preference in (1, 0, None)
    ]
    found, stats = units_of(prepared(tmp_path, rows), kind="comparisons", template="alpaca")
    assert len(found) == 1
    assert stats.num_documents_dropped == {"tie": 1, "unknown": 1}


@pytest.mark.parametrize(
    ("source", "wanted", "dropped"),
    [
        ("column", {"a": 0.5, "b": -1.0}, {"no_margin": 5, "tie": 1}),
        (
            "preference",
            {
                "a": 1.0,
                "b": 0.5,
                "c": 1.0,
                "d": 1.0,
                "e": 1.0,
                "too large for a float": 1.0,
                "infinite in float32": 1.0,
            },
            {"tie": 1},
        ),
    ],
)
def test_pairs_carry_the_margin_of_their_column_or_of_their_preference(tmp_path, source, wanted, dropped):
    columns = [("a", 1, 0.5), ("b", 1.75, -1), ("c", 2, None), ("d", 1, "much"), ("e", 2, True), ("f", 1.5, 1.0)]
    columns += [("too large for a float", 1, 10**400), ("infinite in float32", 1, 1e300)]
    rows = [
        {"prompt": prompt, "output_1": " x", "output_2": " y", "preference": preference, "margin": margin}
        for prompt, preference, margin in columns
    ]
    settings = ExampleSettings("comparisons", "plain", "", 64, "completions", margin=source)
    found, stats = read_units(prepared(tmp_path, rows), settings)
    carried = {unit.prompt: {float(number) for row in unit.rows for number in row.channels[MARGIN]} for unit in found}
    assert carried == {prompt: {margin} for prompt, margin in wanted.items()}
    assert stats.num_documents_dropped == dropped


def test_a_margin_survives_a_set_that_is_made_of_a_set(tmp_path):
    rows = [{"prompt": "a", "output_1": " x", "output_2": " y", "preference": 1, "margin": 0.5}]
    first = prepared(tmp_path, rows)
    assert prepare_feedback(["--input", str(first), "--output", str(tmp_path / "again")]) == 0
    settings = ExampleSettings("comparisons", "plain", "", 64, "completions", margin="column")
    [unit], _ = read_units(tmp_path / "again", settings)
    assert {float(number) for row in unit.rows for number in row.channels[MARGIN]} == {0.5}


def test_of_a_conversation_all_that_the_assistant_says_is_learned(tmp_path):
    messages = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in messages]}]
    ((_, (row,)),), _ = units_of(prepared(tmp_path, rows), template="hh")
    learned = [text for kind, text in row if kind == LEARNED]
    assert [text.strip() for text in learned] == ["two", f"four{END_OF_TEXT}"]
    given = "".join(text for kind, text in row if kind == GIVEN)
    assert "one" in given
    assert "three" in given


def test_answers_stand_behind_the_control_token_that_their_row_names(tmp_path):
    rows = [{"prompt": "say", "chosen": " good", "rejected": " bad"}]
    found, _ = units_of(prepared(tmp_path, rows, "--to", "reward-conditioning"))
    texts = sorted("".join(text for _, text in row) for _, (row,) in found)
    assert texts == [
        f"{END_OF_TEXT}{GOOD}say good{END_OF_TEXT}",
        f"{END_OF_TEXT}{BAD}say bad{END_OF_TEXT}",
    ]
    assert all(row[1][0] == GIVEN for _, (row,) in found)


def test_prompts_are_learned_too_if_the_user_says_so(tmp_path):
    rows = [{"prompt": "say", "completion": " it"}]
    ((_, (row,)),), _ = units_of(prepared(tmp_path, rows), learn="all")
    assert row == [(int(TokenKind.END_OF_TEXT), END_OF_TEXT), (LEARNED, f"say it{END_OF_TEXT}")]


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_words_that_spell_out_a_special_token_drop_their_row(tmp_path, field):
    row = {"prompt": "say", "chosen": " good", "rejected": " bad"}
    rows = [row, {**row, field: f"a {END_OF_TEXT} b {GOOD}"}]
    found, stats = units_of(prepared(tmp_path, rows), kind="comparisons")
    assert len(found) == 1
    assert stats.num_documents_dropped == {"special_token_in_text": 1}


def test_tokens_that_were_only_added_as_special_count_too(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer(control=True)
    tokenizer.add_tokens(["<|im_start|>"], special_tokens=True)
    monkeypatch.setattr("test_example_rows.tiny_tokenizer", lambda **_: tokenizer)
    rows = [{"prompt": "say", "completion": " it"}, {"prompt": "hi <|im_start|>system", "completion": " obey"}]
    found, stats = units_of(prepared(tmp_path, rows))
    assert len(found) == 1
    assert stats.num_documents_dropped == {"special_token_in_text": 1}


def test_a_prompt_that_the_template_cannot_hold_drops_its_row(tmp_path):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    rows = [{"prompt": messages, "completion": [{"role": "assistant", "content": "d"}]}]
    found, stats = units_of(prepared(tmp_path, rows), template="alpaca")
    assert found == []
    assert stats.num_documents_dropped == {"template_cannot_hold_it": 1}


def test_equal_prompts_are_held_out_together(tmp_path):
    rows = [{"prompt": f"{number % 20}?", "completion": f" {number}"} for number in range(80)]
    found, _ = units_of(prepared(tmp_path, rows), held_out=0.4)
    sides = {}
    for apart, (row,) in found:
        sides.setdefault(row[1][1], set()).add(apart)
    assert len(sides) == 20
    assert all(len(side) == 1 for side in sides.values())
    assert {True, False} == set().union(*sides.values())


@pytest.fixture
def config(tmp_path):
    tiny_tokenizer(control=True).save_pretrained(tmp_path / "tokenizer")

    def make(**dataset):
        return parse_config(
            {
                "tokenizer": {"path_or_name": str(tmp_path / "tokenizer")},
                "dataset": {"seq_length": 64, "prompt_template": "plain", **dataset},
                "training": {"document_mask": True},
            }
        )

    return make


def build(config, corpus, folder):
    plan = ensure_blocks(config, corpora=[str(corpus)], output_root=str(folder / "blocks"), builder=build_here)
    return plan.root


def test_the_manifest_counts_rows_cuts_and_what_is_held_out(config, tmp_path):
    rows = [{"prompt": f"{number} " * (1 + 20 * (number % 2)), "completion": f" {number}"} for number in range(30)]
    root = build(config(held_out_fraction=0.3, max_length=24), prepared(tmp_path, rows), tmp_path)
    manifest = read_block_manifest(root)
    held_out = manifest.documents["dropped"]["held_out"]
    assert manifest.documents["kept"] + held_out == 30
    assert manifest.cut == {"prompts": 15}
    assert sum(shard.num_blocks for shard in manifest.held_out_shards) > 0
    assert manifest.examples["row_length"] == 24
    assert manifest.token_scores.mean is None


def test_an_edited_template_makes_other_blocks_and_a_moved_one_the_same(config, tmp_path):
    corpus = prepared(tmp_path, [{"instruction": "do", "input": "", "output": "done"}])
    texts = {"prompt_inputs": "{instruction} {input}: ", "prompt_noinputs": "{instruction}: "}
    roots = []
    for name, extra in (("a.json", ""), ("b.json", ""), ("a.json", "Now ")):
        file = tmp_path / name
        file.write_text(json.dumps({key: extra + text for key, text in texts.items()}))
        roots.append(build(config(prompt_template=str(file)), corpus, tmp_path))
    assert roots[0] == roots[1] != roots[2]


def test_control_tokens_of_the_configuration_need_answers_behind_them(config, tmp_path):
    corpus = prepared(tmp_path, [{"prompt": "say", "completion": " it"}])
    values = config().model_dump()
    values["dataset"]["conditional_training_config"] = {"aligned_prefix": GOOD, "misaligned_prefix": BAD}
    values["tokenizer"]["special_tokens"] = [GOOD, BAD]
    with pytest.raises(ConfigError, match=r"no answer of .* stands behind one"):
        build(parse_config(values), corpus, tmp_path)


def test_the_job_builds_blocks_of_feedback(config, tmp_path, monkeypatch):
    corpus = prepared(tmp_path, [{"prompt": "say", "completion": " it"}])
    values = config().model_dump(mode="json")
    (tmp_path / "task.yml").write_text(json.dumps(values))
    monkeypatch.setattr("jobs.build_blocks.start_ray", lambda: None)
    monkeypatch.setattr("phf_ray.blocks.on_ray.build_groups", build_here)
    arguments = ["--task", str(tmp_path / "task.yml"), "--corpus", str(corpus), "--output", str(tmp_path / "built")]
    assert build_blocks.main([*arguments, "--dry-run"]) == 0
    assert build_blocks.main(arguments) == 0
    (root,) = (tmp_path / "built").iterdir()
    assert read_block_manifest(str(root)).examples["kind"] == "examples"


def test_a_length_of_examples_is_refused_where_there_are_none(config, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("Text.")
    with pytest.raises(ConfigError, match="max_length: 12 limits the examples of feedback"):
        build(config(max_length=12), tmp_path / "text", tmp_path)


def test_a_template_that_holds_few_rows_is_warned_of(config, tmp_path, caplog):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    answer = [{"role": "assistant", "content": "d"}]
    rows = [{"prompt": turns, "completion": answer}, {"prompt": turns[:1], "completion": answer}]
    build(config(prompt_template="alpaca"), prepared(tmp_path, rows), tmp_path)
    assert "1 of 2 rows are left out (template_cannot_hold_it): choose another" in caplog.text
    rows[1]["prompt"] = turns[:2] + turns[:1]
    with pytest.raises(DataError, match=r"left to learn from .*change dataset\.prompt_template \(alpaca\)"):
        build(config(prompt_template="alpaca"), prepared(tmp_path / "b", rows), tmp_path)


def test_where_no_record_is_left_the_settings_of_records_are_named(config, tmp_path):
    record = {"human": "Why?", "marker": "Good:", "gpt": "x", "fields": "[human+marker],gpt,<|eos|>"}

    def refusal(name, record, **dataset):
        with pytest.raises(DataError) as caught:
            build(config(prompt_template=None, **dataset), prepared(tmp_path / name, [record]), tmp_path / name)
        return str(caught.value)

    said = refusal("long", {**record, "human": "Why? " * 40})
    assert "change the fields of the records, or dataset.seq_length (64 tokens for a record)" in said
    assert "prompt_has_no_room: raise dataset.max_length, or dataset.seq_length where that is not set" in said
    assert "prompt_template" not in said
    said = refusal("held", record, held_out_fraction=0.999999)
    assert said.endswith("change dataset.held_out_fraction (0.999999): rows with the same prompt are held out together")


def test_control_tokens_need_names(config, tmp_path):
    rows = [{"prompt": "say", "chosen": " good", "rejected": " bad"}]
    corpus = prepared(tmp_path, rows, "--to", "reward-conditioning")
    with pytest.raises(ConfigError, match="name them in dataset\\.conditional_training_config"):
        build(config(), corpus, tmp_path)
