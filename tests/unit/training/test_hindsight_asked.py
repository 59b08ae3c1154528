"""A model that learned records of Chain of Hindsight is asked in their words, without being told which."""

import json

import numpy as np
import pytest
from tiny_models import tiny_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from jobs.prepare_feedback import main as prepare_feedback
from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import parse_config
from phf_ray.generation.chat import Message
from phf_ray.generation.conversations import conversations_of
from phf_ray.generation.tokens import TokenStrings
from phf_ray.records import TokenKind
from phf_ray.training.start import row_info

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "(Ho"},
    {"role": "user", "content": "Name a fox."},
]
OWN = {"user": "Q {{ 7 }}:", "good": 'Say "gut" 😀:', "bad": "Schlecht:"}
AUX = {"user": "User:", "good": "Below is a better response.", "bad": "Below is a worse response."}
OURS = {"user": "User:", "good": "A helpful answer:", "bad": "An unhelpful answer:"}


def joining_tokenizer():
    """A tokenizer with a token for the end of a marker and the beginning of an answer."""
    plain = tiny_tokenizer()
    said = json.loads(plain.backend_tokenizer.to_str())
    said["model"]["vocab"][":("] = len(plain)
    said["model"]["merges"].append([":", "("])
    joining = Tokenizer.from_str(json.dumps(said))
    end = plain.eos_token
    found = PreTrainedTokenizerFast(tokenizer_object=joining, eos_token=end, bos_token=end, unk_token=end)
    assert found("Good:(a")["input_ids"].count(len(plain)) == 1
    return found


def trained(folder, lines, *words):
    """Return the conversations of a model that learned these lines, and the rows that it learned."""
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepare_feedback(["--input", str(folder / "in.jsonl"), "--output", str(folder / "coh"), *words])
    tokenizer = joining_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    config = parse_config(
        {
            "dataset": {"datasets": [str(folder / "coh")], "seq_length": 256},
            "tokenizer": {"path_or_name": str(folder / "tokenizer")},
            "training": {"document_mask": True},
        }
    )
    plan = ensure_blocks(
        config, corpora=config.dataset.datasets, output_root=str(folder / "blocks"), builder=build_here
    )
    manifest = read_block_manifest(plan.root)
    blocks = BlockReader(plan.root, order=BlockOrder(manifest, seed=1)).read(0, manifest.num_blocks)
    rows = []
    for ids, kinds in zip(blocks.input_ids, blocks.token_kinds, strict=True):
        starts = np.flatnonzero(kinds == TokenKind.END_OF_TEXT)
        rows += zip(np.split(ids, starts[1:]), np.split(kinds, starts[1:]), strict=True)
    info = CheckpointInfo(rows=row_info(manifest))
    strings = TokenStrings(tokenizer, num_logits=len(tokenizer), control=None, starts_with_eos=True)
    return (lambda **chosen: conversations_of(strings, info, **chosen)), rows


def comparison(prompt):
    return {"prompt": prompt, "chosen": "Reynard", "rejected": "(a cat"}


@pytest.mark.parametrize(
    ("words", "markers"),
    [
        (["--to", "coh", "--include-feedback", "p,n,pn,np"], OURS),
        (["--to", "coh", "--include-feedback", "p,n,aux"], AUX),
        (["--to", "coh", "--include-feedback", "p,n", "--phrases", "OWN"], OWN),
    ],
)
def test_tokens_of_a_chat_are_those_of_the_record_up_to_the_answer(tmp_path, words, markers):
    (tmp_path / "own.yml").write_text(json.dumps({"markers": OWN}, ensure_ascii=False))
    known = [str(tmp_path / "own.yml") if word == "OWN" else word for word in words]
    lines = [comparison(TALK), comparison([*TALK[:2]]), comparison(TALK[1:2])]
    conversations, rows = trained(tmp_path, lines, *known)
    messages = [Message(**one) for one in TALK]
    learned = {tuple(ids[:end]) for ids, kinds in rows for end in np.flatnonzero(kinds == TokenKind.PLAIN)}
    for asked in ({}, {"chosen": "coh"}):
        chat = conversations(**asked)
        assert (chat.name, chat.reads_control) == ("coh", True)
        for talk in (messages, messages[:2], messages[1:2]):
            for control in ("good", "bad"):
                assert tuple(chat.ids(talk, context=256, control=control)) in learned
        text = tiny_tokenizer().decode(chat.ids(messages[1:2], context=256, control="bad"), skip_special_tokens=True)
        assert text == f"{markers['user']} Hi {markers['bad']}"


def test_words_of_records_of_others_are_found_in_them_and_a_file_of_phrases_comes_first(tmp_path):
    fields = "[marker_user+human_0+marker_gpt],gpt_0,<|eos|>"
    record = {"marker_user": "Q:", "human_0": "Hi", "marker_gpt": "Good:", "gpt_0": "Ho", "fields": fields}
    conversations, rows = trained(tmp_path, [record])
    ask = [Message("user", "Hi")]
    ((ids, kinds),) = rows
    assert conversations().ids(ask, context=256) == ids[: np.argmax(kinds == TokenKind.PLAIN)].tolist()
    decode = tiny_tokenizer().decode
    # Nothing in the records says how a bad answer is asked for.
    assert decode(conversations().ids(ask, context=256, control="bad")[1:]) == f"Q: Hi {OURS['bad']}"
    (tmp_path / "own.yml").write_text(json.dumps({"markers": OWN}, ensure_ascii=False))
    own = conversations(phrases=str(tmp_path / "own.yml"))
    assert decode(own.ids(ask, context=256)[1:]) == f"{OWN['user']} Hi {OWN['good']}"


def test_an_answer_that_is_continued_and_those_before_it_are_tokenized_as_each_was_learned(tmp_path):
    talk = [*TALK[1:3], {"role": "user", "content": "Again"}, {"role": "assistant", "content": "(so"}]
    messages = [Message(**one) for one in talk]

    def asked(folder, lines, *words):
        folder.mkdir()
        conversations, rows = trained(folder, lines, *words)
        chat = conversations()
        return chat.ids(messages, context=256, ending="continued"), [tuple(ids.tolist()) for ids, _ in rows]

    # Conversations, the records of comparisons, and examples with one answer each, whose prompt is one text.
    for name, line, words in (
        ("conversations", {"messages": talk}, []),
        (
            "records",
            {"prompt": talk[:3], "chosen": "(so", "rejected": "(no"},
            ["--to", "coh", "--include-feedback", "p"],
        ),
        ("examples", {"prompt": talk[:3], "completion": "(so"}, []),
    ):
        ids, rows = asked(tmp_path / name, [line], *words)
        assert any(tuple(ids) == row[: len(ids)] for row in rows), name
