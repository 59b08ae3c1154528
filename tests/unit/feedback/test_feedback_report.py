"""--report: every figure against a number by hand, and what sets the prompts are found in."""

import json

import pytest
from feedback_files import bytes_of, hh_record, write_folder, write_lines

from jobs.prepare_feedback import main
from phf_ray.corpus.overlap import shared_words
from phf_ray.errors import ConfigError
from phf_ray.feedback.against import find_other_set, words_of
from phf_ray.feedback.job import prepare_feedback
from phf_ray.feedback.plan import FeedbackRequest
from phf_ray.feedback.report import report_feedback, report_lines
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt, Message, TextPrompt
from phf_ray.measures.win_rates import win_rate

LONG = "Why does the river that flows through the old town rise in spring and fall in autumn?"


def pair(prompt, first, second, preference):
    return {"prompt": prompt, "output_1": first, "output_2": second, "preference": preference}


def report(tmp_path, records, against=(), name="out"):
    source = write_lines(tmp_path / f"{name}.jsonl", records)
    prepare_feedback(FeedbackRequest([str(source)]), str(tmp_path / name))
    return report_feedback(str(tmp_path / name), [find_other_set(str(one)) for one in against])


def test_lengths_labels_and_repeats(tmp_path):
    records = [
        pair("ab", "x", "yyy", 1),
        pair("ab", "x", "yyy", 1),  # a duplicate, left out
        pair("ab", "yyy", "x", 1),  # the same two answers, judged the other way
        pair("abcd", "x", "zz", 2),
        pair("abcd", "zz", "x", 1.25),  # the same two answers, judged alike
        pair("abcdef", "x", "zz", 1.5),
        pair("abcdef", "x", "w", None),
    ]
    found = report(tmp_path, records)
    assert (found["rows"], found["distinct_prompts"], found["duplicates"]) == (6, 3, 1)
    assert found["prompt_characters"] == {"median": 4.0, "p90": 6.0}
    # 1, 3, 3, 1, 1, 2, 2, 1, 1, 2, 1, 1
    assert found["answer_characters"] == {"median": 1.0, "p90": pytest.approx(2.9)}
    assert found["preferences"] == {"first": 3, "second": 1, "tie": 1, "unknown": 1}
    assert found["judged_again"] == {"pairs": 2, "contradicting": 1}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found


def test_a_pair_is_the_same_in_both_orders(tmp_path):
    both_ways = [pair("a", "x", "y", 1), pair("a", "y", "x", 1)]
    alike = [pair("b", "x", "y", 1), pair("b", "y", "x", 2), pair("b", "x", "y", 1.25)]
    other_prompt = [pair("c", "x", "y", 2)]
    found = report(tmp_path, [*both_ways, *alike, *other_prompt])
    assert found["judged_again"] == {"pairs": 2, "contradicting": 1}
    found = report(tmp_path, [pair("b", "x", "y", 1), pair("b", "y", "x", 2)], name="alike")
    assert found["judged_again"] == {"pairs": 1, "contradicting": 0}


def test_how_often_the_longer_answer_wins(tmp_path):
    # In 9 of 12 decided pairs of unequal lengths, of 8 prompts.
    records = [pair(f"p{at % 8}", "s", f"long {at}", 2 if at < 9 else 1) for at in range(12)]
    records += [pair("p1", "a", "b", 1), pair("p2", "a", "bb", 1.5), pair("p3", "a", "bbb", None)]
    longer = report(tmp_path, records)["longer"]
    assert (longer["better"], longer["pairs"], longer["equal_lengths"]) == (75.0, 12, 1)
    expected = win_rate([2] * 9 + [1] * 3, clusters=[at % 8 for at in range(12)]).interval()
    assert longer["interval"] == pytest.approx([expected.low, expected.high])
    assert longer["interval"] != pytest.approx(list(_interval_of_rows()))


def _interval_of_rows():
    interval = win_rate([2] * 9 + [1] * 3).interval()
    return interval.low, interval.high


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([pair("p", "a", "bb", 2)], "in 100.0% of 1 pairs (no interval: fewer than 2 prompts"),
        ([pair("p", "a", "b", 2)], "the longer answer: no pair has a better answer that is longer or shorter"),
    ],
)
def test_what_can_not_be_said_has_its_reason(tmp_path, records, said):
    assert said in "\n".join(report_lines(report(tmp_path, records)))


def test_prompts_of_another_set_are_shown(tmp_path):
    records = [
        pair("Name a river!", "a", "b", 1),
        pair("name  a river.", "a", "c", 1),
        pair(f"{LONG} Be brief.", "a", "b", 1),
        pair("Name a lake.", "a", "b", 1),
    ]
    other = write_lines(tmp_path / "other.jsonl", [{"question": f"I ask: {LONG}"}, {"question": "Name a river"}, {}])
    found = report(tmp_path, records, [other])
    (one,) = found["against"]
    assert {name: one[name] for name in ("prompts", "unread", "exact", "shared", "rows")} == {
        "prompts": 2, "unread": 1, "exact": 2, "shared": 1, "rows": 3,
    }  # fmt: skip
    words = "why does the river that flows through the old town rise in spring"
    assert one["matches"] == [
        {"prompt": "Name a river!", "other": "Name a river", "words": None},
        {"prompt": "name  a river.", "other": "Name a river", "words": None},
        {"prompt": f"{LONG} Be brief.", "other": f"I ask: {LONG}", "words": words},
    ]
    lines = "\n".join(report_lines(found))
    assert "it has 2 of 4 prompts, and 1 more share 13 words in a row with one of it (3 rows)" in lines
    assert "1 of its records have no prompt" in lines
    assert "  the same: Name a river!\n" in lines
    assert f"  13 words: {words}" in lines


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": LONG, "output_1": "a", "output_2": "b", "preference": 1},
        {"instruction": LONG, "input": "", "output": "a"},
        {"chosen": f"\n\nHuman: {LONG}\n\nAssistant: a", "rejected": f"\n\nHuman: {LONG}\n\nAssistant: b"},
        {"prompt": f"\n\nHuman: {LONG}\n\nAssistant:", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": LONG}], "chosen": "a", "rejected": "b"},
        # Of no format, or with an answer that makes no row.
        {"prompt": LONG},
        {"instruction": LONG},
        {"text": LONG},
        {"texts": [LONG[:9], LONG[9:]]},
        {"prompt": LONG, "chosen": "", "rejected": "b"},
    ],
)
def test_another_set_may_be_of_any_kind(tmp_path, record):
    other = write_lines(tmp_path / "other.jsonl", [record])
    found = report(tmp_path, [pair(LONG, "a", "b", 1)], [other])
    assert found["against"][0]["exact"] == 1


def test_a_feedback_corpus_is_another_set(tmp_path):
    report(tmp_path, [hh_record(1), hh_record(2)], name="first")
    found = report(tmp_path, [hh_record(2), hh_record(3)], [tmp_path / "first"], name="second")
    assert found["against"][0]["exact"] == 1
    # It is in the set however its rows are cut into parts.
    source = write_folder(tmp_path / "in", [hh_record(number) for number in range(6)], each=2)
    prepare_feedback(FeedbackRequest([str(source)], shard_bytes=1), str(tmp_path / "parts"))
    other = find_other_set(str(tmp_path / "parts"))
    assert report_feedback(str(tmp_path / "second"), [other])["against"][0]["exact"] == 2


def test_words_of_a_prompt_are_those_alone():
    chat = ChatPrompt((Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Go")))
    text = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant:"
    assert words_of(chat) == words_of(TextPrompt(text)) == "Hi\n\nYes?\n\nGo"
    assert words_of(TextPrompt("Human: Hi")) == "Human: Hi"
    assert words_of(InstructionPrompt("Add", "1 1")) == "Add\n\n1 1"


def test_twelve_words_are_not_enough():
    words = " ".join(f"w{number}" for number in range(13))
    assert shared_words(f"So {words}!", words.upper()) == words
    assert shared_words(words, words.removeprefix("w0 ")) is None


def test_examples_have_no_preferences(tmp_path):
    talk = {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "d"}]}
    found = report(tmp_path, [talk])
    assert (found["prompt_characters"]["median"], found["answer_characters"]["median"]) == (3.0, 1.0)
    assert "longer" not in found
    assert "1 rows, 1 different prompts" in next(report_lines(found))


def test_the_command_reports_also_of_a_finished_set(tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", [hh_record(1), hh_record(2), hh_record(2)])
    words = ["--input", str(source), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert "different prompts" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "report.json").exists()
    assert main([*words, "--report", "--against", str(source)]) == 0
    said = capsys.readouterr().out
    assert "2 rows, 2 different prompts" in said
    assert "duplicates left out: 1" in said
    assert "in.jsonl (2 prompts): it has 2 of 2 prompts" in said
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"] == 2
    assert main([*words, "--restart"]) == 0
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "{tmp}/nowhere.jsonl", "--report"], "--against .*nowhere.jsonl does not exist"),
        (["--against", "{tmp}/odd.jsonl", "--report"], "odd.jsonl has no prompts: .*columns prompt, instruction"),
        (["--against", "{tmp}/in.jsonl"], "--against names sets for the report; add --report"),
    ],
)
def test_what_can_not_be_compared_is_told_before_any_work(tmp_path, words, message):
    source = write_lines(tmp_path / "in.jsonl", [hh_record(1)])
    write_lines(tmp_path / "odd.jsonl", [{"reply": "a"}])
    with pytest.raises(ConfigError, match=message):
        main(
            ["--input", str(source), "--output", str(tmp_path / "out"), *(word.format(tmp=tmp_path) for word in words)]
        )
    assert not (tmp_path / "out").exists()


def test_a_report_changes_nothing_else(tmp_path):
    report(tmp_path, [hh_record(1)])
    before = bytes_of(tmp_path / "out")
    report_feedback(str(tmp_path / "out"))
    assert bytes_of(tmp_path / "out") == before
    assert prepare_feedback(FeedbackRequest([str(tmp_path / "out.jsonl")]), str(tmp_path / "out")).rows == 1
