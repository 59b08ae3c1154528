"""Judges parts with Ray Data: actors judge, and one actor asks for all of them, so that the store has one writer.

An actor that judges can die at any time: its questions are still answered and kept. The one that asks is started again
if it dies, and goes on from the store; it stays on the node of the job, where the cache is.
"""

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayTaskError
from ray.util.metrics import Counter as MetricCounter
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from phf_ray.corpus.on_ray import cluster_resources, data_settings, own_errors
from phf_ray.errors import PhfError
from phf_ray.judging.annotate import PARTS_AT_ONCE, JudgingRunner, Outcome
from phf_ray.judging.annotate_shard import JudgingWork, ShardJudge
from phf_ray.judging.budget import UNIT, Cost
from phf_ray.judging.desk import DeskSettings, StoreDesk
from phf_ray.judging.pairs import Judgement
from phf_ray.judging.question import Answer, Failure, Question

_MOST_QUESTIONS = 10_000
"""Calls that the asking actor has at once. It sends as many as the endpoints allow; the others wait in it."""


class CallCounters:
    """Adds the calls of judges to Ray's metrics. A `CallObserver`."""

    def __init__(self) -> None:
        self._calls = MetricCounter(
            "phf_judge_calls", description="calls of judges that ended", tag_keys=("judge", "outcome")
        )
        self._tokens = MetricCounter(
            "phf_judge_tokens", description="tokens of the calls of judges", tag_keys=("judge",)
        )
        self._money = MetricCounter("phf_judge_cost", description="money for the calls of judges", tag_keys=("judge",))

    def __call__(self, judge: str, state: str, cost: Cost) -> None:
        self._calls.inc(1, tags={"judge": judge, "outcome": state})
        # Ray refuses to add nothing.
        if cost.tokens:
            self._tokens.inc(cost.tokens, tags={"judge": judge})
        if cost.money:
            self._money.inc(cost.money * UNIT, tags={"judge": judge})


class AskingActor:
    """The desk of a job, in an actor of its own."""

    def __init__(self, settings: DeskSettings):
        self._desk = StoreDesk(settings, observer=CallCounters())

    async def find_all(self, keys: list[str]) -> list[Answer | None]:
        return [self._desk.store.find(key) for key in keys]

    async def ask(self, question: Question) -> Answer | Failure:
        return await self._desk.ask(question)

    async def known(self, asked: Mapping[str, str]) -> dict[str, Judgement]:
        return await self._desk.known(asked)

    async def close(self) -> None:
        await self._desk.close()
        self._desk.store.close()


class RemoteDesk:
    """A `Desk` that hands questions in at the asking actor. What is asked at the same time is looked up together."""

    def __init__(self, actor: Any):
        self._actor = actor
        self._together: list[str] = []
        self._found: asyncio.Task[dict[str, Answer | None]] | None = None

    async def ask(self, question: Question) -> Answer | Failure:
        key = question.key
        self._together.append(key)
        if self._found is None:
            self._found = asyncio.ensure_future(self._find())
        # One who gives up must not take the answers from the others.
        answer = (await asyncio.shield(self._found))[key]
        return answer if answer is not None else await _own(self._actor.ask.remote(question))

    async def known(self, asked: Mapping[str, str]) -> dict[str, Judgement]:
        return await _own(self._actor.known.remote(asked))

    async def close(self) -> None:
        """The actor is the job's."""

    async def _find(self) -> dict[str, Answer | None]:
        await asyncio.sleep(0)  # all that is asked now
        keys, self._together, self._found = self._together, [], None
        return dict(zip(keys, await _own(self._actor.find_all.remote(keys)), strict=True))


async def _own(answer: Any) -> Any:
    try:
        return await answer
    except RayTaskError as error:
        if isinstance(error.cause, PhfError):
            raise error.cause from None
        raise


class JudgeShards:
    """A Ray Data actor: judges parts, several at once."""

    def __init__(self, work: JudgingWork, actor: Any):
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="judging", daemon=True).start()
        self._judge = ShardJudge(work, RemoteDesk(actor))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(self._judge.judge(row), self._loop).result()


def judge_on_ray(*, max_actors: int | None = None) -> JudgingRunner:
    """Return a runner with at most `max_actors` actors that judge. Ray must be running.

    None: one for each CPU if judges compute in them, else one for every four.
    """

    def run(work: JudgingWork, shards: Sequence[Mapping[str, Any]], desk: DeskSettings) -> Iterator[Outcome]:
        computes = any(annotator.judge.is_here for annotator in work.pool.config.annotators)
        actor = _asking_actor(desk)
        try:
            with data_settings(), own_errors():
                data: ray.data.Dataset = ray.data.from_items(
                    [dict(one) for one in shards], override_num_blocks=len(shards)
                )
                judged = data.map(
                    JudgeShards,  # type: ignore[arg-type]
                    fn_constructor_args=(work, actor),
                    compute=ActorPoolStrategy(
                        min_size=1,
                        max_size=min(len(shards), max_actors or _room(computes=computes)),
                        # Ray Data starts another actor only if more parts wait than the actors can judge at once.
                        max_tasks_in_flight_per_actor=2 * PARTS_AT_ONCE,
                        max_concurrent_calls_per_actor=PARTS_AT_ONCE,
                    ),
                    num_cpus=1 if computes else 0,
                )
                yield from judged.iter_rows()
        finally:
            # It ends with its last handle. Killed, it would be asked again by those who still wait for it.
            ray.get(actor.close.remote())

    return run


def _asking_actor(desk: DeskSettings) -> Any:
    remote: Any = ray.remote  # its types are for classes with fixed options
    return (
        remote(AskingActor)
        .options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=_MOST_QUESTIONS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
        )
        .remote(desk)
    )


def _room(*, computes: bool) -> int:
    num_cpus = int(cluster_resources().get("CPU", 1))
    return max(1, num_cpus if computes else num_cpus // 4)
