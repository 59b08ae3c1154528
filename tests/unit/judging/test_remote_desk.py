"""Questions that are looked up together, without Ray: the actor is one of this event loop."""

import asyncio
from types import SimpleNamespace

from ask_judge import question

from phf_ray.judging.on_ray import RemoteDesk
from phf_ray.judging.question import Answer

ANSWER = Answer("Output (a)")


def test_one_who_gives_up_takes_no_answer_from_the_others():
    async def find_all(keys: list[str]) -> list[Answer]:
        await asyncio.sleep(0.01)
        return [ANSWER] * len(keys)

    async def work() -> Answer | object:
        desk = RemoteDesk(SimpleNamespace(find_all=SimpleNamespace(remote=find_all)))
        gives_up, stays = (asyncio.ensure_future(desk.ask(question(number))) for number in range(2))
        await asyncio.sleep(0)
        gives_up.cancel()
        return await stays

    assert asyncio.run(work()) == ANSWER
