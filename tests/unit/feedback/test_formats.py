"""Each published format becomes the rows that it means; what does not fit is rejected with its reason."""

import json
import math

import pytest
from feedback_files import QUESTION

from phf_ray.feedback.formats.table import FORMATS, format_of
from phf_ray.feedback.prepare import Prepared, RowSettings, in_drawn_order, prepare_record
from phf_ray.feedback.rows import Comparison, Example
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt, Message, TextPrompt

ASKED = [{"role": "user", "content": "Hi"}]


def said(text):
    return [{"role": "assistant", "content": text}]


def made(record, name=None, **settings):
    found = name or format_of(record)
    assert found is not None
    (one,) = prepare_record(record, source="a.jsonl", index=3, settings=RowSettings(found, **settings))
    return one


def row(record, name=None, **settings):
    prepared = made(record, name, **settings)
    assert isinstance(prepared, Prepared), prepared
    (one,) = prepared.rows
    return one


def answers(comparison):
    return (comparison.better, comparison.worse)


def test_hh_dialogues_become_messages():
    one = row({"chosen": f"{QUESTION} Fine.", "rejected": f"{QUESTION} Go away.\n"})
    assert one.prompt == ChatPrompt(
        (Message("user", "Hello?"), Message("assistant", "Yes?"), Message("user", "What is up?"))
    )
    assert answers(one) == ("Fine.", "Go away.")


def test_hh_dialogues_can_stay_text_byte_for_byte():
    record = {"chosen": f"{QUESTION} Fine.", "rejected": f"{QUESTION} Go away.\n"}
    one = row(record, as_text=True)
    assert one.prompt == TextPrompt(QUESTION)
    assert (one.prompt.text + one.better, one.prompt.text + one.worse) == (record["chosen"], record["rejected"])


def test_the_prompt_of_hh_ends_with_the_last_mark_that_both_share():
    # Cut at its own last mark, the chosen dialogue would have another prompt than the rejected one.
    one = row({"chosen": f"{QUESTION} A\n\nAssistant: B", "rejected": f"{QUESTION} C"})
    assert one.prompt.messages[-1] == Message("user", "What is up?")
    assert answers(one) == ("A\n\nAssistant: B", "C")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": f"{QUESTION} A", "rejected": f"{QUESTION} A"}, "equal_answers"),
        ({"chosen": f"{QUESTION} A", "rejected": f"{QUESTION} "}, "empty_answer"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: A", "rejected": "\n\nHuman: b\n\nAssistant: A"}, "no_prompt"),
        ({"chosen": f"Listen.{QUESTION} A", "rejected": f"Listen.{QUESTION} B"}, "not_a_dialogue"),
        ({"chosen": f"{QUESTION} A"}, "no_column"),
    ],
)
def test_what_is_no_comparison_of_hh_is_rejected(record, reason):
    assert made(record, "hh").reason == reason


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "good", "rejected": "bad"}, TextPrompt("Hi")),
        ({"prompt": ASKED, "chosen": said("good"), "rejected": said("bad")}, ChatPrompt((Message("user", "Hi"),))),
        ({"chosen": ASKED + said("good"), "rejected": ASKED + said("bad")}, ChatPrompt((Message("user", "Hi"),))),
        (
            {"prompt": "Hi", "chosen": ASKED + said("good"), "rejected": ASKED + said("bad")},
            ChatPrompt((Message("user", "Hi"),)),
        ),
    ],
)
def test_comparisons_of_trl(record, prompt):
    assert format_of(record) == "trl"
    one = row(record)
    assert isinstance(one, Comparison)
    assert (one.prompt, *answers(one)) == (prompt, "good", "bad")


def test_the_beginning_of_two_texts_is_their_prompt_as_in_trl():
    one = row({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert (one.prompt, *answers(one)) == (TextPrompt("The sky is"), " blue.", " green.")
    assert made({"chosen": "A", "rejected": "B"}).reason == "no_prompt"


def test_examples_of_trl():
    assert row({"prompt": "Hi", "completion": "Ho"}) == row({"prompt": "Hi", "completion": "Ho"}, "plain")
    assert row({"prompt": ASKED, "completion": said("Ho")}).completion == "Ho"
    assert [row({"prompt": "Hi", "completion": "Ho", "label": label}).label for label in (True, False)] == [True, False]
    talk = row({"messages": ASKED + said("Ho")})
    assert (talk.prompt, talk.conversation) == (None, (Message("user", "Hi"), Message("assistant", "Ho")))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Hi", "chosen": "A", "rejected": "A"}, "equal_answers"),
        ({"prompt": "Hi", "chosen": "A", "rejected": " \n"}, "empty_answer"),
        ({"prompt": "Hi", "completion": ""}, "empty_answer"),
        ({"prompt": "Hi", "completion": "Ho", "label": "yes"}, "bad_label"),
        ({"prompt": "Hi", "completion": 7}, "not_text"),
        ({"prompt": None, "completion": "Ho"}, "no_column"),
        ({"prompt": "Hi", "completion": "\ud800"}, "lone_surrogate"),
        ({"prompt": ASKED, "completion": said("a") + said("b")}, "not_one_answer"),
        ({"prompt": [], "completion": said("a")}, "no_prompt"),
        ({"messages": ASKED}, "empty_answer"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"name": "f"}]}]}, "tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not_messages"),
    ],
)
def test_what_does_not_fit_trl_is_rejected(record, reason):
    assert made(record, "trl").reason == reason


def test_alpaca_keeps_instruction_and_input_apart():
    pair = {"instruction": "Add", "input": "1 1", "output_1": "3", "output_2": "2", "preference": 2}
    one = row(pair)
    assert one.prompt == InstructionPrompt("Add", "1 1")
    # A format with an order of its own keeps it.
    assert (one.output_1, one.output_2, one.preference) == ("3", "2", 2.0)
    assert row({"instruction": "Sing", "output": "La"}).prompt == InstructionPrompt("Sing", "")
    assert isinstance(row({"instruction": "Sing", "input": None, "output": "La"}), Example)


@pytest.mark.parametrize(
    ("value", "preference"),
    [(1, 1.0), (2, 2.0), (1.25, 1.25), (1.5, 1.5), (0, 1.5), (-1, None), (3, None), (None, None), (math.nan, None),
     ("2", None), (True, None)],
)  # fmt: skip
def test_ties_and_unknown_labels_stay_and_go_to_neither_answer(value, preference):
    one = row({"instruction": "a", "output_1": "x", "output_2": "y", "preference": value})
    assert one.preference == preference
    if preference != value and value is not None:
        assert json.loads(one.meta)["preference"] in (value, "NaN")


def test_equal_answers_may_tie_but_neither_is_better():
    pair = {"instruction": "a", "output_1": "x", "output_2": "x"}
    assert row({**pair, "preference": 1.5}).verdict == "tie"
    assert made({**pair, "preference": 1}).reason == "equal_answers"


def test_our_own_columns():
    pair = {"output_1": "x", "output_2": "y", "preference": 0, "annotator": "me"}
    assert format_of({"prompt": "a", **pair}) == format_of({"messages": ASKED, **pair}) == "plain"
    one = row({"prompt": "a", **pair})
    # Nothing but AlpacaFarm writes a tie as 0.
    assert (one.prompt, one.preference, one.annotator) == (TextPrompt("a"), None, "me")
    assert row({"messages": ASKED, "completion": "Ho", "control": "good"}).control == "good"
    assert made({"prompt": "a", "completion": "b", "control": "fine"}, "plain").reason == "bad_control"


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"chosen": QUESTION + " a", "rejected": QUESTION + " b"}, "hh"),
        ({"prompt": QUESTION, "chosen": " a", "rejected": " b"}, "trl"),
        ({"prompt": "a", "instruction": "a", "output": "b"}, "alpaca"),
        ({"prompt": "a", "instruction": "a", "input": "", "completion": "b"}, "plain"),
        ({"question": "a", "answer": "b"}, None),
        ({"prompt": "a", "chosen": "b"}, None),
    ],
)
def test_the_columns_tell_the_format(record, name):
    assert format_of(record) == name


def test_the_order_of_named_answers_is_drawn_by_the_id():
    rows = [row({"prompt": f"question {number}", "chosen": "good", "rejected": "bad"}) for number in range(400)]
    firsts = sum(one.output_1 == "good" for one in rows)
    assert 160 < firsts < 240
    assert all(one.preference == (1 if one.output_1 == "good" else 2) for one in rows)
    again = [row({"prompt": f"question {number}", "chosen": "good", "rejected": "bad"}) for number in range(400)]
    assert again == rows
    assert in_drawn_order(Comparison(TextPrompt(""), "a", "b", 1.25, id="x")) in (
        Comparison(TextPrompt(""), "a", "b", 1.25, id="x"),
        Comparison(TextPrompt(""), "b", "a", 1.75, id="x"),
    )


def test_an_id_is_a_hash_of_content_and_source():
    record = {"prompt": "Hi", "completion": "Ho"}
    settings = RowSettings("trl")

    def id_of(record, source="a", index=0):
        (one,) = prepare_record(record, source=source, index=index, settings=settings)
        return one.rows[0].id

    assert id_of(record) == id_of({**record, "other": 1}, index=7)
    assert len({id_of(record), id_of(record, source="b"), id_of({**record, "completion": "Hu"})}) == 3


def test_other_columns_and_the_place_go_to_meta():
    one = row({"prompt": "Hi", "completion": "Ho", "source": "web", "score": math.nan, "meta": '{"a": 1}'})
    assert json.loads(one.meta) == {
        "source_column": "web", "score": "NaN", "meta": {"a": 1}, "source": "a.jsonl", "record": 3,
    }  # fmt: skip


def test_every_format_says_its_columns():
    assert {name: bool(str(one)) for name, one in FORMATS.items()} == dict.fromkeys(FORMATS, True)
