"""Asks a judge from a process of its own: `python ask_judge.py URL CACHE FIRST END`, with the texts of the answers."""

import asyncio
import sys

from phf_ray.generation.chat.prompts import Message
from phf_ray.http.keys import Endpoint
from phf_ray.judging.budget import Budget, Price
from phf_ray.judging.endpoint import EndpointSettings, JudgeEndpoint
from phf_ray.judging.ledger import Ledger
from phf_ray.judging.question import Answer, Failure, Question
from phf_ray.judging.store import Store
from phf_ray.judging.stored_asker import StoredAsker

PRICE = Price(input=1.0, output=2.0)
JUDGE = "judge"


def asker_of(
    store: Store, url: str, *, budget: str | None = None, price: Price | None = PRICE, **settings: float
) -> StoredAsker:
    options = {"patience_s": 2.0, "timeout_s": 5.0, **settings}
    endpoint = JudgeEndpoint(EndpointSettings(Endpoint(url), JUDGE, price, **options))
    return StoredAsker(store, endpoint, Ledger(store, None if budget is None else Budget.parse(budget)))


def question(number: int, **decoding: object) -> Question:
    return Question(
        JUDGE, messages=(Message("user", f"Which is better? {number}"),), decoding={"max_tokens": 10, **decoding}
    )


def ask_all(asker: StoredAsker, questions: list[Question]) -> list[Answer | Failure]:
    async def work() -> list[Answer | Failure]:
        try:
            return await asyncio.gather(*map(asker.ask, questions))
        finally:
            await asker.close()

    return asyncio.run(work())


if __name__ == "__main__":
    url, cache, first, end = sys.argv[1:]
    opened = Store(cache)
    for answer in ask_all(asker_of(opened, url), [question(number) for number in range(int(first), int(end))]):
        sys.stdout.write(f"{answer.text if isinstance(answer, Answer) else answer.reason}\n")
    opened.close()
