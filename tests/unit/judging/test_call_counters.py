"""What judging on Ray shows in Ray's metrics. Without a Ray its counters record nothing, so their calls are kept."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest
from ask_judge import JUDGE, PRICE, question
from judge_server import JudgeServer, judge_server
from ray.util.metrics import Counter as RayCounter

from phf_ray.http.keys import Endpoint
from phf_ray.judging.budget import UNIT
from phf_ray.judging.desk import DeskSettings
from phf_ray.judging.endpoint import EndpointSettings
from phf_ray.judging.on_ray import AskingActor


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as started:
        yield started


def busy():
    return 503, {}, {"error": {"message": "busy"}}


@pytest.fixture
def counted(monkeypatch):
    found = Counter()

    def keep(self, value=1.0, tags=None):
        assert value > 0, "Ray refuses others"
        found[(self.info["name"], *tags.values())] += value

    monkeypatch.setattr(RayCounter, "inc", keep)
    return found


@pytest.mark.parametrize("price", [PRICE, None])
def test_calls_and_what_they_cost_are_counted_as_in_the_books(server, tmp_path, counted, price):
    # The server is busy, then its line breaks, then it answers.
    server.script = lambda body, count: busy() if count == 1 else OSError() if count == 2 else None
    settings = EndpointSettings(Endpoint(server.url), JUDGE, price, patience_s=20)
    actor = AskingActor(DeskSettings(str(tmp_path / "cache"), {JUDGE: settings}))

    async def work():
        for _ in range(2):  # the second time, the answer is stored
            await actor.ask(question(1))
        spent = actor._desk.ledger.spent()
        await actor.close()
        return spent

    spent = asyncio.run(work())
    calls = {outcome: value for (name, *_, outcome), value in counted.items() if name == "phf_judge_calls"}
    assert calls == {"free": 1, "lost": 1, "settled": 1}
    assert counted["phf_judge_tokens", JUDGE] == spent.tokens > 0
    assert counted["phf_judge_cost", JUDGE] == pytest.approx((spent.money or 0) * UNIT)
    assert (counted["phf_judge_cost", JUDGE] > 0) == (price is not None)
