"""Prompts put into words by a chat template or a file with two keys: the text before the answer, and the answer."""

import json

import pytest
from tiny_models import tiny_tokenizer

from phf_ray.errors import ConfigError
from phf_ray.generation.chat import (
    ChatPrompt,
    InstructionPrompt,
    Message,
    PromptError,
    TextPrompt,
    load_template,
    prompt_text,
)
from phf_ray.generation.chat.templates import template_names

CHATML = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TALK = ChatPrompt((Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Well?")))
HOSTILE = "{instruction} {input} {{ 7 * 7 }} {% raw %} \\1 {0} {}"


def two_keys(path, **changes):
    keys = {"prompt_inputs": "{instruction} / {input}:", "prompt_noinputs": "{instruction}:", **changes}
    path.write_text(json.dumps({name: text for name, text in keys.items() if text is not None}))
    return path


def test_a_file_with_two_keys_takes_the_one_for_the_input(tmp_path):
    template = load_template(str(two_keys(tmp_path / "t.json")))
    assert template.prompt(InstructionPrompt("Add", "1 1")) == "Add / 1 1:"
    assert template.prompt(InstructionPrompt("Sing")) == "Sing:"
    assert template.prompt(TextPrompt("Sing")) == template.prompt(ChatPrompt((Message("user", "Sing"),))) == "Sing:"
    example = template.example(InstructionPrompt("Sing"), "La")
    assert (example.prompt, example.completion) == ("Sing:", "La")


def test_doubled_braces_of_a_file_are_one_as_in_alpaca_farm(tmp_path):
    file = two_keys(tmp_path / "t.json", prompt_noinputs='{{"a": {{{instruction}}}}}')
    assert load_template(str(file)).prompt(TextPrompt("x")) == '{"a": {x}}'


@pytest.mark.parametrize("name", ["alpaca", "hh", "plain"])
def test_the_words_of_a_data_set_are_never_a_template(name):
    template = load_template(name)
    prompt = InstructionPrompt(HOSTILE, HOSTILE)
    expected = (
        template.prompt(InstructionPrompt("FIRST", "SECOND")).replace("FIRST", HOSTILE).replace("SECOND", HOSTILE)
    )
    assert template.prompt(prompt) == expected
    example = template.example(prompt, HOSTILE)
    assert example.completion.lstrip(" ") == HOSTILE
    assert example.prompt == template.prompt(prompt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_inputs": None}, "has no text 'prompt_inputs' .found: 'prompt_noinputs'.; a template file is"),
        ({"prompt_noinputs": None}, "has no text 'prompt_noinputs'"),
        ({"prompt_noinputs": 7}, "has no text 'prompt_noinputs'"),
        ({"prompt_inputs": "{instruction}"}, "'prompt_inputs' has no place for {input}"),
        ({"prompt_noinputs": "instruction"}, "'prompt_noinputs' has no place for {instruction}"),
    ],
)
def test_a_file_without_its_keys_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_template(str(two_keys(tmp_path / "t.json", **changes)))


def test_what_is_no_template_is_refused(tmp_path):
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ConfigError, match=r"t.json is not JSON"):
        load_template(str(tmp_path / "t.json"))
    (tmp_path / "t.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"has no text 'prompt_inputs' \(found: a list\)"):
        load_template(str(tmp_path / "t.json"))
    (tmp_path / "t.jinja").write_text("a\n{% if %}")
    with pytest.raises(ConfigError, match=r"t.jinja, line 2: "):
        load_template(str(tmp_path / "t.jinja"))
    with pytest.raises(
        ConfigError, match=r"template alpca does not exist; give tokenizer .*alpaca, chatml, coh, hh, plain"
    ):
        load_template("alpca")


def test_ours_begin_the_answer_where_they_should():
    assert template_names() == ["alpaca", "chatml", "coh", "hh", "plain"]
    alpaca = load_template("alpaca")
    assert alpaca.prompt(InstructionPrompt("Sing")).endswith("### Instruction:\nSing\n\n### Response:")
    assert alpaca.prompt(InstructionPrompt("Add", "1")).endswith("Add\n\n### Input:\n1\n\n### Response:")
    hh = load_template("hh").example(TALK, "Fine.")
    assert hh.prompt + hh.completion == ("\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Well?\n\nAssistant: Fine.")
    assert hh.prompt.endswith("\n\nAssistant:")
    plain = load_template("plain").example(TextPrompt("The sky"), " is blue")
    assert (plain.prompt, plain.completion) == ("The sky", " is blue")


def test_one_instruction_is_not_a_conversation():
    with pytest.raises(PromptError, match=r"this prompt has user, assistant, user; give a chat template"):
        load_template("alpaca").prompt(TALK)
    with pytest.raises(PromptError, match=r"the roles user and assistant, not 'system'"):
        load_template("hh").prompt(ChatPrompt((Message("system", "Be good."),)))


def test_the_tokenizer_s_own_template_is_rendered_by_it():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    template = load_template("tokenizer", tokenizer=tokenizer)
    messages = [{"role": one.role, "content": one.content} for one in TALK.messages]
    example = template.example(TALK, "Fine.")
    assert example.prompt == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": "Fine."})
    assert example.prompt + example.completion == tokenizer.apply_chat_template(messages, tokenize=False)
    assert example.completion == f"Fine.{tokenizer.eos_token}\n"
    assert template.prompt(TextPrompt("Hi")) == f"<|user|>Hi{tokenizer.eos_token}\n<|assistant|>"


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(ConfigError, match="has none; give one of alpaca, chatml, coh, hh, plain, or a file"):
        load_template("tokenizer", tokenizer=tiny_tokenizer())
    with pytest.raises(ConfigError, match="none is given here"):
        load_template("tokenizer")


def test_a_chat_template_in_a_file_is_the_same_as_the_tokenizer_s(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    (tmp_path / "t.jinja").write_text(CHATML)
    own, file = (
        load_template("tokenizer", tokenizer=tokenizer),
        load_template(str(tmp_path / "t.jinja"), tokenizer=tokenizer),
    )
    assert file.example(TALK, "Fine.") == own.example(TALK, "Fine.")
    assert file.conversation(TALK.messages) == own.conversation(TALK.messages)


def test_marks_of_answers_in_a_file_are_no_obstacle(tmp_path):
    (tmp_path / "t.jinja").write_text(
        "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}"
    )
    assert load_template(str(tmp_path / "t.jinja")).prompt(TALK) == "HiHoWell?"


def test_a_template_can_not_reach_out_of_its_sandbox(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(PromptError, match="SecurityError"):
        load_template(str(tmp_path / "t.jinja")).prompt(TALK)


def test_of_a_conversation_only_the_answers_are_learned():
    pieces = load_template("hh").conversation([*TALK.messages, Message("assistant", "Fine.")])
    assert [(piece.text, piece.is_answer) for piece in pieces] == [
        ("\n\nHuman: Hi\n\nAssistant:", False), (" Ho", True),
        ("\n\nHuman: Well?\n\nAssistant:", False), (" Fine.", True),
    ]  # fmt: skip
    (given, learned) = load_template("alpaca").conversation([Message("user", "Sing"), Message("assistant", "La")])
    assert (given.is_answer, learned.text, learned.is_answer) == (False, "La", True)
    (after,) = load_template("hh").conversation([Message("user", "Hi")])
    assert not after.is_answer


def test_where_the_answer_begins_must_be_known(tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages | length }}{{ messages[-1].content }}")
    with pytest.raises(PromptError, match="nothing says where the answer begins"):
        load_template(str(tmp_path / "t.jinja")).example(TALK, "Fine.")


def test_the_text_of_a_prompt_needs_no_template():
    assert prompt_text(InstructionPrompt("Add", "1")) == "Add\n\n1"
    assert prompt_text(InstructionPrompt("Add")) == prompt_text(TextPrompt("Add")) == "Add"
    assert prompt_text(TALK) == "user: Hi\n\nassistant: Ho\n\nuser: Well?"
