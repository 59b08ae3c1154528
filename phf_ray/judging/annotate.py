"""Annotates: pairs become a comparisons corpus, part by part, each exactly once, however often the job is interrupted.

The list of parts is the only record of progress, and the store keeps every answer: a part that was under way is judged
again from the store, and asks only what was not answered.
"""

import asyncio
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phf_ray.corpus.finish import checked_footers, write_end
from phf_ray.corpus.layout import SUCCESS
from phf_ray.corpus.output import CorpusFolder
from phf_ray.errors import IncompleteError
from phf_ray.feedback.layout import FEEDBACK_KEYS
from phf_ray.feedback.manifest import FeedbackManifest, feedback_card
from phf_ray.judging.annotate_plan import (
    AnnotatePlan,
    AnnotateRequest,
    PairsFound,
    plan_annotation,
    stage_pairs,
    staged_file,
)
from phf_ray.judging.annotate_shard import JudgingWork, ShardJudge
from phf_ray.judging.desk import DeskSettings, StoreDesk
from phf_ray.judging.failures import MAX_FAILED_FRACTION, check_failures, check_fraction, same_verdicts
from phf_ray.judging.importing import has_known
from phf_ray.judging.judged_rows import FORM, JudgingStats
from phf_ray.judging.store import Store
from phf_ray.storage.one_at_a_time import only_command

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 4
"""Parts that a process judges at once: while the last questions of one are answered, those of the next are asked."""
_ASK_AGAIN = ("refused", "unanswered", "malformed")
"""Kinds of failures that a later run may not meet. The others come from answers that are kept."""

Outcome = Mapping[str, Any]


class JudgingRunner(Protocol):
    def __call__(self, work: JudgingWork, shards: Sequence[Mapping[str, Any]], desk: DeskSettings) -> Iterator[Outcome]:
        """Judge the parts, and yield their outcomes as they come."""
        ...


@dataclass(frozen=True, slots=True)
class Annotated:
    """A finished job."""

    manifest: Mapping[str, Any]
    stats: JudgingStats
    warnings: tuple[str, ...]


def judge_here(work: JudgingWork, shards: Sequence[Mapping[str, Any]], desk: DeskSettings) -> Iterator[Outcome]:
    """Judge the parts in this process, a few at once. A `JudgingRunner`."""
    loop = asyncio.new_event_loop()
    opened = StoreDesk(desk)
    under_way: set[asyncio.Task[dict[str, Any]]] = set()
    try:
        judge, waiting = ShardJudge(work, opened), iter(shards)
        while True:
            while len(under_way) < PARTS_AT_ONCE and (shard := next(waiting, None)) is not None:
                under_way.add(loop.create_task(judge.judge(shard)))
            if not under_way:
                return
            done, under_way = loop.run_until_complete(asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED))
            errors = [error for task in done if (error := task.exception()) is not None]
            yield from (task.result() for task in done if task.exception() is None)
            if errors:
                raise errors[0]
    finally:
        for task in under_way:
            task.cancel()
        loop.run_until_complete(_ended(under_way))
        loop.run_until_complete(opened.close())
        loop.run_until_complete(loop.shutdown_default_executor())
        opened.store.close()
        loop.close()


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def annotate(
    request: AnnotateRequest,
    output: str,
    *,
    desk: DeskSettings,
    max_failed_fraction: float = MAX_FAILED_FRACTION,
    restart: bool = False,
    runner: JudgingRunner = judge_here,
) -> Annotated:
    """Judge all pairs into the folder or URL `output`. A second call does only the missing parts.

    Raises ConfigError if the request does not fit the input or the contents of `output`, or if another command works on
    it; DataError for a row that can't be judged; IncompleteError if too many judgements failed or the budget is spent.
    """
    check_fraction(max_failed_fraction)
    with only_command(output) as is_alone:
        place = CorpusFolder(output, keys=FEEDBACK_KEYS)
        planned = plan_annotation(request, place, restart=restart, is_alone=is_alone)
        return _annotate(request, place, planned, desk=desk, max_failed_fraction=max_failed_fraction, runner=runner)


def _annotate(
    request: AnnotateRequest,
    place: CorpusFolder,
    planned: tuple[AnnotatePlan, PairsFound | None],
    *,
    desk: DeskSettings,
    max_failed_fraction: float,
    runner: JudgingRunner,
) -> Annotated:
    plan, found = planned
    digests = [plan.digest(shard) for shard in range(plan.num_shards)]
    if not place.has(SUCCESS):
        total, todo = _progress(place, digests)
        check_failures(total.failures, max_failed_fraction, num_rows=plan.num_pairs, example=total.example)
        if todo:
            stage_pairs(request, place, plan, todo, found=found)
            work = JudgingWork(
                output=place.name(),
                pool=request.pool,
                seed=request.seed,
                p_label_flip=request.p_label_flip,
                num_pairs=plan.num_pairs,
                has_known=_has_known(desk.cache),
            )
            shards = [
                {"shard": shard, "digest": digests[shard], "file": staged_file(place, plan, shard)} for shard in todo
            ]
            for done, outcome in enumerate(runner(work, shards, desk), 1 + plan.num_shards - len(todo)):
                total.merge(JudgingStats.from_text(outcome["stats"]))
                log.info("%d/%d parts: %d pairs judged", done, plan.num_shards, total.rows.rows)
                check_failures(total.failures, max_failed_fraction, num_rows=plan.num_pairs, example=total.example)
    return _finish(place, plan, digests)


def missing_shards(place: CorpusFolder, plan: AnnotatePlan) -> list[int]:
    """Return the parts that are not there yet."""
    return _progress(place, [plan.digest(shard) for shard in range(plan.num_shards)])[1]


def _progress(place: CorpusFolder, digests: Sequence[str]) -> tuple[JudgingStats, list[int]]:
    """Return the counts of the parts that stay, and the others: missing, of another plan, or with rows to ask again."""
    committed = place.committed(len(digests))
    total, todo = JudgingStats(), set(range(len(digests))) - set(committed)
    for shard, footer in place.footers(committed):
        stats = None
        if footer is not None and footer["shard"] == digests[shard]:
            stats = JudgingStats.from_json(footer["stats"])
        if stats is None or any(kind in _ASK_AGAIN for _, kind in stats.failures):
            todo.add(shard)
        else:
            total.merge(stats)
    return total, sorted(todo)


def _has_known(cache: str) -> bool:
    store = Store(cache)
    try:
        return has_known(store)
    finally:
        store.close()


def _finish(place: CorpusFolder, plan: AnnotatePlan, digests: Sequence[str]) -> Annotated:
    missing = len(digests) - len(place.committed(len(digests)))
    if missing:
        raise IncompleteError(f"{missing} of {len(digests)} parts are missing in {place.path}; start the job again")
    stats = JudgingStats()
    hashed = hashlib.blake2b(digest_size=16)
    for footer in checked_footers(place.name(), digests):
        stats.merge(JudgingStats.from_json(footer["stats"]))
        hashed.update(footer["digest"].encode())
    stats.rows.rejected["duplicate"] += plan.num_duplicates
    stats.rows.rejected += type(stats.rows.rejected)()  # drops the zero
    place.remove_strangers(len(digests))
    manifest = FeedbackManifest(
        form=FORM,
        format="annotate",
        to=None,
        stats=stats.rows,
        fingerprint=hashed.hexdigest(),
        config=plan.key,
        input_fingerprint=str(plan.key["input"]),
        num_parts=plan.num_shards,
    )
    warnings = tuple(same_verdicts(stats.verdicts))
    described = {**manifest.to_json(), "judging": {**stats.described(), "warnings": list(warnings)}}
    if not place.has(SUCCESS):
        write_end(place.name(), manifest=described, card=feedback_card(manifest))
    return Annotated(described, stats, warnings)
