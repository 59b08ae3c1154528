"""Questions against a real HTTP server that counts: each asked once, retried if it helps, within the budget."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ask_judge import PRICE, ask_all, asker_of, question
from judge_server import JudgeServer, judge_server
from places import ROOT

from phf_ray.errors import ConfigError, ServiceError
from phf_ray.http.client import RefusedError
from phf_ray.judging.budget import UNIT, BudgetSpentError, most_of
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.owner import CLAIM_S
from phf_ray.judging.question import Answer, Failure, Question
from phf_ray.judging.store import Store


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "cache")
    yield opened
    opened.close()


def busy(status: int, **headers: str):
    return status, headers, {"error": {"message": "the server's own words"}}


def test_equal_questions_are_asked_once_and_never_again(server, store):
    asker = asker_of(store, server.url)
    first, second, other = ask_all(asker, [question(1), question(1), question(2)])
    assert isinstance(first, Answer)
    assert first == second
    assert first.text.startswith("Output (")
    assert len(server.asked) == 2
    assert ask_all(asker_of(store, server.url), [question(2), question(1)]) == [other, first]
    assert len(server.asked) == 2, "the second run asks nothing"


def test_no_more_requests_are_in_flight_than_the_endpoint_allows(server, store):
    server.delay_s = 0.5
    ask_all(asker_of(store, server.url, max_in_flight=3), [question(number) for number in range(9)])
    assert 2 <= server.most_in_flight <= 3, "a busy machine may be late with the third"


def test_what_the_question_asks_for_reaches_the_server_and_comes_back(server, store):
    likely = {"top_logprobs": [{"token": "b", "logprob": -2.0}, {"token": "a", "logprob": -0.1}]}
    server.script = lambda body, count: (
        200,
        {},
        {"choices": [{"message": {"content": "a"}, "logprobs": {"content": [likely]}}]},
    )
    asked = question(1, logit_bias={"7": -100}, logprobs=True, top_logprobs=2, temperature=0)
    asked = Question(asked.judge, messages=asked.messages, decoding=asked.decoding, seed=3)
    (answer,) = ask_all(asker_of(store, server.url), [asked])
    assert isinstance(answer, Answer)
    assert answer.top_logprobs == (("a", -0.1), ("b", -2.0))
    (body,) = server.asked
    assert body == {
        "model": "judge",
        "messages": [{"role": "user", "content": "Which is better? 1"}],
        "max_tokens": 10,
        "logit_bias": {"7": -100},
        "logprobs": True,
        "top_logprobs": 2,
        "temperature": 0,
        "seed": 3,
    }
    assert ask_all(asker_of(store, server.url), [asked]) == [answer]


def test_completions_are_asked_for_where_the_prompt_is_a_text(server, store):
    server.script = lambda body, count: (
        200,
        {},
        {"choices": [{"text": " (b)", "logprobs": {"top_logprobs": [{"(": -0.5, " (": -0.1}]}}]},
    )
    (answer,) = ask_all(asker_of(store, server.url), [Question("judge", prompt="which?", decoding={"max_tokens": 4})])
    assert isinstance(answer, Answer)
    assert (answer.text, answer.top_logprobs) == (" (b)", ((" (", -0.1), ("(", -0.5)))
    assert server.asked == [{"model": "judge", "max_tokens": 4, "prompt": "which?"}]


def test_a_key_goes_with_the_request(server, store, monkeypatch):
    from phf_ray.http.keys import parse_endpoint
    from phf_ray.judging.endpoint import EndpointSettings, JudgeEndpoint
    from phf_ray.judging.stored_asker import StoredAsker

    monkeypatch.setenv("JUDGE_KEY", "secret")
    endpoint = parse_endpoint(f"{server.url}/v1,key_env=JUDGE_KEY", option="--annotators x")
    ask_all(StoredAsker(store, JudgeEndpoint(EndpointSettings(endpoint, "judge")), Ledger(store)), [question(1)])
    assert server.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_or_fails_is_asked_again(server, store, status):
    server.script = lambda body, count: busy(status) if count < 3 else None
    (answer,) = ask_all(asker_of(store, server.url, patience_s=20), [question(1)])
    assert isinstance(answer, Answer)
    assert len(server.asked) == 3
    assert Ledger(store).count() == {"free": 2, "settled": 1}, "a server that did nothing is paid nothing"


def test_the_server_says_when_to_come_back_and_the_requests_do_not_come_together(server, store):
    times = []

    def script(body, count):
        times.append((count, time.monotonic()))
        return busy(429, **{"retry-after": "0.5"}) if count == 1 else None

    server.script = script
    ask_all(asker_of(store, server.url, patience_s=20), [question(number) for number in range(8)])
    began = min(when for count, when in times)
    again = sorted(when - began for count, when in times if count == 2)
    assert again[0] >= 0.5
    assert again[-1] - again[0] > 0.02, "jitter"


def test_a_line_that_breaks_is_asked_again_and_may_have_cost_something(server, store):
    server.script = lambda body, count: OSError() if count == 1 else None
    (answer,) = ask_all(asker_of(store, server.url, patience_s=20), [question(1)])
    assert isinstance(answer, Answer)
    ledger = Ledger(store)
    assert ledger.count() == {"lost": 1, "settled": 1}
    assert answer.price is not None
    most = most_of(question(1), PRICE)
    assert ledger.spent().money == most.money + round(answer.price / UNIT)


def test_an_answer_that_takes_too_long_is_asked_for_again(server, store):
    server.delay_s = 5.0

    def ask_until_it_is_quick():
        while not server.asked:
            time.sleep(0.01)
        server.delay_s = 0.0

    threading.Thread(target=ask_until_it_is_quick).start()
    (answer,) = ask_all(asker_of(store, server.url, timeout_s=1.0, patience_s=60), [question(1)])
    assert isinstance(answer, Answer)
    count = Ledger(store).count()
    assert count["settled"] == 1
    assert count["lost"] == len(server.asked) - 1 > 0


def test_a_row_that_the_server_refuses_ends_with_its_words_and_the_others_go_on(server, store):
    server.script = lambda body, count: busy(400) if body["messages"][0]["content"].endswith(" 1") else None
    refused, answer = ask_all(asker_of(store, server.url), [question(1), question(2)])
    assert isinstance(refused, Failure)
    assert refused.kind == "refused"
    assert "status 400: " in refused.reason
    assert "the server's own words" in refused.reason
    assert isinstance(answer, Answer)
    assert server.counts.total() == 2, "not asked again"
    server.script = lambda body, count: None
    assert isinstance(ask_all(asker_of(store, server.url), [question(1)])[0], Answer), "a later run asks again"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_refuses_everything_ends_the_job_with_its_words(server, store, status):
    server.script = lambda body, count: busy(status)
    with pytest.raises(RefusedError, match=f"status {status}: .*the server's own words"):
        ask_all(asker_of(store, server.url, max_in_flight=2), [question(number) for number in range(20)])
    assert len(server.asked) <= 4, "the rest was not sent"


def test_a_server_that_is_away_ends_the_job_after_the_patience(server, store):
    with pytest.raises(ServiceError, match=r"did not answer within 2 s \(APIConnectionError.*is the server running"):
        ask_all(asker_of(store, "http://127.0.0.1:9", patience_s=2), [question(1)])
    assert Ledger(store).spent().tokens == 0, "nothing was sent"


def test_a_closed_asker_leaves_nothing_to_be_written(server, store):
    written = []
    store.submit(lambda db: time.sleep(0.2) or written.append("how the last call ended"))
    ask_all(asker_of(store, server.url), [])
    assert written


def test_one_question_without_an_answer_is_a_failure_if_others_are_answered(server, store):
    server.delay_s = 0.05
    server.script = lambda body, count: busy(500) if body["messages"][0]["content"].endswith(" 0") else None
    found = ask_all(
        asker_of(store, server.url, patience_s=2, max_in_flight=2), [question(number) for number in range(30)]
    )
    assert isinstance(found[0], Failure)
    assert found[0].kind == "unanswered"
    assert "the server's own words" in found[0].reason
    assert all(isinstance(one, Answer) for one in found[1:])


def test_an_answer_that_is_none_is_a_failure_that_may_have_cost_something(server, store):
    server.script = lambda body, count: (200, {}, {"object": "list"})
    (found,) = ask_all(asker_of(store, server.url), [question(1)])
    assert isinstance(found, Failure)
    assert found.kind == "malformed"
    assert "'object': 'list'" in found.reason
    assert Ledger(store).count() == {"lost": 1}


def test_without_a_count_of_tokens_the_most_is_paid(server, store):
    server.usage = False
    (answer,) = ask_all(asker_of(store, server.url), [question(1)])
    assert isinstance(answer, Answer)
    assert (answer.prompt_tokens, answer.price) == (None, None)
    assert Ledger(store).spent() == most_of(question(1), PRICE)


def test_a_budget_is_never_passed_and_goes_on_when_it_is_raised(server, store):
    server.delay_s = 0.02
    most = most_of(question(10), PRICE).money
    assert most is not None
    ask_all(asker_of(store, server.url), [question(99)])
    used = Ledger(store).spent().money
    assert used is not None
    # Enough for eight calls, and for reserving a ninth, which is given back in part.
    budget = used + 8 * used + most - 1
    questions = [question(number) for number in range(10, 40)]
    with pytest.raises(BudgetSpentError, match=r"have cost 0\.\d+ of the budget of 0\.\d+.*; raise --budget to go on"):
        ask_all(asker_of(store, server.url, budget=f"{budget * UNIT:.9f}"), questions)
    spent = Ledger(store).spent().money
    assert spent is not None
    assert spent <= budget
    assert spent > budget - most, "nothing was left that would have been enough"
    assert Ledger(store).count() == {"settled": len(server.asked)}, "what was under way was waited for"
    before = len(server.asked)
    assert all(isinstance(one, Answer) for one in ask_all(asker_of(store, server.url, budget="1.00"), questions))
    assert len(server.asked) == 31
    assert before < 31


def test_a_budget_in_tokens_needs_no_price(server, store):
    with pytest.raises(BudgetSpentError, match=r"have cost \d+ tokens of the budget of 300 tokens"):
        ask_all(asker_of(store, server.url, budget="300 tokens", price=None), [question(n) for n in range(40)])
    assert 0 < Ledger(store).spent().tokens <= 300
    with pytest.raises(ConfigError, match="has no price"):
        ask_all(asker_of(store, server.url, budget="1.00", price=None), [question(99)])


def test_two_budgets_in_two_threads_keep_one_ledger(server, tmp_path):
    server.delay_s = 0.02
    stores = [Store(tmp_path / "cache") for _ in range(2)]
    # Calls cost about a fourth of what they reserve; without a shared ledger both would spend all of it.
    budget = 12 * (most_of(question(10), PRICE).money or 0)
    askers = [asker_of(store, server.url, budget=f"{budget * UNIT:.9f}", max_in_flight=4) for store in stores]

    async def one(asker, first):
        found = await asyncio.gather(*(asker.ask(question(first + n)) for n in range(60)), return_exceptions=True)
        await asker.close()
        return found

    async def both():
        return await asyncio.gather(one(askers[0], 100), one(askers[1], 300))

    found = asyncio.run(both())
    assert all(any(isinstance(each, BudgetSpentError) for each in of_one) for of_one in found)
    spent = Ledger(stores[0]).spent().money
    assert spent is not None
    assert budget / 2 < spent <= budget
    for store in stores:
        store.close()


def process(server: JudgeServer, cache: Path, first: int, end: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, ROOT / "tests/support/ask_judge.py", server.url, str(cache), str(first), str(end)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_ask_each_question_once(server, store):
    server.delay_s = 0.05
    other = process(server, store.folder, 10, 60)
    here = ask_all(asker_of(store, server.url, max_in_flight=8), [question(number) for number in range(40, 0, -1)])
    there, _ = other.communicate(timeout=60)
    assert set(server.counts.values()) == {1}
    assert len(server.counts) == 59
    assert [answer.text for answer in here[:31]][::-1] == there.splitlines()[:31], "both report one answer"


def test_a_killed_process_loses_only_what_was_sent_and_not_stored(server, store):
    """Two kills at fixed moments; nobody waits for claims of the dead to expire."""
    server.delay_s = 0.3
    for answered in (20, 70):
        running = process(server, store.folder, 0, 200)
        while len(server.asked) - server.in_flight < answered:
            time.sleep(0.01)
            assert running.poll() is None
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()
        server.wait_until_alone()  # the server answers what was sent, and nobody hears it
    with sqlite3.connect(store.file) as db:
        (stored,) = db.execute("SELECT count(*) FROM answers").fetchone()
    lost = len(server.asked) - stored
    assert 0 < lost <= 2 * 64, "the kills met calls under way"
    since = time.monotonic()
    found = ask_all(asker_of(store, server.url), [question(number) for number in range(200)])
    assert time.monotonic() - since < CLAIM_S / 2
    assert all(isinstance(answer, Answer) for answer in found)
    assert len(server.counts) == 200
    assert server.counts.total() == 200 + lost
    count = Ledger(store).count()
    assert count["settled"] == 200
    assert lost <= count["lost"] <= 2 * 64, "what they may have cost is on record"
    ask_all(asker_of(store, server.url), [question(number) for number in range(200)])
    assert server.counts.total() == 200 + lost, "another run makes no call"


def test_half_a_character_in_an_answer_is_replaced_and_the_answer_kept(server, store):
    server.answer = lambda body: "Output (a) \ud83d"
    (answer,) = ask_all(asker_of(store, server.url), [question(1)])
    assert isinstance(answer, Answer)
    assert answer.text == "Output (a) \ufffd"
    assert ask_all(asker_of(store, server.url), [question(1)]) == [answer]
    assert len(server.asked) == 1


def test_a_question_that_cannot_be_sent_is_a_failure_of_its_own(server, store):
    odd = Question("judge", prompt="hi \ud83d", decoding={"max_tokens": 4})
    failure, answer = ask_all(asker_of(store, server.url), [odd, question(1)])
    assert isinstance(failure, Failure)
    assert "half of a surrogate pair" in failure.reason
    assert isinstance(answer, Answer)


def test_counts_of_tokens_that_are_none_are_left_out_and_the_answer_is_kept(server, store):
    choices = [{"message": {"content": "Output (a)"}}]
    usages: list[object] = [{"prompt_tokens": "7", "completion_tokens": 3}, {"prompt_tokens": 10**30}, "none"]
    server.script = lambda body, count: (200, {}, {"choices": choices, "usage": usages[len(server.asked) - 1]})
    answers = ask_all(asker_of(store, server.url, max_in_flight=1), [question(number) for number in range(3)])
    assert [answer.text for answer in answers if isinstance(answer, Answer)] == ["Output (a)"] * 3
    assert [answer.prompt_tokens for answer in answers if isinstance(answer, Answer)] == [None] * 3


def test_a_log_probability_that_is_no_number_is_a_failure_of_its_question(server, store):
    likely = {"top_logprobs": [{"token": "a", "logprob": "likely"}]}
    choice = {"message": {"content": "a"}, "logprobs": {"content": [likely]}}
    server.script = lambda body, count: (200, {}, {"choices": [choice]}) if len(server.asked) == 1 else None
    failure, answer = ask_all(asker_of(store, server.url, max_in_flight=1), [question(1), question(2)])
    assert isinstance(failure, Failure)
    assert failure.kind == "malformed"
    assert isinstance(answer, Answer)
