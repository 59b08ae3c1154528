"""How instructions are put into a model's words, and the files in which its answers are kept."""

import json
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from tiny_models import tiny_tokenizer
from tokenizers import processors

from phf_ray.checkpoint import CheckpointInfo, RowInfo
from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.answers.store import AnswerStore, DrawnAnswer, file_name
from phf_ray.evaluation.answers.templates import words_of, words_of_server
from phf_ray.generation.chat.prompts import InstructionPrompt

CHAT = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
PROMPT = InstructionPrompt("Add.", "1 2")


def folder_of(path: Path, *, chat: str | None = None, adds_start: bool = False) -> Path:
    tokenizer = tiny_tokenizer()
    if adds_start:
        start = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start[0]} $A", special_tokens=[start]
        )
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(path)
    return path


def test_a_model_without_a_template_is_asked_as_alpaca_farm_asked(tmp_path):
    words = words_of(folder_of(tmp_path), None, chosen=None)(PROMPT)
    assert words.endswith("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:")
    assert words == words_of_server("m", chosen=None)(PROMPT)


def test_a_model_has_the_template_that_it_was_trained_with_whatever_its_tokenizer_says(tmp_path):
    template = json.dumps({"prompt_noinputs": "Q {instruction}", "prompt_inputs": "Q {instruction} ({input}):"})
    info = CheckpointInfo(rows=RowInfo(template="gone.json", template_text=template, length=8))
    folder = folder_of(tmp_path, chat=CHAT)
    assert words_of(folder, info, chosen=None)(PROMPT) == "Q Add. (1 2):"
    assert words_of(folder, info, chosen="plain")(PROMPT) == "Add.\n\n1 2"


@pytest.mark.parametrize(("adds_start", "start"), [(False, "<|endoftext|>"), (True, "")])
def test_the_tokenizers_own_template_and_no_start_that_the_server_adds_once_more(tmp_path, adds_start, start):
    folder = folder_of(tmp_path, chat=CHAT, adds_start=adds_start)
    assert words_of(folder, None, chosen=None)(PROMPT) == f"{start}<user>Add.\n\n1 2<assistant>"


def test_a_tokenizers_template_is_not_at_hand_on_a_server(tmp_path):
    with pytest.raises(ConfigError, match="the tokenizer of m is on its server"):
        words_of_server("m", chosen="tokenizer")
    with pytest.raises(ConfigError, match="has none"):
        words_of(folder_of(tmp_path), None, chosen="tokenizer")


def answer(key: str) -> DrawnAnswer:
    return DrawnAnswer(key, "p", 1, f"text {key}", "stop", 3)


def test_answers_are_in_one_file_once_they_are_gathered_and_other_models_keep_theirs(tmp_path):
    store = AnswerStore(str(tmp_path))
    for name in ("a", "owner/b:good", ".."):
        store.add(name, answer("1"))
    store.gather("owner/b:good")
    store.add("owner/b:good", answer("2"))
    assert sorted(store.read("owner/b:good")) == ["1", "2"]
    store.gather("owner/b:good")
    store.gather("..")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        "%2E%2E.jsonl",
        "a",
        "owner%2Fb%3Agood.jsonl",
    ]
    assert (store.read("owner/b:good")["2"], sorted(store.read("a"))) == (answer("2"), ["1"])
    assert {file_name(name) for name in (".", "..")} == {"%2E", "%2E%2E"}


@pytest.mark.parametrize("moment", ["cat_file", "rm_file"])
def test_two_jobs_may_gather_at_once(tmp_path, monkeypatch, moment):
    first, second = AnswerStore(str(tmp_path)), AnswerStore(str(tmp_path))
    for key in ("1", "2"):
        first.add("a", answer(key))
    real = getattr(LocalFileSystem, moment)

    def meanwhile(self, *words, **options):
        monkeypatch.setattr(LocalFileSystem, moment, real)
        second.gather("a")
        return real(self, *words, **options)

    monkeypatch.setattr(LocalFileSystem, moment, meanwhile)
    assert sorted(first.gather("a")) == ["1", "2"]
    assert sorted(first.read("a")) == ["1", "2"]


def test_what_a_killed_job_left_behind_is_no_answer_and_a_damaged_file_is_named(tmp_path):
    store = AnswerStore(str(tmp_path))
    store.add("a", answer("1"))
    (tmp_path / "drawn" / "a" / ".2.json-1234abcd").write_text('{"key"')
    assert list(store.read("a")) == ["1"]
    (tmp_path / "drawn" / "a" / "3.json").write_text('{"key"')
    with pytest.raises(DataError, match=r"3\.json can't be read as answers that were drawn"):
        store.read("a")
