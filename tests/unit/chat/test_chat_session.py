"""A session against a real server: answers come side by side, stop stops, and what goes wrong is told in words."""

import asyncio
import threading

import pytest
from chat_server import HELD, chat_server

from phf_ray.chat.conversation import ChatArm, Conversation
from phf_ray.chat.judgements import JudgementFiles
from phf_ray.chat.server import CONTROLS, ChatServer, ListedModel
from phf_ray.chat.session import ChatSession
from phf_ray.errors import ConfigError, DataError, ServiceError
from phf_ray.http.keys import Endpoint

TAME, WILD = ChatArm("tame", "good", 0.5, 8), ChatArm("wild")


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


def session_of(server, *, key=None, **settings):
    session = ChatSession(ChatServer(Endpoint(server.url, key)), **settings)
    session.conversation = Conversation(swaps=lambda: False)
    return session


async def _all(events):
    return [None async for _ in events]


def send(session, message="hello", arms=(TAME, WILD), **asked):
    asked = {"system": "", "key": "", "scorer": None, **asked}
    asyncio.run(_all(session.send(message, arms, **asked)))
    return session.conversation.turns[-1].answers


def test_both_arms_answer_and_get_what_they_are_to_get_and_no_more(server):
    session = session_of(server, key="secret")
    answers = send(session, system="Be kind.")
    assert [(one.text, one.state) for one in answers] == [("tame hears hello", "done"), ("wild hears hello", "done")]
    tame, wild = sorted(server.bodies, key=lambda body: body["model"])
    assert (tame["control"], tame["temperature"], tame["max_tokens"]) == ("good", 0.5, 8)
    assert wild.keys() == {"model", "messages", "stream"}
    assert tame["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    assert server.keys == ["Bearer secret"] * 2
    assert not session.is_busy


def test_answers_are_shown_as_they_come_and_stop_hangs_up_and_keeps_what_was_said(server):
    server.pieces = lambda body: ["half", HELD, " more"]
    session = session_of(server)
    seen = []

    async def talk():
        async for _ in session.send("hello", (TAME, WILD), system="", key="", scorer=None):
            seen.append([one.text for one in session.conversation.turns[-1].answers])
            if seen[-1] == ["half", "half"]:
                session.end_answers()

    asyncio.run(asyncio.wait_for(talk(), 60))
    assert seen[-1] == ["half", "half"]
    assert {one.state for one in session.conversation.turns[-1].answers} == {"stopped"}
    for _ in range(2):
        assert server.hung_up.acquire(timeout=60), "the server was not told"
    assert session.conversation.why_not_judged() == "the two answers are the same"  # and so could be judged
    assert not session.is_busy


def test_one_arm_that_fails_leaves_the_other_and_the_conversation(server):
    server.pieces = lambda body: ["half", OSError()] if body["model"] == "wild" else ["whole"]
    session = session_of(server)
    tame, wild = send(session)
    assert (tame.text, tame.state) == ("whole", "done")
    assert (wild.text, wild.state) == ("half", "failed")
    assert "/v1/chat/completions did not answer" in wild.problem
    assert session.conversation.why_not_judged() == "an answer is missing"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["half", {"error": {"message": "out of memory"}}], "broke its answer off: out of memory"),
        (["half", {"choices": []}], "without saying that it was done"),
        ([{"choices": [{"delta": {}, "finish_reason": "stop"}]}], "the model said nothing"),
    ],
)
def test_an_answer_that_ends_badly_says_how(server, pieces, words):
    server.pieces = lambda body: pieces
    (answer,) = send(session_of(server), arms=[TAME])
    assert words in answer.problem
    assert not answer.is_usable


def test_a_refusal_is_told_in_the_servers_words_and_never_the_key(server):
    server.refusal = 401, "that key is not known"
    (answer,) = send(session_of(server, key="secret-key"), arms=[TAME])
    assert "status 401: " in answer.problem
    assert "that key is not known" in answer.problem
    assert "secret-key" not in answer.problem
    server.refusal = None
    assert send(session_of(server), arms=[TAME])[0].state == "done"


def test_a_server_that_is_away_is_named():
    session = ChatSession(ChatServer(Endpoint("http://127.0.0.1:9")))
    (answer,) = send(session, arms=[TAME])
    assert "http://127.0.0.1:9/v1/chat/completions did not answer" in answer.problem


def test_a_key_of_the_page_takes_the_place_of_the_commands(server):
    send(session_of(server, key="first"), arms=[TAME], key=" second ")
    assert server.keys == ["Bearer second"]


@pytest.mark.parametrize(
    ("url", "key"), [("http://example.com", "abc"), ("http://127.0.0.1:9", "a\nb"), ("http://127.0.0.1:9", "ключ")]
)
def test_a_key_that_would_travel_in_the_open_or_is_none_is_not_sent(url, key):
    session = ChatSession(ChatServer(Endpoint(url)))
    with pytest.raises(ConfigError, match="the key was not sent"):
        send(session, key=key)
    assert session.conversation.turns == []


def test_sentences_get_their_scores(server):
    server.scorers = ["shouting"]
    server.pieces = lambda body: ["Calm. ", "LOUD."]
    (answer,) = send(session_of(server), arms=[TAME], scorer="shouting")
    assert [(one.begin, one.end, one.score) for one in answer.scores.sentences] == [(0, 6, 0.1), (6, 11, 0.9)]
    assert (answer.scores.whole, answer.scores.unit) == (0.9, "probability")


def test_a_scorer_that_fails_says_so_beside_an_answer_that_stays(server):
    server.score_refusal = 400, "too long"
    (answer,) = send(session_of(server), arms=[TAME], scorer="shouting")
    assert answer.is_usable
    assert "too long" in answer.score_problem


def test_a_second_message_waits_for_the_first_and_an_empty_one_is_refused(server):
    session = session_of(server)

    async def twice():
        first = session.send("one", [TAME], system="", key="", scorer=None)
        await anext(first)
        with pytest.raises(ConfigError, match="still coming"):
            await _all(session.send("two", [TAME], system="", key="", scorer=None))
        with pytest.raises(ConfigError, match="still coming"):
            await _all(session.regenerate([TAME], system="", key="", scorer=None))
        await _all(first)

    asyncio.run(twice())
    assert [turn.message for turn in session.conversation.turns] == ["one"]
    with pytest.raises(ConfigError, match="empty"):
        send(session, " \n")


def test_regenerate_asks_the_same_again_and_reset_forgets(server):
    session = session_of(server)
    send(session, "one", [TAME])
    asyncio.run(_all(session.regenerate([WILD], system="", key="", scorer=None)))
    assert [one.text for turn in session.conversation.turns for one in turn.answers] == ["wild hears one"]
    session.reset()
    assert session.conversation.turns == []
    with pytest.raises(ConfigError, match="no message to ask again"):
        asyncio.run(_all(session.regenerate([WILD], system="", key="", scorer=None)))


def test_a_reset_under_way_ends_the_answers_and_leaves_the_new_conversation_alone(server):
    server.pieces = lambda body: ["half", HELD]
    session = session_of(server)

    async def talk():
        async for _ in session.send("one", [TAME], system="", key="", scorer=None):
            if session.conversation.turns and session.conversation.turns[0].answers[0].text:
                session.reset()

    asyncio.run(asyncio.wait_for(talk(), 60))
    assert session.conversation.turns == []
    assert not session.is_busy
    assert server.hung_up.acquire(timeout=60)


def test_a_judgement_that_could_not_be_stored_can_be_given_again(server, tmp_path):
    files = JudgementFiles(str(tmp_path / "said"), annotator="ada", url=server.url)
    session = session_of(server, files=files)
    send(session)
    (tmp_path / "said").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="not stored"):
        session.judge("left")
    (tmp_path / "elsewhere").rename(tmp_path / "said")
    session.judge("left")
    assert session.said == f"stored in {tmp_path / 'said' / 'comparisons.jsonl'}"
    with pytest.raises(ConfigError, match="not stored: this turn is judged"):
        session.judge("right")
    assert len((tmp_path / "said" / "comparisons.jsonl").read_text().splitlines()) == 1


def test_the_server_says_which_models_have_control_tokens_and_which_scorers_it_has(server):
    asked = ChatServer(Endpoint(server.url))
    assert asked.list_models() == [ListedModel("tame", CONTROLS), ListedModel("wild")]
    assert asked.list_scorers() == []
    server.scorers = ["pep8", "toxicity"]
    assert asked.list_scorers() == ["pep8", "toxicity"]


def test_no_thread_is_left(server):
    send(session_of(server))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]


def test_a_scorer_in_another_format_is_an_error_in_words(server):
    session = session_of(server)

    async def score():
        async with session.server.connected() as connection:
            await connection.score("shouting", "")

    server.score_refusal = 200, "not scores"
    with pytest.raises(ServiceError, match="answered in another format"):
        asyncio.run(score())
