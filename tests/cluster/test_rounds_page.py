"""The page of a run of rounds in a real browser."""

import json

import pytest
from browser import CHROMIUM, Browser
from rollout_rounds import write_overoptimized_run

from phf_ray.rollouts.guard import StopRules, write_rounds_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, such as Debian's package of that name")
ROUNDS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "a <run>"
    run.mkdir()
    write_overoptimized_run(run, num_rounds=ROUNDS)
    write_rounds_report(run, rules=StopRules(gold_patience=3))
    return run


@pytest.fixture(scope="module")
def browser(run, tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    running.open(run / "report.html")
    yield running
    running.close()


def test_the_page_loads_without_a_word_in_the_console_and_asks_for_nothing_else(browser):
    assert browser.complaints() == []
    assert len(browser.requests()) == 1


def test_every_round_has_a_mark_and_a_row_and_the_peak_is_marked(browser, run):
    report = json.loads((run / "report.json").read_text())
    for curve in ("gold-against-kl", "gold-by-round-gold", "reward-against-kl", "kl-by-round-KL"):
        marks = f"""[...document.querySelectorAll('#mark-{curve} use')].filter(
                      mark => mark.getBoundingClientRect().width > 2).length"""
        assert browser.value(marks) == len(report["rounds"]) == ROUNDS, curve
    assert browser.value("document.querySelectorAll('tr[data-round]').length") == ROUNDS
    assert browser.value("document.querySelector('tr.peak').dataset.round") == str(report["gold_peak"]["round"])
    assert browser.value("document.querySelectorAll('#mark-gold-peak').length") == 2


def test_hostile_answers_prompts_and_names_change_nothing(browser):
    assert browser.value("document.title") == "phf-ray rounds of a <run>"
    assert browser.value("document.querySelectorAll('img, script').length") == 0
    assert browser.value("document.body.textContent.includes(\"<script>document.title='taken'\")") is True


def test_samples_are_hidden_until_asked_for_and_stand_side_by_side(browser):
    shown = "[...document.querySelectorAll('.beside pre')].filter(part => part.checkVisibility())"
    assert browser.value(f"{shown}.length") == 0
    browser.value("document.querySelector('details summary').click()")
    assert browser.value(f"{shown}.length") == 4
    assert browser.value(f"new Set({shown}.map(part => part.getBoundingClientRect().left)).size") == 4


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_text_stands_out_from_the_page_in_both_themes(browser, theme, dark):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    page = browser.brightness("body", "backgroundColor")
    assert (page < 100) == dark
    for selector, style in [
        ("td", "color"),
        (".warning", "color"),
        (".decision", "color"),
        ("figure svg text", "fill"),
    ]:
        assert abs(browser.brightness(selector, style) - page) > 75, selector


def test_nothing_is_wider_than_the_window_on_a_phone(browser):
    browser.resize(390)
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth") is True
    shown = "[...document.querySelectorAll('.beside pre')].filter(part => part.checkVisibility())"
    assert browser.value(f"new Set({shown}.map(part => part.getBoundingClientRect().left)).size") == 1
