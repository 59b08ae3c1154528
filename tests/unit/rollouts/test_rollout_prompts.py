"""Prompts of whatever file, each once, with an id that nothing but its words decides."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feedback_files import write_lines

from jobs.prepare_feedback import main as prepare_feedback
from phf_ray.errors import DataError
from phf_ray.generation.chat.prompts import ChatPrompt, InstructionPrompt, TextPrompt
from phf_ray.generation.chat.templates import load_template
from phf_ray.rollouts.prompts import read_prompts

ROWS = [
    {"instruction": "Add", "input": "1 2", "datasplit": "eval"},
    {"instruction": "Sing"},
    {"instruction": "Add", "input": "1 2"},
]


def test_instructions_get_the_words_of_the_template_and_copies_are_counted(tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(ROWS))
    found = read_prompts([str(tmp_path / "prompts.json")], template=load_template("plain"))
    assert [prompt.text for prompt in found.prompts] == ["Add\n\n1 2", "Sing"]
    assert [(prompt.instruction, prompt.input) for prompt in found.prompts] == [("Add", "1 2"), ("Sing", "")]
    assert found.prompts[0].row["datasplit"] == "eval"
    assert dict(found.left_out) == {"duplicate": 1}


def test_every_kind_of_file_gives_the_same_prompts_and_ids(tmp_path):
    lines = write_lines(tmp_path / "lines.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "table.parquet")
    (tmp_path / "array.json").write_text(json.dumps(ROWS))
    examples = [{**row, "output": f"answer {number}"} for number, row in enumerate(ROWS)]
    prepare_feedback(
        ["--input", str(write_lines(tmp_path / "examples.jsonl", examples)), "--output", str(tmp_path / "corpus")]
    )
    sources = [lines, tmp_path / "table.parquet", tmp_path / "array.json", tmp_path / "corpus"]
    ids = [[p.id for p in read_prompts([str(source)], template=load_template("alpaca")).prompts] for source in sources]
    assert ids[0] == ids[1] == ids[2]
    assert sorted(ids[3]) == sorted(ids[0])


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"text": "def f("}, TextPrompt("def f(")),
        ({"prompt": {"text": "She said", "toxicity": 0.1}}, TextPrompt("She said")),
        ({"question": "Why?"}, TextPrompt("Why?")),
        ({"instruction": "Add", "input": None}, InstructionPrompt("Add")),
    ],
)
def test_a_prompt_is_found_where_published_sets_have_it(tmp_path, row, prompt):
    found = read_prompts([str(write_lines(tmp_path / "p.jsonl", [row]))], template=None)
    assert found.prompts[0].prompt == prompt


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "Hi"}], 5])
def test_a_message_that_is_no_text_is_not_asked_as_the_words_none_or_a_list(tmp_path, content):
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}
    rows = [{"messages": [user, answer]}, {"messages": [user, answer, user]}]
    found = read_prompts([str(write_lines(tmp_path / "p.jsonl", rows[:1]))], template=None)
    assert [message.content for message in found.prompts[0].prompt.messages] == ["Hi"], "the answer is not asked"
    with pytest.raises(DataError, match=r"p\.jsonl, .*: a message of the assistant is .*, not a text"):
        read_prompts([str(write_lines(tmp_path / "p.jsonl", rows))], template=None)


def test_an_answer_at_the_end_of_messages_is_no_part_of_the_prompt(tmp_path):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    for column in ("messages", "prompt"):
        found = read_prompts([str(write_lines(tmp_path / "p.jsonl", [{column: turns}]))], template=None)
        assert isinstance(found.prompts[0].prompt, ChatPrompt)
        assert found.prompts[0].text == "user: Hello"


def test_a_prompt_that_the_template_cannot_hold_is_counted_and_the_others_stay(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    file = write_lines(tmp_path / "p.jsonl", [{"messages": turns}, {"messages": turns[:1]}])
    found = read_prompts([str(file)], template=load_template("alpaca"))
    assert len(found.prompts) == 1
    assert dict(found.left_out) == {"template": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "x"}, "row|record 0 has no prompt .*write one of messages, instruction"),
        ({"prompt": 3}, "prompt is 3, not a text"),
        ({"messages": ["hello"]}, "write a list of {role, content}"),
        ({"text": "a\ud800"}, "half of a surrogate pair"),
    ],
)
def test_a_row_without_a_prompt_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_prompts([str(write_lines(tmp_path / "p.jsonl", [row]))], template=None)


def test_a_file_without_rows_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there are no prompts"):
        read_prompts([str(write_lines(tmp_path / "p.jsonl", [{"text": "x"}]))], template=None, limit=0)
