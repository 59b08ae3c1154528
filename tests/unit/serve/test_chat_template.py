"""The chat template in `/tokenizer_info`: lm-eval's remote tokenizer compiles and renders it."""

import asyncio

import jinja2
from served import sender, served_app
from tiny_models import tiny_tokenizer, write_checkpoint

from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.engines.upstream import UpstreamModel
from serve.settings import ServedModel

CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = "{{ tools }}"
MESSAGES = [{"role": "user", "content": "Café?"}]


def info(directory, template):
    """The answer for a checkpoint whose tokenizer has this template, in the file that transformers writes."""
    path = write_checkpoint(directory)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    model = LocalModel.load(ServedModel(name="chat", path=str(path)))
    backend = Backend({"chat": model}, {}, None)
    answer = sender(build_app(backend, access_log=False))("GET", "/tokenizer_info")
    model.thread.close()
    assert answer.status_code == 200
    return answer.json(), tokenizer


def test_the_template_renders_as_the_tokenizer_renders_it(tmp_path):
    body, tokenizer = info(tmp_path, CHAT)
    assert body["chat_template"] == CHAT
    rendered = (
        jinja2.Environment().from_string(body["chat_template"]).render(messages=MESSAGES, add_generation_prompt=True)
    )
    assert rendered == tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert "Café?" in rendered


def test_of_several_templates_the_default_is_the_one(tmp_path):
    templates = {"default": CHAT, "tool_use": TOOLS}
    body, _ = info(tmp_path, templates)
    assert (body["chat_template"], body["chat_templates"]) == (CHAT, templates)


def test_without_a_default_the_client_chooses(tmp_path):
    templates = {"rag": CHAT, "tool_use": TOOLS}
    body, _ = info(tmp_path, templates)
    assert (body["chat_template"], body["chat_templates"]) == (None, templates)


def test_a_tokenizer_without_a_template_has_none():
    body = sender(served_app())("GET", "/tokenizer_info").json()
    assert body["chat_template"] is None
    assert "chat_templates" not in body


def test_a_model_behind_an_upstream_server_has_the_template_of_its_directory(tmp_path):
    path = write_checkpoint(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(path)
    served = ServedModel(name="chat", path=str(path), upstream={"url": "http://127.0.0.1:9/v1"})
    assert asyncio.run(UpstreamModel.load(served).tokenizer_info())["chat_template"] == CHAT
