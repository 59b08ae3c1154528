"""Records of published sets in their own shapes: prompt, answers, which is better, and what is kept beside them."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feedback_files import write_lines
from places import ROOT
from published_feedback import (
    ASKED,
    BAD,
    BATTLE,
    DISTILABEL,
    GOOD,
    HELPSTEER3,
    NECTAR,
    ORCA,
    PKU,
    PROMPT,
    PUBLISHED,
    SHP,
    TLDR,
    TULU,
    ULTRAFEEDBACK,
    WEBGPT,
    said,
)  # fmt: skip

from phf_ray.errors import ConfigError
from phf_ray.feedback import read_feedback
from phf_ray.feedback.formats.table import FORMATS, format_of, formats_of
from phf_ray.feedback.job import prepare_feedback
from phf_ray.feedback.plan import FeedbackRequest
from phf_ray.feedback.prepare import Prepared, RowSettings, prepare_record
from phf_ray.generation.chat.prompts import ChatPrompt, Message, TextPrompt

CHAT = ChatPrompt((Message("user", PROMPT),))


def all_made(record, name=None, **settings):
    found = name or format_of(record)
    return prepare_record(record, source="a.jsonl", index=3, settings=RowSettings(found, **settings))


def rows_of(record, name=None, **settings):
    made = all_made(record, name, **settings)
    assert all(isinstance(one, Prepared) for one in made), made
    return [row for one in made for row in one.rows]


def row_of(record, name=None, **settings):
    (one,) = rows_of(record, name, **settings)
    return one


def reason_of(record, name=None):
    (one,) = all_made(record, name)
    return one.reason


@pytest.mark.parametrize(
    ("name", "prompt", "preference"),
    [
        ("helpsteer3", CHAT, 1.5 - 2 / 6),
        ("pku", TextPrompt(PROMPT), 2.0),
        ("webgpt", TextPrompt(PROMPT), 1.25),
        ("shp", TextPrompt(PROMPT), 1.0),
        ("battles", CHAT, 2.0),
        ("arena", CHAT, 2.0),
        ("helpsteer2-preference", CHAT, 1.5 + 2 / 6),
        ("ultrafeedback", CHAT, None),
        ("tulu", CHAT, None),
        ("distilabel", CHAT, None),
    ],
)
def test_a_record_as_published(name, prompt, preference):
    record = PUBLISHED[name]
    assert format_of(record) == name
    one = row_of(record)
    assert (one.prompt, one.better, one.worse) == (prompt, GOOD, BAD)
    if preference is None:  # chosen and rejected: the order is drawn
        assert one.preference == (1.0 if one.output_1 == GOOD else 2.0)
    else:
        assert one.preference == pytest.approx(preference, abs=1e-12)


def test_tldr_asks_with_the_words_of_openai_and_keeps_post_and_summaries_as_they_are():
    one = row_of(TLDR)
    assert format_of(TLDR) == "tldr"
    words = "SUBREDDIT: r/rivers\n\nTITLE: Wet\n\nPOST: I fell into the Elbe.\n\nIt was cold.\n\nTL;DR:"
    assert one.prompt == TextPrompt(words)
    assert (one.output_1, one.output_2, one.preference, one.annotator) == (
        " Fell in.", " Fell into a cold river.", 2.0, "w7",
    )  # fmt: skip
    meta = json.loads(one.meta)
    assert (meta["generator_1"], meta["generator_2"], meta["note_1"]) == ("sup2", "ref", "short")
    assert (meta["info"], meta["extra"], meta["choice"]) == ({"id": "t3_1"}, {"confidence": 8}, 1)
    assert "summaries" not in meta
    article = {"id": "c", "article": "It rained.", "title": "Weather", "post": None, "subreddit": None}
    assert row_of({**TLDR, "info": article}).prompt.text == "TITLE: Weather\n\nIt rained.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("value", "preference"),
    [(-3, 1.0), (-1, 1.5 - 1 / 6), (0, 1.5), (1, 1.5 + 1 / 6), (3, 2.0), (-100, None), (4, None), (None, None)],
)
def test_degrees_of_helpsteer3_stay_between_1_and_2(value, preference):
    one = row_of({**HELPSTEER3, "overall_preference": value})
    assert one.preference == (None if preference is None else pytest.approx(preference, abs=1e-12))
    assert (one.output_1, one.output_2) == (GOOD, BAD)
    assert json.loads(one.meta).get("overall_preference") == value


@pytest.mark.parametrize(
    ("scores", "preference"),
    [((1.0, -1.0), 1.0), ((0.0, 0.0), 1.5), ((-0.25, 0.25), 1.625), ((0.5, 0.5), None), ((None, None), None),
     ((3.0, -3.0), None), ((math.nan, math.nan), None)],
)  # fmt: skip
def test_scores_of_webgpt(scores, preference):
    one = row_of({**WEBGPT, "score_0": scores[0], "score_1": scores[1]})
    assert one.preference == preference
    meta = json.loads(one.meta)
    assert meta["question"] == {"dataset": "eli5", "id": "q1"}
    assert meta["quotes_0"]["extract"] == ["The Elbe flows"]
    assert "tokens_0" not in meta


@pytest.mark.parametrize("value", [-1, 2, None, "1", True, math.nan, 0.5])
@pytest.mark.parametrize(
    ("record", "name"),
    [(PKU, "better_response_id"), (TLDR, "choice"), (SHP, "labels"), (HELPSTEER3, "overall_preference"),
     (BATTLE, "winner")],
)  # fmt: skip
def test_an_unknown_label_goes_to_neither_answer(record, name, value):
    one = row_of({**record, name: value})
    graded = record is HELPSTEER3 and value in (-1, 2, 0.5) and value is not True
    assert (one.preference is None) != graded
    assert one.verdict == ("unknown" if not graded else one.verdict)


def test_labels_of_shp_name_a_with_1():
    assert [row_of({**SHP, "labels": label}).preference for label in (1, 0)] == [1.0, 2.0]


@pytest.mark.parametrize("text", ["[removed]", " [deleted]\n", "[Removed]"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: {**SHP, "human_ref_A": text},
        lambda text: {**SHP, "history": text},
        lambda text: {**TLDR, "info": {**TLDR["info"], "post": text}},
    ],
)
def test_what_reddit_took_back_is_no_text(text, change):
    assert reason_of(change(text)) == "removed"


def test_pku_is_judged_twice_and_the_safer_answer_is_taken_only_if_asked_for():
    assert formats_of(PKU) == ["pku"]
    better, safer = row_of(PKU), row_of(PKU, "pku-safer")
    assert (better.better, safer.better) == (GOOD, BAD)
    meta = json.loads(better.meta)
    assert (meta["safer_response_id"], meta["is_response_1_safe"]) == (0, False)
    assert json.loads(safer.meta)["better_response_id"] == 1


def test_ranks_of_nectar_become_all_pairs_or_those_with_the_best():
    def found(**settings):
        return [(one.better, one.worse) for one in rows_of(NECTAR, **settings)]

    assert format_of(NECTAR) == "nectar"
    assert found() == [(GOOD, "The Rhine."), (GOOD, BAD), ("The Rhine.", BAD)]
    assert found(pairs="best") == [(GOOD, "The Rhine."), (GOOD, BAD)]
    seven = {**NECTAR, "answers": [{"answer": f"a{rank}", "model": "m", "rank": float(rank)} for rank in range(1, 8)]}
    assert (len(rows_of(seven)), len(rows_of(seven, pairs="best"))) == (21, 6)
    assert {one.preference for one in rows_of(seven)} == {1.0, 2.0}  # the order is drawn
    assert len({one.id for one in rows_of(seven)}) == 21
    for one in rows_of(seven):
        meta = json.loads(one.meta)
        assert (f"a{int(meta['rank_1'])}", f"a{int(meta['rank_2'])}") == (one.output_1, one.output_2)
        assert "answers" not in meta
    assert {one.prompt for one in rows_of(NECTAR)} == {CHAT}
    assert {one.prompt for one in rows_of(NECTAR, as_text=True)} == {TextPrompt(NECTAR["prompt"])}


def test_ranks_that_are_equal_or_missing():
    def answers(*ranks):
        return {**NECTAR, "answers": [{"answer": f"a{at}", "rank": rank} for at, rank in enumerate(ranks)]}

    assert [one.verdict for one in rows_of(answers(1.0, 1.0))] == ["tie"]
    assert [one.verdict for one in rows_of(answers(None, 1.0))] == ["unknown"]
    assert reason_of(answers(1.0)) == "not_two_answers"
    same = {**NECTAR, "answers": [{"answer": text, "rank": rank} for rank, text in enumerate("xxy", 1)]}
    made = all_made(same)
    # One answer given twice: neither of the two is better, and both beat the third, which is one fact.
    assert [one.reason if not isinstance(one, Prepared) else one.rows[0].better for one in made] == [
        "equal_answers", "x", "x",
    ]  # fmt: skip
    assert made[1].key == made[2].key


@pytest.mark.parametrize(
    ("record", "name", "better", "worse"),
    [
        (ULTRAFEEDBACK, "ultrafeedback", "score_chosen", "score_rejected"),
        (DISTILABEL, "distilabel", "chosen-rating", "rejected-rating"),
        ({**TULU, "chosen_rating": 4.0, "rejected_rating": 1.0}, "tulu", "chosen_rating", "rejected_rating"),
    ],
)
def test_equal_ratings_are_a_tie_and_contradicting_ones_unknown(record, name, better, worse):
    assert format_of(record) == name
    assert row_of(record).better == GOOD
    assert row_of({**record, worse: record[better]}).verdict == "tie"
    assert row_of({**record, worse: record[better] + 1}).verdict == "unknown"
    assert row_of({**record, worse: None}).better == GOOD
    # The same answer twice: a tie may be, a better one not.
    twice = {**record, "rejected": record["chosen"]}
    assert reason_of(twice) == "equal_answers"
    tied = row_of({**twice, worse: record[better]})
    assert (tied.prompt, tied.output_1, tied.output_2, tied.preference) == (CHAT, GOOD, GOOD, 1.5)


def test_generators_follow_the_order_that_was_drawn():
    seen = set()
    for number in range(12):
        one = row_of({**DISTILABEL, "chosen": ASKED + said(f"{GOOD} {number}")})
        meta = json.loads(one.meta)
        seen.add(meta["generator_1"])
        assert (meta["generator_1"] == "a") == (one.preference == 1.0)
        assert {meta["generator_1"], meta["generator_2"]} == {"a", "b"}
    assert seen == {"a", "b"}


def test_distilabels_orca_has_its_judgement_in_the_status():
    assert format_of(ORCA) == "distilabel"
    one = row_of(ORCA)
    assert one.prompt == ChatPrompt((Message("system", "You are brief."), Message("user", PROMPT)))
    assert (one.better, one.worse) == (GOOD, BAD)
    assert row_of({**ORCA, "system": ""}).prompt == CHAT
    assert [row_of({**ORCA, "status": status}).verdict for status in ("tie", "lost", None)] == [
        "tie", "unknown", "unknown",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("winner", "preference"),
    [("model_a", 1.0), ("model_b", 2.0), ("tie", 1.5), ("tie (bothbad)", 1.5), ("both_bad", 1.5), ("koala", None)],
)
def test_winners_of_battles(winner, preference):
    one = row_of({**BATTLE, "winner": winner})
    assert (one.preference, one.annotator) == (preference, "arena_user_1")
    meta = json.loads(one.meta)
    assert (meta["generator_1"], meta["generator_2"], meta["winner"]) == ("koala", "alpaca", winner)


def test_battles_of_several_turns_share_no_prompt():
    more = [{"role": "user", "content": "And a lake?"}]
    both = {f"conversation_{side}": BATTLE[f"conversation_{side}"] + more + said(side) for side in "ab"}
    assert reason_of({**BATTLE, **both, "turn": 2}) == "several_answers"
    # MT-bench judges the first turn of a conversation that goes on.
    first = row_of({**BATTLE, **both, "turn": 1, "judge": ["gpt-4", "pair-v2"]})
    assert (first.better, first.annotator) == (GOOD, "gpt-4/pair-v2")
    assert reason_of({**BATTLE, "conversation_a": both["conversation_a"]}) == "unequal_lists"
    assert reason_of({**BATTLE, "conversation_a": [], "conversation_b": []}) == "no_prompt"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**HELPSTEER3, "context": []}, "no_prompt"),
        ({**HELPSTEER3, "response2": None}, "no_column"),
        ({**HELPSTEER3, "response2": " "}, "empty_answer"),
        ({**NECTAR, "answers": {"answer": ["a", "b"], "rank": [1.0]}}, "unequal_lists"),
        ({**NECTAR, "answers": ["a", "b"]}, "not_objects"),
        ({**NECTAR, "prompt": "Name a river."}, "not_a_dialogue"),
        ({**TLDR, "summaries": TLDR["summaries"] * 2}, "not_two_answers"),
        ({**TLDR, "info": None}, "no_prompt"),
        ({**TLDR, "info": {"id": "x"}}, "no_prompt"),
        ({**TLDR, "summaries": None}, "no_column"),
        ({**WEBGPT, "question": None}, "no_column"),
        ({**WEBGPT, "question": {"full_text": None}}, "no_column"),
        ({**SHP, "human_ref_B": None}, "no_column"),
        ({**PKU, "prompt": 7}, "not_text"),
        ({**ULTRAFEEDBACK, "rejected": [{"role": "user", "content": "Other."}, *said(BAD)]}, "no_prompt"),
        ({**ULTRAFEEDBACK, "chosen": None}, "no_column"),
        ({**DISTILABEL, "rejected": []}, "no_prompt"),
        ({**ORCA, "rejected": GOOD}, "equal_answers"),
        ({**BATTLE, "conversation_b": None}, "no_column"),
    ],
)
def test_what_is_no_comparison_has_its_reason(record, reason):
    name = "nectar" if record.get("answers") == ["a", "b"] else format_of(record)
    assert reason_of(record, name) == reason


@pytest.mark.parametrize(
    ("record", "names"),
    [
        (ULTRAFEEDBACK, ["ultrafeedback", "trl"]),
        ({**TULU, "chosen_rating": None, "rejected_rating": None}, ["tulu", "distilabel", "trl"]),
        (DISTILABEL, ["distilabel", "trl"]),
        ({**ULTRAFEEDBACK, "id": "a", "source": "b", "chosen_rating": 1, "rejected_rating": 0},
         ["ultrafeedback", "tulu", "distilabel", "trl"]),
    ],
)  # fmt: skip
def test_of_several_formats_that_fit_the_first_is_taken(record, names):
    assert formats_of(record) == names


def test_the_choice_is_explained(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [ULTRAFEEDBACK])
    request = FeedbackRequest([str(source)])
    assert request.detect(request.find().files).reason == (
        "because of the columns prompt, chosen, rejected, score_chosen, score_rejected; trl would fit, too"
    )


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_tables_hold_the_same_rows_as_lines(tmp_path, name):
    """Also with a list of objects stored as an object of lists, as `datasets` did."""
    record = PUBLISHED[name]
    columns = {key: {inner: [one.get(inner) for one in value] for inner in value[0]} for key, value in record.items()
               if key in ("answers", "summaries", "completions") for value in [value]}  # fmt: skip
    write_lines(tmp_path / "lines.jsonl", [record])
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "objects.parquet")
    pq.write_table(pa.Table.from_pylist([{**record, **columns}]), tmp_path / "lists.parquet")
    found = []
    for file in ("lines.jsonl", "objects.parquet", "lists.parquet"):
        manifest = prepare_feedback(FeedbackRequest([str(tmp_path / file)]), str(tmp_path / f"out-{file}"))
        assert manifest.format == name
        rows = list(read_feedback(str(tmp_path / f"out-{file}")))
        found.append([(row.prompt, {row.better, row.worse}, row.annotator) for row in rows])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == {"nectar": 3, "ultrafeedback-raw": 6}.get(name, 1)


def test_pairs_and_texts_of_nectar_are_settings_of_the_job(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [NECTAR])
    best = FeedbackRequest([str(source)], pairs="best", as_text=True)
    manifest = prepare_feedback(best, str(tmp_path / "out"))
    assert (manifest.rows, manifest.form.prompts) == (2, "text")
    with pytest.raises(ConfigError, match="--pairs was 'best', is 'all'"):
        prepare_feedback(FeedbackRequest([str(source)], as_text=True), str(tmp_path / "out"))


def test_the_guide_has_all_formats():
    guide = (ROOT / "docs" / "feedback_formats.md").read_text(encoding="utf-8")
    assert [name for name in FORMATS if f"`{name}`" not in guide] == []


def test_unknown_columns_name_all_formats(tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"Question": "a", "Answer": "b"}])
    with pytest.raises(ConfigError) as caught:
        prepare_feedback(FeedbackRequest([str(source)]), str(tmp_path / "out"))
    assert "'Question', 'Answer'" in str(caught.value)
    assert all(f"{name}: " in str(caught.value) for name in FORMATS)
