"""Sets in which answers are rated, not compared: UltraFeedback as published, HelpSteer2; and the turns of an arena."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from feedback_files import write_lines
from published_feedback import ARENA, BAD, GOOD, HELPSTEER2, HELPSTEER2_PREFERENCE, PROMPT, ULTRAFEEDBACK_RAW

from phf_ray.corpus import streams
from phf_ray.feedback import read_feedback, read_feedback_manifest
from phf_ray.feedback.against import find_other_set
from phf_ray.feedback.formats.table import formats_of
from phf_ray.feedback.job import prepare_feedback
from phf_ray.feedback.plan import FeedbackRequest
from phf_ray.feedback.prepare import Prepared, RowSettings, prepare_record
from phf_ray.feedback.rows import Comparison
from phf_ray.generation.chat.prompts import ChatPrompt, Message

MIDDLE = ("The Rhine.", "The Main.")


def made_of(record: dict[str, Any], name: str, **settings: Any) -> list[Any]:
    made = prepare_record(record, source="a.jsonl", index=3, settings=RowSettings(name, **settings))
    return [one.rows[0] if isinstance(one, Prepared) else one for one in made]


def reasons_of(record: dict[str, Any], name: str) -> list[str]:
    return [one.reason for one in made_of(record, name)]


# -- UltraFeedback ----------------------------------------------------------------------------------------------------


def test_scores_of_ultrafeedback_become_all_pairs_or_those_with_the_best():
    assert formats_of(ULTRAFEEDBACK_RAW) == ["ultrafeedback-raw"]
    rows = made_of(ULTRAFEEDBACK_RAW, "ultrafeedback-raw")
    known = [(row.better, row.worse) for row in rows if row.better]
    assert known == [(GOOD, MIDDLE[0]), (GOOD, MIDDLE[1]), (GOOD, BAD), (MIDDLE[0], BAD), (MIDDLE[1], BAD)]
    assert [{row.output_1, row.output_2} for row in rows if row.verdict == "tie"] == [{*MIDDLE}]
    assert len(made_of(ULTRAFEEDBACK_RAW, "ultrafeedback-raw", pairs="best")) == 3
    assert {row.prompt for row in rows} == {ChatPrompt((Message("user", PROMPT),))}
    models = {one["response"]: one["model"] for one in ULTRAFEEDBACK_RAW["completions"]}
    for row in rows:
        meta = json.loads(row.meta)
        assert (meta["generator_1"], meta["generator_2"]) == (models[row.output_1], models[row.output_2])
        assert meta["fine_grained_score_1"] == meta["overall_score_1"] / 2
        assert meta["source_column"] == "sharegpt"
        assert "critique" not in row.meta


def test_a_score_that_is_missing_leaves_the_label_unknown():
    completions = [{**one, "overall_score": None} for one in ULTRAFEEDBACK_RAW["completions"][:2]]
    (row,) = made_of({**ULTRAFEEDBACK_RAW, "completions": completions}, "ultrafeedback-raw")
    assert row.verdict == "unknown"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"completions": []}, "not_two_answers"),
        ({"completions": ULTRAFEEDBACK_RAW["completions"][:1]}, "not_two_answers"),
        ({"completions": [{"response": "a", "overall_score": 1.0}, {"overall_score": 2.0}]}, "no_column"),
        ({"completions": [{"response": ["a"], "overall_score": 1.0}] * 2}, "not_text"),
        ({"completions": {"response": ["a", "b"], "overall_score": [1.0]}}, "unequal_lists"),
        ({"completions": ["a", "b"]}, "not_objects"),
        ({"instruction": " "}, "no_prompt"),
        ({"instruction": None}, "no_column"),
    ],
)
def test_what_is_no_rated_answer_has_its_reason(changes, reason):
    assert reasons_of({**ULTRAFEEDBACK_RAW, **changes}, "ultrafeedback-raw") == [reason]


# -- HelpSteer2 -------------------------------------------------------------------------------------------------------


def rated(prompt: str | None, *answers: tuple[str, int | None]) -> list[dict[str, Any]]:
    return [{**HELPSTEER2[0], "prompt": prompt, "response": text, "helpfulness": rating} for text, rating in answers]


def prepared(folder: Path, records: list[dict[str, Any]], name: str = "out", **request: Any) -> list[Comparison]:
    source = write_lines(folder / f"{name}.jsonl", records)
    prepare_feedback(FeedbackRequest([str(source)], **request), str(folder / name))
    return [row for row in read_feedback(str(folder / name)) if isinstance(row, Comparison)]


def test_records_of_one_prompt_that_follow_each_other_are_compared(tmp_path):
    records = [*HELPSTEER2, *rated("Name a lake.", ("Constance", 2), ("Elbe", 2)), *rated("Alone?", ("Yes", 4))]
    rows = prepared(tmp_path, records)
    assert read_feedback_manifest(str(tmp_path / "out")).format == "helpsteer2"
    assert [(row.better, row.worse) for row in rows] == [(GOOD, BAD), (None, None)]
    assert rows[1].verdict == "tie"
    meta = json.loads(rows[0].meta)
    assert {meta["helpfulness_1"], meta["helpfulness_2"]} == {1, 3}
    assert meta["helpfulness_1"] == (3 if rows[0].output_1 == GOOD else 1)
    assert meta["record"] == 0
    (rejected,) = pq.read_table(tmp_path / "out/rejected").to_pylist()
    assert (rejected["reason"], rejected["record"]) == ("not_two_answers", 4)


def test_a_prompt_that_comes_again_later_is_another_pair_and_no_pair_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK_BYTES", 1000)  # where files may be cut
    records = [one for number in range(200) for one in rated(f"Name {number}", (f"a {number}", 1), (f"b {number}", 2))]
    again = rated("Name 0", ("c", 4), ("d", 0))
    rows = prepared(tmp_path, [*records, *again], shard_bytes=2000)
    assert len(rows) == 201
    assert {row.better for row in rows} == {*(f"b {number}" for number in range(200)), "c"}
    assert read_feedback_manifest(str(tmp_path / "out")).stats.rejected == {}


def test_more_than_two_answers_as_in_helpsteer_are_all_pairs(tmp_path):
    rows = prepared(tmp_path, rated("Name one.", ("a", 0), ("b", 2), ("c", None), ("d", 4)))
    assert len(rows) == 6
    assert {(row.better, row.worse) for row in rows if row.better} == {("d", "b"), ("d", "a"), ("b", "a")}
    assert sum(row.verdict == "unknown" for row in rows) == 3
    assert len(prepared(tmp_path, rated("Name one.", ("a", 0), ("b", 2), ("d", 4)), "best", pairs="best")) == 2


def test_a_record_that_cannot_be_read_parts_its_neighbours(tmp_path):
    lines = [json.dumps(one) for one in (*HELPSTEER2, *rated("Name two.", ("a", 1), ("b", 2)))]
    with gzip.open(tmp_path / "in.jsonl.gz", "wt") as file:
        file.write("\n".join([*lines[:3], "{broken", lines[3]]))
    prepare_feedback(FeedbackRequest([str(tmp_path / "in.jsonl.gz")]), str(tmp_path / "out"))
    manifest = read_feedback_manifest(str(tmp_path / "out"))
    assert (manifest.rows, manifest.stats.rejected) == (1, {"bad_json": 1, "not_two_answers": 2})


def test_records_without_a_prompt_are_not_joined(tmp_path):
    rows = prepared(tmp_path, [*rated(None, ("a", 1), ("b", 2)), *HELPSTEER2])
    assert len(rows) == 1
    assert read_feedback_manifest(str(tmp_path / "out")).stats.rejected == {"no_column": 2}


def test_earlier_turns_of_a_prompt_are_messages(tmp_path):
    prompt = "Hello\n<extra_id_1>Assistant\nHi.\n<extra_id_1>User\nName one.\nOr two."
    row, *_ = prepared(tmp_path, rated(prompt, ("a", 1), ("b", 2)))
    assert row.prompt == ChatPrompt(
        (Message("user", "Hello"), Message("assistant", "Hi."), Message("user", "Name one.\nOr two."))
    )
    for odd in ("Hello\n<extra_id_1>User\nHi", "Hello\n<extra_id_1>Assistant\nHi"):
        assert reasons_of({**HELPSTEER2_PREFERENCE, "prompt": odd}, "helpsteer2-preference") == ["not_a_dialogue"]
    assert reasons_of({**HELPSTEER2_PREFERENCE, "prompt": ""}, "helpsteer2-preference") == ["no_prompt"]


@pytest.mark.parametrize(
    ("strength", "preference"), [(-3, 1.0), (-1, 1.5 - 1 / 6), (0, 1.5), (3, 2.0), (-100, None), (None, None)]
)
def test_strengths_of_preferences(strength, preference):
    (row,) = made_of({**HELPSTEER2_PREFERENCE, "preference_strength": strength}, "helpsteer2-preference")
    assert row.preference == (None if preference is None else pytest.approx(preference, abs=1e-12))
    assert (row.output_1, row.output_2) == (BAD, GOOD)


def test_its_prompts_can_be_looked_for_in_another_set(tmp_path):
    other = find_other_set(str(write_lines(tmp_path / "in.jsonl", HELPSTEER2)))
    assert set(other.prompts()) == {PROMPT}


# -- Arena ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winners", "preference"),
    [((1, 0, 0), 1.0), ((0, 1, 0), 2.0), ((0, 0, 1), 1.5), ((1, 1, 0), None), ((0, 0, 0), None), ((1, 0, None), None)],
)
def test_winners_of_the_arena(winners, preference):
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    (row,) = made_of({**ARENA, **dict(zip(names, winners, strict=True))}, "arena")
    assert row.preference == preference
    meta = json.loads(row.meta)
    assert (meta["generator_1"], meta["generator_2"], meta["id"]) == ("koala", "alpaca", 30192)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": '["a", "b"]', "response_a": '["a", "b"]', "response_b": '["c", "d"]'}, "several_answers"),
        ({"prompt": '["a", "b"]'}, "unequal_lists"),
        ({"prompt": "[]", "response_a": "[]", "response_b": "[]"}, "no_prompt"),
        ({"response_a": "[null]"}, "empty_answer"),
        ({"response_a": '[""]'}, "empty_answer"),
        ({"prompt": "[null]"}, "no_prompt"),
        ({"response_b": "not JSON"}, "bad_json"),
        ({"response_b": "[" * 100_000}, "bad_json"),
        ({"response_b": '{"a": 1}'}, "not_text"),
        ({"response_b": "[[1]]"}, "not_text"),
        ({"response_b": None}, "no_column"),
        ({"response_b": '["half \\ud83d"]'}, "lone_surrogate"),
    ],
)
def test_what_is_no_battle_has_its_reason(changes, reason):
    assert reasons_of({**ARENA, **changes}, "arena") == [reason]


def test_turns_that_are_lists_already_are_read_too():
    lists = {name: json.loads(ARENA[name]) for name in ("prompt", "response_a", "response_b")}
    (row,) = made_of({**ARENA, **lists}, "arena")
    assert (row.better, row.worse) == (GOOD, BAD)
