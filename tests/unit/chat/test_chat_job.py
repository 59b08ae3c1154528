"""`phf chat` before its page opens: what it finds on the server, and what it refuses."""

import socket
import subprocess
import sys

import pytest
from chat_server import chat_server
from places import ROOT

from jobs import chat
from phf_ray.chat.page.settings import PageSettings
from phf_ray.chat.server import CONTROLS, ChatServer
from phf_ray.errors import ConfigError, ServiceError
from phf_ray.http.keys import Endpoint


@pytest.fixture
def server():
    with chat_server() as running:
        yield running


def planned(server, capsys, *words):
    assert chat.main(["--url", server.url, "--dry-run", *words]) == 0
    return capsys.readouterr().out.removeprefix(f"{server.url}: ").strip()


@pytest.mark.parametrize(
    ("words", "arms"),
    [
        ([], "tame:good"),
        (["--model", "wild"], "wild"),
        (["--model", "tame:bad", "--model", "wild"], "tame:bad, wild"),
        (["--model", "tame", "--model", "tame:none"], "tame:good, tame:none"),
    ],
)
def test_the_models_and_their_control_tokens_are_those_that_the_server_lists(server, capsys, words, arms):
    assert planned(server, capsys, *words) == f"{arms}; scorers: none"


def test_the_wanted_scorer_comes_first_and_none_is_none(server, capsys):
    server.scorers = ["pep8", "toxicity"]
    assert planned(server, capsys, "--scorer", "toxicity").endswith("scorers: toxicity, pep8")
    assert planned(server, capsys, "--scorer", "none").endswith("scorers: none")


def test_a_server_that_lists_nothing_needs_a_name(server, capsys):
    server.models = []
    with pytest.raises(ConfigError, match="name one with --model"):
        planned(server, capsys)
    assert planned(server, capsys, "--model", "any:thing").startswith("any:thing;")


def test_a_page_lists_the_models_again_and_keeps_them_if_the_server_does_not_say(server, monkeypatch):
    page = PageSettings(ChatServer(Endpoint(server.url, None)), [], [("wild", None)])
    assert page.list_again() is None
    assert (page.names, page.controls_of("tame")) == (["tame", "wild"], CONTROLS)
    server.models = [{"id": "new", "control": None}]
    assert page.list_again() is None
    assert (page.names, page.controls_of("tame")) == (["new", "wild"], ())
    monkeypatch.setattr("phf_ray.chat.server.PATIENCE_S", 0.2)
    page.server = ChatServer(Endpoint("http://127.0.0.1:9", None))
    assert "listed before" in page.list_again()
    assert page.names == ["new", "wild"]
    page.models = []
    assert page.list_again() is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--model", "tamed"], "--model tamed: the server lists tame, wild"),
        (["--model", "wild:good"], "--model wild:good: the server lists"),
        (["--model", "a", "--model", "b", "--model", "c"], "3 times"),
        (["--scorer", "pep8"], "--scorer pep8: the server has no scorers"),
        (["--temperature", "nan"], "--temperature nan is not between"),
        (["--max-tokens", "0"], "--max-tokens 0 is below 1"),
        (["--port", "70000"], "--port 70000 is not between"),
        (["--save-comparisons", "s3://bucket/x"], "give a local folder"),
    ],
)
def test_wrong_words_are_refused_before_the_page_opens(server, capsys, words, problem):
    with pytest.raises(ConfigError, match=problem):
        planned(server, capsys, *words)


def test_a_server_that_is_away_is_an_error(monkeypatch):
    monkeypatch.setattr("phf_ray.chat.server.PATIENCE_S", 0.2)
    with pytest.raises(ServiceError, match="is the server running"):
        chat.main(["--url", "http://127.0.0.1:9", "--dry-run"])


def test_a_place_that_is_taken_is_refused(server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: the page can't listen there"):
            chat._require_free("127.0.0.1", port)
    chat._require_free("127.0.0.1", port)


def test_without_gradio_the_extra_is_named(server):
    code = (
        "from importlib import util; find = util.find_spec; "
        "util.find_spec = lambda name, *more: None if name == 'gradio' else find(name, *more); "
        "from jobs import cli, chat; "
        f"cli.run(chat.main, ['chat', '--url', {server.url!r}, '--port', '45678'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'phf-ray[chat]'")
    assert "Traceback" not in done.stderr
