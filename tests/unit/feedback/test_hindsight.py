"""`--to coh`: comparisons become records with fields, and records of others are read."""

import json
from dataclasses import replace

import pytest
import yaml

from jobs.prepare_feedback import main
from phf_ray.config import load_phrases
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.hindsight.fields import FieldsError, parse_fields, pieces_of
from phf_ray.feedback.hindsight.settings import HindsightSettings
from phf_ray.feedback.prepare import Prepared, RowSettings, prepare_record
from phf_ray.feedback.reader import read_feedback, read_feedback_manifest

DIALOGUE = {
    "chosen": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 1+1?\n\nAssistant: 2",
    "rejected": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: 1+1?\n\nAssistant: 3",
}
SUMMARY = {
    "info": {"subreddit": "a", "title": "b", "post": "c"},
    "summaries": [{"text": "good one"}, {"text": "bad one"}],
    "choice": 0,
}
QUESTION = {
    "question": {"full_text": "why?"},
    "quotes_0": {"title": ["T"], "extract": ["E"]},
    "quotes_1": {"title": ["U"], "extract": ["F"]},
    "answer_0": "because",
    "answer_1": "no",
    "score_0": 0.5,
    "score_1": -0.5,
}
RATED = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 4.0, "score_rejected": 2.5}


def records(record, kinds, format, **others):
    settings = HindsightSettings.of(kinds, load_phrases(), **others)
    (made,) = prepare_record(record, source="s", index=0, settings=RowSettings(format, to="coh", hindsight=settings))
    return [row.record for row in made.rows] if isinstance(made, Prepared) else made


def fields(record, kinds, format, **others):
    return [one.fields for one in records(record, kinds, format, **others)]


GIVEN = "[marker_user+human_0+marker_gpt]"


@pytest.mark.parametrize(
    ("record", "kind", "format", "expected"),
    [
        (DIALOGUE, "p", "hh", f"{GIVEN},gpt_1,<|eos|>,[marker_user+human_2+marker_gpt],gpt_3,<|eos|>"),
        (
            DIALOGUE,
            "n",
            "hh",
            f"{GIVEN},[gpt_1],[<|eos|>],[marker_user+human_2+marker_gpt_bad],gpt_bad_3,<|eos|>",
        ),
        (
            SUMMARY,
            "np",
            "tldr",
            "[marker_user+human_0+marker_gpt_bad],gpt_bad_1,<|eos|>,[marker_gpt],gpt_0,<|eos|>",
        ),
        (
            QUESTION,
            "pn",
            "webgpt",
            "[marker_user+human_0+quote_0+marker_gpt],gpt_0,<|eos|>,[quote_1+marker_gpt_bad],gpt_bad_1,<|eos|>",
        ),
    ],
)
def test_the_fields_are_those_of_the_original(record, kind, format, expected):
    assert fields(record, kind, format) == [expected]


def test_under_compat_shared_turns_of_the_bad_dialogue_are_labelled_bad_and_learned():
    bad = (
        "[marker_user+human_0+marker_gpt_bad],gpt_bad_1,<|eos|>,[marker_user+human_2+marker_gpt_bad],gpt_bad_3,<|eos|>"
    )
    good = f"{GIVEN},gpt_1,<|eos|>,[marker_user+human_2+marker_gpt],gpt_3,<|eos|>"
    assert fields(DIALOGUE, "np", "hh", compat="coh") == [f"{bad},{good}"]


@pytest.mark.parametrize(
    ("record", "format", "kinds", "number"),
    [
        (DIALOGUE, "hh", "p,n,pn,np", 4),
        (DIALOGUE, "hh", "p,n,pn,np,aux", 48),
        (QUESTION, "webgpt", "p,n,pn,np,aux", 24),
        (SUMMARY, "tldr", "p,n,pn,np,aux", 24),
        (SUMMARY, "tldr", "p", 1),
    ],
)
def test_records_per_comparison(record, format, kinds, number):
    made = records(record, kinds, format)
    assert len(made) == number
    assert len({json.dumps([one.fields, sorted(one.texts.items())]) for one in made}) == number


def test_with_aux_the_default_markers_are_not_used():
    marks = load_phrases().markers
    for one in records(DIALOGUE, "p,n,aux", "hh"):
        assert not {marks.good, marks.bad}.intersection(one.texts.values())
    sentences = {one.texts["marker_gpt_bad"] for one in records(SUMMARY, "n,aux", "tldr")}
    assert "Below is a less correct summary." in sentences


def test_texts_of_a_record():
    (one,) = records(QUESTION, "pn", "webgpt")
    assert one.texts["marker_user"] == "User:"
    assert one.texts["human_0"] == "why?"
    assert one.texts["gpt_0"] == "because"
    assert one.texts["quote_0"].endswith("[1] title: T content: E")
    assert one.texts["quote_1"].endswith("content: F")
    (summary,) = records(SUMMARY, "p", "tldr")
    assert summary.texts["human_0"].endswith("POST: c"), "the mark that asked for the summary is taken off"
    assert summary.texts["human_0"].split(" SUBREDDIT")[0] in load_phrases().summary_requests


def test_draws_depend_on_seed_and_row_alone():
    drawn = {seed: records(SUMMARY, "p", "tldr", seed=seed)[0].texts["human_0"] for seed in range(8)}
    assert len(set(drawn.values())) > 1
    assert drawn[3] == records(SUMMARY, "n,p", "tldr", seed=3)[0].texts["human_0"]


def test_ratings_become_feedback_and_a_tie_of_ratings_is_no_loss():
    made = records(RATED, "rating", "ultrafeedback")
    assert {(one.texts["marker_gpt"], one.texts[f"gpt_{place}"]) for place, one in enumerate(made)} == {
        ("An answer with a rating of 4 of 5:", "a"),
        ("An answer with a rating of 2.5 of 5:", "b"),
    }
    tie = {**RATED, "score_rejected": 4.0}
    assert len(records(tie, "p,n,rating", "ultrafeedback")) == 2
    assert records(tie, "p,n", "ultrafeedback").reason == "tie"
    assert records({**RATED, "score_chosen": 9.0}, "rating", "ultrafeedback").reason == "rating_out_of_range"
    assert records(DIALOGUE, "rating", "hh").reason == "no_rating"


@pytest.mark.parametrize("kinds", ["", "aux", "p,q", " , "])
def test_an_include_list_that_makes_nothing_is_refused(kinds):
    with pytest.raises(ConfigError, match="--include-feedback"):
        HindsightSettings.of(kinds, load_phrases())


def test_the_grammar_of_fields():
    texts = {"a": "x", "b": "y", "c": "z"}
    pieces = pieces_of("[a+b],c,<|eos|>,[<|bos|>]", texts)
    assert [(one.text, one.token, one.is_learned) for one in pieces] == [
        ("x y", None, False),
        ("z", None, True),
        ("", "eos", True),
        ("", "bos", False),
    ]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "no_fields"),
        ("[a],,b", "bad_fields"),
        ("[a],b]", "bad_fields"),
        ("[a],<|pad|>", "unknown_token"),
        ("[a],missing", "no_field"),
        ("[a],<|eos|>", "empty_answer"),
    ],
)
def test_records_that_their_fields_do_not_fit(spec, reason):
    with pytest.raises(FieldsError) as caught:
        pieces_of(spec, {"a": "x", "b": "y"})
    assert caught.value.reason == reason
    if reason in ("no_fields", "bad_fields", "unknown_token"):
        with pytest.raises(FieldsError):
            parse_fields(spec)


@pytest.fixture
def pairs(tmp_path):
    lines = [{name: f"{text}{number}" for name, text in DIALOGUE.items()} for number in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines[:10]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines[10:]))
    return tmp_path


def test_a_corpus_and_its_json_lines_are_whole_and_read_again(pairs, capsys):
    inputs = [str(pairs / "a.jsonl"), str(pairs / "b.jsonl")]
    coh = ["--to", "coh", "--include-feedback", "p,n,pn,np", "--jsonl", str(pairs / "all.jsonl")]
    assert main(["--input", *inputs, "--output", str(pairs / "coh"), *coh]) == 0
    lines = [json.loads(line) for line in (pairs / "all.jsonl").read_text().splitlines()]
    assert len(lines) == 120 == read_feedback_manifest(str(pairs / "coh")).rows
    assert all(one["fields"].startswith("[marker_user") and one["marker_user"] == "User:" for one in lines)
    # Users' own files, and a corpus of ours, come back as they were.
    assert main(["--input", str(pairs / "all.jsonl"), "--output", str(pairs / "again")]) == 0
    assert main(["--input", str(pairs / "coh"), "--output", str(pairs / "third")]) == 0
    kept = [one.record for one in read_feedback(str(pairs / "coh"))]
    assert [one.record for one in read_feedback(str(pairs / "third"))] == kept
    assert [one.record.fields for one in read_feedback(str(pairs / "again"))] == [one.fields for one in kept]


def test_a_file_for_others_is_checked_before_the_work_and_is_like_any_other_file(pairs):
    arguments = ["--input", str(pairs / "a.jsonl"), "--output", str(pairs / "coh"), "--to", "coh", "--jsonl"]
    for file, problem in ((pairs / "none" / "all.jsonl", "there is no folder"), (pairs, "is a folder; give the name")):
        with pytest.raises(ConfigError, match=problem):
            main([*arguments, str(file)])
        assert not (pairs / "coh").exists()
    assert main([*arguments, str(pairs / "all.jsonl")]) == 0
    assert (pairs / "all.jsonl").stat().st_mode == (pairs / "a.jsonl").stat().st_mode
    assert not list(pairs.glob(".phf-*"))


def test_the_report_of_records_with_fields(pairs, capsys):
    arguments = ["--input", str(pairs / "a.jsonl"), "--output", str(pairs / "coh"), "--to", "coh", "--report"]
    assert main(arguments) == 0
    assert "480 rows, 1 different prompts" in capsys.readouterr().out


def test_other_words_are_another_configuration(pairs):
    own = pairs / "own.yml"
    own.write_text(yaml.safe_dump({"markers": {"good": "Good:"}}))
    begin = ["--input", str(pairs / "a.jsonl"), "--output", str(pairs / "coh"), "--to", "coh"]
    assert main([*begin, "--include-feedback", "p", "--phrases", str(own)]) == 0
    (first, *_) = read_feedback(str(pairs / "coh"))
    assert first.record.texts["marker_gpt"] == "Good:"
    assert first.record.texts["marker_user"] == "User:"
    with pytest.raises(ConfigError, match="--phrases was"):
        main([*begin, "--include-feedback", "p"])
    with pytest.raises(ConfigError, match="--include-feedback was 'p', is 'n'"):
        main([*begin, "--include-feedback", "n", "--phrases", str(own)])


@pytest.mark.parametrize(
    ("record", "reason"),
    [({"fields": "[a],b", "a": "x"}, "no_field"), ({"fields": "[a],<|sep|>", "a": "x"}, "unknown_token")],
)
def test_users_records_that_can_not_be_read_say_why(tmp_path, record, reason):
    (tmp_path / "own.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=reason):
        main(["--input", str(tmp_path / "own.jsonl"), "--output", str(tmp_path / "out")])


def test_options_of_coh_need_it(tmp_path):
    with pytest.raises(ConfigError, match="--seed needs --to coh"):
        main(["--input", "x.jsonl", "--output", str(tmp_path / "out"), "--seed", "3"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hindsight": {"sentences": ["A text."]}}, "no {quality}"),
        ({"rating": {"words": "A rating:"}}, "no {rating}"),
        ({"markers": {"good": " "}}, "markers.good"),
        ({"marker": {}}, "unknown key"),
    ],
)
def test_phrases_that_would_hide_the_feedback_are_refused(tmp_path, values, message):
    file = tmp_path / "own.yml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=message):
        load_phrases(file)


def test_a_row_that_is_shuffled_or_stored_elsewhere_makes_the_same_records():
    settings = HindsightSettings.of("p,n", load_phrases(), seed=1)
    one, other = (
        prepare_record(SUMMARY, source="s", index=place, settings=RowSettings("tldr", to="coh", hindsight=settings))[0]
        for place in (0, 99)
    )
    assert [row.record for row in one.rows] == [row.record for row in other.rows]
    assert [replace(row, meta="") for row in one.rows] == [replace(row, meta="") for row in other.rows]


def test_words_that_no_tokenizer_reads_are_refused(tmp_path):
    file = tmp_path / "own.yml"
    file.write_text('markers: {good: "\\ud83d"}')
    with pytest.raises(ConfigError, match=r"markers\.good: .*half of a surrogate pair"):
        load_phrases(file)
