"""Has all answers of a turn come at once, side by side, until they are done or a person stops them."""

import asyncio
from collections.abc import AsyncIterator

from phf_ray.chat.conversation import ChatAnswer, ChatTurn
from phf_ray.chat.server import ChatConnection, ChatServer
from phf_ray.errors import PhfError

REDRAW_S = 0.1
NOTHING_SAID = "the model said nothing"


class Stop:
    """A person's wish that the answers under way end where they are."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()

    def set(self) -> None:
        self.wanted.set()


async def fill_turn(
    turn: ChatTurn, server: ChatServer, *, stop: Stop, key: str | None = None, scorer: str | None = None
) -> AsyncIterator[None]:
    """Let the answers grow, and yield whenever there is something new to show.

    What fails is kept in the answer, in words. If the caller ends early, the server is told, by closed connections.
    """
    async with server.connected(key) as connection:
        tasks = [asyncio.create_task(_filled(answer, connection, scorer)) for answer in turn.answers]
        stopped = asyncio.create_task(stop.wanted.wait())
        try:
            shown: list[object] = []
            while not all(task.done() for task in tasks):
                if stop.wanted.is_set():
                    break
                running = {task for task in tasks if not task.done()}
                await asyncio.wait({*running, stopped}, timeout=REDRAW_S, return_when=asyncio.FIRST_COMPLETED)
                if (now := [_visible(answer) for answer in turn.answers]) != shown:
                    shown = now
                    yield
        finally:
            for task in (*tasks, stopped):
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            for answer in turn.answers:
                _end(answer)
    for error in ended:
        if isinstance(error, Exception):  # of ours: what a server does is in the answer
            raise error
    yield


async def _filled(answer: ChatAnswer, connection: ChatConnection, scorer: str | None) -> None:
    try:
        await connection.fill(answer)
    except PhfError as error:
        answer.state, answer.problem = "failed", str(error)
        return
    answer.state = "done"
    if scorer is None or not answer.text.strip():
        return
    try:
        answer.scores = await connection.score(scorer, answer.text)
    except PhfError as error:
        answer.score_problem = str(error)


def _end(answer: ChatAnswer) -> None:
    """Say how an answer ended that was cut off, or is empty."""
    if answer.state == "waiting":
        answer.state = "stopped"
    if answer.problem is None and not answer.text.strip():
        answer.problem = NOTHING_SAID if answer.state == "done" else "stopped before the model said anything"


def _visible(answer: ChatAnswer) -> object:
    return answer.text, answer.state, answer.scores is None, answer.score_problem
