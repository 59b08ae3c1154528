"""How the tokens of a conversation begin: once with what the model expects before a text."""

import pytest
from tiny_models import END_OF_TEXT, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from phf_ray.checkpoint import CheckpointInfo, RowInfo
from phf_ray.errors import ConfigError
from phf_ray.generation.chat import Message
from phf_ray.generation.conversations import conversations_of
from phf_ray.generation.requests import RequestError
from phf_ray.generation.tokens import TokenStrings

TALK = [Message("user", "Hi")]
WITH_START = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
WITHOUT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def strings_of(template=None, *, ours=False):
    """A tokenizer that puts a token before each text, as those of Llama do."""
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, end)]
    )
    tokenizer.bos_token = END_OF_TEXT
    tokenizer.chat_template = template
    assert tokenizer("Hi")["input_ids"][0] == end
    return TokenStrings(tokenizer, num_logits=len(tokenizer), control=None, starts_with_eos=ours)


def ids_of(strings, info=None, **chosen):
    return conversations_of(strings, info, **chosen).ids(TALK, context=100)


@pytest.mark.parametrize("template", [WITH_START, WITHOUT])
def test_the_tokenizers_own_template_says_itself_how_a_text_begins(template):
    strings = strings_of(template)
    messages = [{"role": "user", "content": "Hi"}]
    expected = strings.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids_of(strings) == expected
    assert expected.count(strings.eos_id) == (template == WITH_START)


def test_words_of_other_templates_follow_what_the_tokenizer_puts_before_a_text(tmp_path):
    strings = strings_of()
    assert ids_of(strings, chosen="plain") == strings.encode("Hi")[0]
    for text in (WITH_START, WITHOUT):
        (tmp_path / "t.jinja").write_text(text)
        assert ids_of(strings, chosen=str(tmp_path / "t.jinja")) == strings.encode("Hi")[0]
    assert strings.encode("Hi")[0].count(strings.eos_id) == 1


def test_models_of_this_project_begin_with_the_end_of_text_as_their_rows_did():
    strings = strings_of(WITHOUT, ours=True)
    assert ids_of(strings) == strings.encode("Hi")[0]
    assert ids_of(strings)[0] == strings.eos_id


def test_template_of_the_training_comes_before_the_tokenizers():
    strings = strings_of(WITHOUT, ours=True)
    info = CheckpointInfo(rows=RowInfo(template="mine", template_text="Q {{ messages[0].content }}", length=64))
    assert ids_of(strings, info) == strings.encode("Q Hi")[0]
    assert ids_of(strings, info, chosen="plain") == strings.encode("Hi")[0]
    assert conversations_of(strings_of(), None) is None
    lost = CheckpointInfo(rows=RowInfo(template="tokenizer", template_text="x", length=64))
    assert conversations_of(strings_of(), lost) is None
    with pytest.raises(ConfigError, match="template cho does not exist"):
        conversations_of(strings, None, chosen="cho")


def test_a_conversation_that_is_far_too_long_is_not_encoded():
    strings = strings_of()
    with pytest.raises(RequestError, match="the conversation has 5,000 characters"):
        conversations_of(strings, None, chosen="plain").ids([Message("user", "x" * 5000)], context=10)
