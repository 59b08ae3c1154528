"""The report in a real browser."""

import json

import numpy as np
import pytest
from browser import CHROMIUM, Browser

from phf_ray.evaluation.report.records import (
    ArmInfo,
    Evaluation,
    KLInfo,
    RedTeamInfo,
    RedTeamPrompt,
    RedTeamRound,
    Sample,
    ScenarioInfo,
    TaskResult,
)
from phf_ray.evaluation.report.write import write_report

HOSTILE = "</pre><script>document.title='taken'</script><img src='http://127.0.0.1:9/x' onerror=alert(1)>\x00\u202e"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, such as Debian's package of that name")


def kl(per_byte):
    return KLInfo(
        reference="mle",
        num_samples=9,
        num_impossible=0,
        per_sequence=(per_byte * 50, 1.0),
        per_token=(per_byte * 3, 0.1),
        per_byte=(per_byte, 0.01),
    )


def attack(rng):
    def round_of(number):
        best = 0.1 * (1 + number) + float(rng.random()) / 20
        scores = dict.fromkeys(("best_prompt_score", "best_10_prompt_score", "best_100_prompt_score"), best)
        rest = dict.fromkeys(("average_score", "round_best_prompt_score", "round_average_score"), best / 2)
        return RedTeamRound(number=number, num_tested=5 + number, outcomes={"new": 1}, **scores, **rest)

    worst = RedTeamPrompt(
        prompt=HOSTILE, round=1, mean=0.5, std=0.1, own_score=0.1, num_scored=9, continuations=((0.9, HOSTILE),)
    )
    trials = tuple(tuple(round_of(number) for number in range(4)) for _ in range(3))
    return RedTeamInfo(attacker="red", num_continuations=9, trials=trials, worst=(worst,))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    rng = np.random.default_rng(0)
    arms = [
        ArmInfo(
            name=name,
            model=name,
            loss=((1, 3.0), (2, 2.0)),
            kl=kl(number / 10),
            red_team=attack(rng),
            capabilities=(TaskResult(task="<task>", metric="acc", value=0.5, standard_error=0.1),),
        )
        for number, name in enumerate(("mle", "conditional:good", "a<b>&c"))
    ]
    scenarios = [
        ScenarioInfo(name="unconditional", num_samples=40),
        ScenarioInfo(name="functions", num_samples=40, num_prompts=10),
    ]
    evaluation = Evaluation(
        arms=tuple(arms), scenarios=tuple(scenarios), seeds=(0,), scorer={"name": "pep8", "unit": "violations"}
    )
    samples = [
        Sample(
            arm=arm.name,
            scenario=scenario.name,
            seed=0,
            index=index,
            prompt_index=index % 10 if scenario.num_prompts else None,
            prompt="def f():" if scenario.num_prompts else "",
            text=HOSTILE if index == 0 else "x = 1 " * 5,
            finish_reason="length",
            num_tokens=20,
            score=float(rng.exponential()) + 10 * (index == 0),
            error=None,
        )
        for scenario in scenarios
        for arm in arms
        for index in range(40)
    ]
    directory = tmp_path_factory.mktemp("a report")
    write_report(str(directory), samples, evaluation)
    return directory


@pytest.fixture(scope="module")
def browser(directory, tmp_path_factory):
    running = Browser(tmp_path_factory.mktemp("profile"))
    running.open(directory / "report.html")
    yield running
    running.close()


def test_the_page_loads_without_a_word_in_the_console_and_asks_for_nothing_else(browser):
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("file:")] == []
    assert len(browser.requests()) == 1


def test_as_many_marks_are_drawn_as_the_report_has_rows(browser, directory):
    report = json.loads((directory / "report.json").read_text())
    drawn = browser.value(
        """[...document.querySelectorAll('[id^="mark-mean-"]')].filter(mark => {
             const box = mark.getBoundingClientRect();
             return box.width > 2 && box.height > 2;
           }).map(mark => mark.id)"""
    )
    assert sorted(drawn) == sorted(f"mark-mean-{row['scenario']}-{row['arm']}" for row in report["table"])
    assert browser.value("document.querySelectorAll('tr[data-row]').length") == len(report["table"]) == 6
    assert browser.value("document.querySelectorAll('figure svg').length") == len(list(directory.glob("*.png")))


def test_attacks_are_drawn_with_a_mark_for_each_round_and_the_front_with_one_for_each_arm(browser, directory):
    report = json.loads((directory / "report.json").read_text())
    drawn = browser.value(
        """[...document.querySelectorAll('[id^="mark-best_prompt_score-"]')].map(curve => [
             curve.id.slice('mark-best_prompt_score-'.length),
             [...curve.querySelectorAll('use')].filter(mark => mark.getBoundingClientRect().width > 2).length])"""
    )
    assert sum(count for _, count in drawn) == len(report["red_team"]) == 12
    assert {arm for arm, _ in drawn} == {row["arm"] for row in report["red_team"]}
    assert browser.value("document.querySelectorAll('tr[data-attack]').length") == 3
    assert browser.value("document.querySelector('tr[data-capability]').cells[0].innerText") == "<task>"
    pareto = """[...document.querySelectorAll('[id^="mark-pareto-"]')].filter(
                  mark => mark.getBoundingClientRect().width > 2).length"""
    assert browser.value(pareto) == len(report["table"])


def test_hostile_samples_change_nothing(browser):
    assert browser.value("document.title") == "phf-ray report"
    assert browser.value("document.querySelectorAll('img, script').length") == 0
    assert browser.value("document.body.innerText.includes('a<b>&c')") is True


@pytest.mark.parametrize(("title", "number"), [("Random samples", 12), ("Worst samples", 10)])
def test_samples_are_hidden_until_asked_for(browser, title, number):
    shown = "[...document.querySelectorAll('details pre')].filter(part => part.checkVisibility()).length"
    assert browser.value(shown) == 0
    first = f"""(() => {{
        let part = [...document.querySelectorAll('h2')].find(head => head.innerText == '{title}');
        while (part.tagName != 'DETAILS') part = part.nextElementSibling;
        return part.querySelector('summary');
    }})()"""
    browser.value(f"{first}.click()")
    assert browser.value(shown) == number
    browser.value(f"{first}.click()")


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_text_stands_out_from_the_page_in_both_themes(browser, theme, dark):
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    page = browser.brightness("body", "backgroundColor")
    assert (page < 100) == dark
    for selector, style in [("td", "color"), ("figcaption", "color"), ("figure svg text", "fill")]:
        assert abs(browser.brightness(selector, style) - page) > 75, selector


def test_nothing_is_wider_than_the_window_on_a_phone(browser):
    browser.resize(390)
    assert browser.value("document.documentElement.scrollWidth <= window.innerWidth") is True
