"""A session against this project's own server: it finds markers and control tokens, and shows what the server says."""

import asyncio

import pytest
from evaluation_server import listening
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_tokenizer

from jobs import chat
from phf_ray.chat.conversation import ChatArm
from phf_ray.chat.server import CONTROLS, ChatServer
from phf_ray.chat.session import ChatSession
from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.generation.conversations import conversations_of
from phf_ray.generation.engine import Engine
from phf_ray.http.keys import Endpoint
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel


def model_of(template, *, control=None):
    tokenizer = tiny_tokenizer(control=control is not None)
    info = CheckpointInfo(control=control)
    engine = Engine(tiny_gpt2(tokenizer, seed=3), tokenizer, info=info)
    return LocalModel(engine, conversations=conversations_of(engine.strings, info, chosen=template))


@pytest.fixture(scope="module")
def url():
    control = Control(good=GOOD, bad=BAD, policy="ban")
    models = {"coh": model_of("coh"), "cond": model_of("hh", control=control), "hh": model_of("hh")}
    with listening(build_app(Backend(models, {}, None), access_log=False)) as url:
        yield url
    for model in models.values():
        model.thread.close()


def answered(url, *arms, messages=("def add(",)):
    session = ChatSession(ChatServer(Endpoint(url, None)))

    async def talk():
        for message in messages:
            async for _ in session.send(message, arms, system="", key="", scorer=None):
                pass

    asyncio.run(talk())
    return sorted(session.conversation.turns[-1].answers, key=lambda answer: answer.number)


def test_markers_of_a_template_are_chosen_like_control_tokens(url, capsys):
    listed = {model.id: model.controls for model in ChatServer(Endpoint(url, None)).list_models()}
    assert listed == {"coh": CONTROLS, "cond": CONTROLS, "hh": ()}
    assert chat.main(["--url", url, "--dry-run", "--model", "coh", "--model", "coh:bad"]) == 0
    assert capsys.readouterr().out == f"{url}: coh:good, coh:bad; scorers: none\n"


@pytest.mark.parametrize("model", ["coh", "cond"])
def test_good_and_bad_are_asked_side_by_side_over_several_turns(url, model):
    good, bad = answered(
        url,
        ChatArm(model, "good", temperature=0, max_tokens=6),
        ChatArm(model, "bad", temperature=0, max_tokens=6),
        messages=("def add(", "import os"),
    )
    assert [(one.state, one.problem) for one in (good, bad)] == [("done", None)] * 2
    assert [len(one.asked) for one in (good, bad)] == [3, 3]
    assert good.text != bad.text


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (ChatArm("coh", "bad", max_tokens=96), "context is 96"),
        (ChatArm("none"), "there is no model 'none'"),
        (ChatArm("hh", "good", max_tokens=6), "no control tokens"),
    ],
)
def test_what_the_server_refuses_stands_below_the_answer_in_its_words(url, arm, words):
    (answer,) = answered(url, arm)
    assert (answer.state, answer.text) == ("failed", "")
    assert words in answer.problem
