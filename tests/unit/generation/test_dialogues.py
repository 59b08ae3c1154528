"""Conversations put into words for a model that is to answer them, or to go on with its last answer."""

import pytest
from tiny_models import END_OF_TEXT, tiny_tokenizer

from phf_ray.config.hindsight import Markers
from phf_ray.generation.chat import ChatPrompt, Message, PromptError, load_template, stored_template
from phf_ray.generation.chat.turns import cut_conversation

SPACED = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TRIMMED = SPACED.replace("message['content']", "message['content'] | trim")


def talk(*contents: str, system: str | None = None) -> list[Message]:
    said = [Message("assistant" if number % 2 else "user", content) for number, content in enumerate(contents)]
    return [*([] if system is None else [Message("system", system)]), *said]


def dicts(messages: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def file_template(path, text):
    path.write_text(text)
    return load_template(str(path), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("template", [SPACED, TRIMMED])
@pytest.mark.parametrize("kind", ["tokenizer", "file"])
def test_text_of_a_conversation_is_that_of_transformers(tmp_path, template, kind):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    ours = (
        load_template("tokenizer", tokenizer=tokenizer)
        if kind == "tokenizer"
        else file_template(tmp_path / "t.jinja", template)
    )
    for messages in (talk("Hi"), talk(" Hi ", "Ho\n", "{{ 7 * 7 }}", system="Be good.")):
        opened = tokenizer.apply_chat_template(dicts(messages), tokenize=False, add_generation_prompt=True)
        assert ours.dialogue(messages) == opened
        assert ours.dialogue(messages, ending="closed") == tokenizer.apply_chat_template(
            dicts(messages), tokenize=False
        )
    for answer in ("The sky is", "The sky is ", ""):
        messages = talk("Why?", answer)
        continued = tokenizer.apply_chat_template(dicts(messages), tokenize=False, continue_final_message=True)
        assert ours.dialogue(messages, ending="continued") == continued
    assert ours.dialogue(talk("Why?", "The sky is"), ending="continued").endswith("<assistant> The sky is")


def test_last_message_that_a_template_leaves_out_can_not_be_continued(tmp_path):
    template = file_template(tmp_path / "t.jinja", "{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(PromptError, match="can't be continued"):
        template.dialogue(talk("Hi", "Ho"), ending="continued")


def test_two_keys_hold_a_conversation_turn_by_turn():
    alpaca = load_template("alpaca")
    once = alpaca.dialogue(talk("Sing"))
    assert once == alpaca.dialogue(talk("Sing"), ending="closed")
    again = alpaca.dialogue(talk("Sing", " La", "More", system="Be good."))
    assert again == f"Be good.\n\n{once} La\n\n{once.replace('Sing', 'More')}"
    assert alpaca.dialogue(talk("Sing", " La"), ending="continued") == f"{once} La"
    assert load_template("plain").dialogue(talk("def add(", "a, b):", "def sub(")) == "def add(a, b):\n\ndef sub("


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (talk("Hi", "Ho"), "does not end with a message of the user"),
        ([Message("assistant", "Ho"), *talk("Hi")], "a message of the assistant at the beginning"),
        ([*talk("Hi"), Message("system", "Be good."), *talk("Hi")], "a message of the system after one of the user"),
        ([*talk("Hi", "Ho"), Message("assistant", "Ho"), *talk("Hi")], "of the assistant after one of the assistant"),
    ],
)
def test_two_keys_refuse_turns_that_they_have_no_place_for(messages, problem):
    with pytest.raises(PromptError, match=problem):
        load_template("alpaca").dialogue(messages)


def test_coh_puts_the_marker_that_is_asked_for_before_each_answer():
    coh = load_template("coh", tokenizer=tiny_tokenizer(), markers=Markers(user="Q:", good="Good:", bad="Bad:"))
    assert coh.reads_control
    assert coh.dialogue(talk("Hi")) == coh.dialogue(talk("Hi"), control="good") == "Q: Hi Good:"
    assert coh.dialogue(talk("Hi"), control="bad") == "Q: Hi Bad:"
    assert coh.dialogue(talk("Hi"), control="none") == "Q: Hi"
    assert coh.dialogue(talk("Hi", "Ho", "Well?", system="Be."), control="bad") == (
        f"Be. Q: Hi Good:Ho{END_OF_TEXT}Q: Well? Bad:"
    )
    assert coh.dialogue(talk("Hi", "Ho"), ending="continued", control="bad") == "Q: Hi Bad:Ho"
    assert coh.dialogue(talk("Hi", "Ho", "Well?"), control="none") == f"Q: HiHo{END_OF_TEXT}Q: Well?"
    assert coh.dialogue(talk("Hi", "Ho"), ending="continued") == "Q: Hi Good:Ho"
    own = load_template("coh").dialogue(talk("Hi"))
    assert own == "User: Hi A helpful answer:"
    with pytest.raises(PromptError, match="not 'narrator'"):
        coh.dialogue([Message("narrator", "Once")])


def test_chatml_marks_each_turn():
    assert load_template("chatml").dialogue(talk("Hi", "Ho", "Well?", system="Be good.")) == (
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_of_the_user_or_tokenizer_learns_what_is_asked_for_if_it_reads_it(tmp_path):
    text = "{{ control or 'unsaid' }}:{{ messages[0].content }}"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": text, "other": "x"}
    stored = stored_template("mine", text)
    for template in (
        file_template(tmp_path / "t.jinja", text),
        load_template("tokenizer", tokenizer=tokenizer),
        stored,
    ):
        assert template.reads_control
        assert template.dialogue(talk("Hi"), control="bad") == "bad:Hi"
        assert template.dialogue(talk("Hi")) == "unsaid:Hi"
    assert not load_template("chatml").reads_control
    assert not load_template("plain").reads_control


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}{{ x }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ '%s' | format(x.y.z) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ 1 / 0 }}",
    ],
)
@pytest.mark.parametrize("kind", ["tokenizer", "file"])
def test_templates_that_fail_or_reach_for_files_and_attributes_cost_one_conversation(tmp_path, attack, kind):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = attack
    ours = (
        load_template("tokenizer", tokenizer=tokenizer)
        if kind == "tokenizer"
        else file_template(tmp_path / "t.jinja", attack)
    )
    with pytest.raises(PromptError, match="template "):
        ours.dialogue(talk("Hi"))


IN_A_LINE = (
    "{%- for m in messages %}{{ ('' if loop.first else ' ') + (m.role + ': ' + m.content) | trim }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ ' assistant: ' }}{% endif -%}"
)


@pytest.mark.parametrize("cuts", ["at each answer", "before a last answer"])
@pytest.mark.parametrize("ending", ["opened", "closed", "continued"])
@pytest.mark.parametrize("template", [SPACED, TRIMMED, IN_A_LINE])
def test_pieces_of_a_conversation_are_its_text(tmp_path, template, ending, cuts):
    ours = file_template(tmp_path / "t.jinja", template)
    for contents in (("Hi", "Ho", "So?", "Yes"), ("Hi", "", "So?", ""), ("Hi", "", "So?"), ("Hi",)):
        messages = talk(*contents)
        text = ours.dialogue(messages, ending=ending)
        pieces = cut_conversation(ours, messages, text, cuts, ending=ending, control=None)
        assert "".join(pieces) == text


def test_a_conversation_that_is_whole_is_cut_before_its_answer_as_the_row_was(tmp_path):
    ours = file_template(tmp_path / "t.jinja", SPACED)
    messages = talk("Hi", "Ho", "So?", "Yes")
    text = ours.dialogue(messages, ending="closed")
    pieces = cut_conversation(ours, messages, text, "before a last answer", ending="closed", control=None)
    row = ours.example(ChatPrompt(tuple(messages[:3])), "Yes")
    assert pieces == [row.prompt, row.completion]
    # Rows were not cut at the answers of their prompts.
    text = ours.dialogue(messages[:3], ending="closed")
    assert cut_conversation(ours, messages[:3], text, "before a last answer", ending="closed", control=None) == [text]
