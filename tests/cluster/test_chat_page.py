"""The chat page in a real browser: two answers side by side, stop, a judgement that becomes a comparison."""

import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, Browser
from chat_server import HELD, chat_server
from places import ROOT

from jobs import prepare_feedback
from phf_ray.feedback import read_feedback

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, such as Debian's package of that name"),
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio: pip install 'phf-ray[chat]'"),
]
HOSTILE = "<img src=x onerror=\"document.title='taken'\"> ${document.title='taken'} {{value}}"
PATIENCE_S = 180


@pytest.fixture(scope="module")
def server():
    with chat_server() as running:
        running.scorers = ["shouting"]
        running.pieces = lambda body: [f"The {body.get('control')} one. ", "IT SHOUTS. ", HOSTILE]
        yield running


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("said")


@contextlib.contextmanager
def page_of(server, saved: Path, log: Path):
    """The command in a process of its own, as people start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--url", f"{server.url},key_env=CHAT_KEY", "--model", "tame:good", "--model", "tame:bad"]
    words += ["--save-comparisons", str(saved), "--annotator", "ada", "--port", str(port)]
    environment = {**os.environ, "CHAT_KEY": "the-secret", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with log.open("wb") as said:
        page = subprocess.Popen(
            [sys.executable, "-m", "jobs.chat", *words], cwd=ROOT, env=environment, stdout=said, stderr=said
        )
    url = f"http://127.0.0.1:{port}/"
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(url, trust_env=False, timeout=30)
                break
            assert page.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        page.terminate()
        page.wait(60)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "page.log"


@pytest.fixture(scope="module")
def browser(server, saved, log, tmp_path_factory):
    with page_of(server, saved, log) as url:
        running = Browser(tmp_path_factory.mktemp("profile"))
        running.open(url)
        running.wait_until("!!document.querySelector('#message textarea')", patience_s=PATIENCE_S)
        yield running
        running.close()


def say(browser, text):
    browser.value("document.querySelector('#message textarea').focus()")
    browser.call("Input.insertText", text=text)
    press(browser, "send")


def press(browser, name):
    browser.wait_until(f"!document.querySelector('#{name}').disabled")
    browser.value(f"document.querySelector('#{name}').click()")


def answers(browser, state):
    return f"document.querySelectorAll('.phf-answer[data-state={state}]').length"


def test_a_person_talks_stops_judges_and_the_judgement_is_a_comparison(browser, server, saved, log, tmp_path):
    # Two answers grow side by side, and stop hangs up on both.
    pieces = server.pieces
    server.pieces = lambda body: ["half of it", HELD]
    say(browser, "first")
    browser.wait_until(f"{answers(browser, 'waiting')} === 2 && document.body.textContent.includes('half of it')")
    left, right = (
        f"document.querySelector('[data-side={side}]').getBoundingClientRect()" for side in ("left", "right")
    )
    assert browser.value(f"{left}.right <= {right}.left && {left}.top === {right}.top") is True
    press(browser, "stop")
    browser.wait_until(f"{answers(browser, 'stopped')} === 2")
    for _ in range(2):
        assert server.hung_up.acquire(timeout=PATIENCE_S)
    server.pieces = pieces

    # The same message again; its sentences are coloured, the bad ones deeper, and the number shows.
    press(browser, "regenerate")
    browser.wait_until(f"{answers(browser, 'done')} === 2 && document.querySelectorAll('mark').length >= 6")
    depth = "getComputedStyle([...document.querySelectorAll('mark')].find(m => m.textContent.includes('{}'))).{}"
    deep, pale = (browser.value(depth.format(word, "backgroundColor")) for word in ("SHOUTS", "one"))
    assert float(deep.split(",")[-1].rstrip(")")) > 3 * float(pale.split(",")[-1].rstrip(")")) > 0
    browser.value("[...document.querySelectorAll('mark')].find(m => m.textContent.includes('SHOUTS')).focus()")
    assert browser.value("getComputedStyle(document.querySelector('mark:focus'), '::after').content") == '"0.9"'

    # Words of a model are text.
    assert browser.value("document.querySelector('.phf-text').textContent").endswith(HOSTILE)
    assert browser.value("document.title") == "phf chat"

    # What the person says lands in the file, once, with the places as they were.
    names = browser.value("[...document.querySelectorAll('.phf-head b')].map(b => b.textContent)")
    press(browser, "right")
    browser.wait_until("document.querySelector('#status').textContent.includes('stored in')")
    browser.wait_until("document.querySelector('#right').disabled")
    assert prepare_feedback.main(["--input", str(saved / "comparisons.jsonl"), "--output", str(tmp_path / "set")]) == 0
    (row,) = read_feedback(str(tmp_path / "set"))
    meta = json.loads(row.meta)
    assert names == [f"left: {meta['generator_1']}", f"right: {meta['generator_2']}"]
    assert {meta["generator_1"], meta["generator_2"]} == {"tame:good", "tame:bad"}
    assert row.output_2.startswith(f"The {meta['settings_2']['control']} one. IT SHOUTS.")
    assert (row.preference, row.annotator) == (2.0, "ada")

    # Both go on from the better answer; a server that refuses is told in words, and what was said stays.
    server.refusal = 429, "come back tomorrow"
    say(browser, "second")
    browser.wait_until("document.body.textContent.includes('come back tomorrow')")
    assert {body["messages"][1]["content"] for body in server.bodies[-2:]} == {row.output_2}
    assert browser.value(answers(browser, "done")) == 2
    server.refusal = None


def test_nobody_but_the_pages_host_is_asked_and_the_key_is_nowhere(browser, server, log):
    if not server.keys:  # run by itself
        say(browser, "hello")
        browser.wait_until(f"{answers(browser, 'done')} === 2")
    hosts = {re.match(r"\w+://([^/]*)", url)[1] for url in browser.requests()}
    assert hosts == {browser.value("location.host")}
    said = [str(event["params"]) for event in browser.complaints()]
    assert not [line for line in said if "Content Security Policy" in line or "exceptionDetails" in line]
    assert set(server.keys) == {"Bearer the-secret"}
    assert "the-secret" not in log.read_text() + browser.value("document.documentElement.outerHTML")


def test_the_page_fits_a_phone_and_is_dark_where_the_browser_is(browser):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.resize(390)
    browser.wait_until("document.documentElement.scrollWidth <= window.innerWidth")
    left, right = (
        f"document.querySelector('[data-side={side}]').getBoundingClientRect()" for side in ("left", "right")
    )
    browser.wait_until(f"{left}.left === {right}.left && {left}.bottom <= {right}.top")
    browser.wait_until("getComputedStyle(document.querySelector('.phf-answer')).color.match(/\\d+/)[0] > 180")
    assert browser.brightness(".phf-answer", "backgroundColor") < 100


def test_reset_empties_the_page(browser):
    press(browser, "reset")
    browser.wait_until("document.querySelectorAll('.phf-answer').length === 0")


def test_pages_of_others_and_names_of_others_are_kept_out(browser):
    host = browser.value("location.host")
    for headers in ({"Origin": "http://example.com"}, {"Origin": "null"}):
        assert httpx.get(f"http://{host}/config", headers=headers, trust_env=False).status_code == 403
    assert httpx.get(f"http://{host}/config", headers={"Host": "example.com"}, trust_env=False).status_code == 403
    own = httpx.get(f"http://{host}/config", headers={"Origin": f"http://{host}"}, trust_env=False)
    assert "default-src 'self'" in own.headers["content-security-policy"]
    assert own.json()["analytics_enabled"] is False


def test_a_single_answer_gets_a_thumb(browser, saved):
    browser.value("document.querySelector('#count input').click()")
    browser.wait_until("!document.querySelector('#model-2')")
    say(browser, "alone")
    browser.wait_until(f"{answers(browser, 'done')} === 1")
    press(browser, "up")
    browser.wait_until("document.querySelector('#status').textContent.includes('labels.jsonl')")
    (line,) = (saved / "labels.jsonl").read_text().splitlines()
    assert json.loads(line)["label"] is True


def test_the_conversation_is_exported_as_a_file_that_the_browser_makes(browser):
    browser.value(
        "window.createObjectURL = URL.createObjectURL; URL.createObjectURL = blob => "
        "{ blob.text().then(text => { window.exported = text; }); return window.createObjectURL(blob); }; 0"
    )
    press(browser, "export")
    (line,) = browser.wait_until("window.exported").splitlines()
    assert json.loads(line)["messages"][-2] == {"role": "user", "content": "alone"}


def test_a_page_that_is_loaded_again_offers_the_models_that_the_server_has_now(browser, server):
    server.models.append({"id": "latest", "control": None})
    browser.value("window.isOld = true")
    browser.call("Page.reload")
    offered = "[...document.querySelectorAll('#model-1 li, [role=option]')].some(o => o.textContent.includes('latest'))"
    browser.wait_until("!window.isOld && !!document.querySelector('#model-1 input')")
    browser.wait_until(
        "(document.querySelector('#model-1 input').blur(), document.querySelector('#model-1 input').focus(), true) && "
        + offered
    )
    browser.value("document.querySelector('#count input').click()")
    browser.wait_until("!document.querySelector('#model-2')")


def test_a_tab_that_is_closed_hangs_up(browser, server):
    server.pieces = lambda body: ["half of it", HELD]
    say(browser, "never to be read")
    browser.wait_until(f"{answers(browser, 'waiting')} === 1 && document.body.textContent.includes('half of it')")
    browser.call("Page.navigate", url="about:blank")
    assert server.hung_up.acquire(timeout=PATIENCE_S)
