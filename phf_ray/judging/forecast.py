"""What is left of a job, and what that will cost: for `--dry-run`, and where a budget is spent."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

from phf_ray.corpus.layout import SUCCESS
from phf_ray.corpus.output import CorpusFolder
from phf_ray.feedback.layout import FEEDBACK_KEYS
from phf_ray.judging.annotate import missing_shards
from phf_ray.judging.annotate_plan import AnnotateRequest, read_annotate_plan, read_staged, stage_pairs, staged_file
from phf_ray.judging.desk import DeskSettings
from phf_ray.judging.estimate import CountingAsker, Estimate, estimate_parts
from phf_ray.judging.importing import find_known, known_key
from phf_ray.judging.pairs import Judgement, Pair, unique_pairs
from phf_ray.judging.store import STORE_FILE, Store


def forecast(request: AnnotateRequest, desk: DeskSettings, *, output: str) -> Estimate:
    """Count what is left to ask. Writes nothing where no job has begun."""
    place = CorpusFolder(output, keys=FEEDBACK_KEYS)
    plan = read_annotate_plan(place)
    parts: Iterator[list[Pair]]
    if plan is not None and all(plan.key.get(name) == value for name, value in request.key().items()):
        todo = [] if place.has(SUCCESS) else missing_shards(place, plan)
        stage_pairs(request, place, plan, todo)
        num_pairs = plan.num_pairs
        parts = ([pair for _, pair in read_staged(staged_file(place, plan, shard))] for shard in todo)
    else:
        pairs = unique_pairs(list(request.source.rows()))[1]
        num_pairs, parts = len(pairs), iter([pairs])
    store = Store(desk.cache) if (Path(desk.cache) / STORE_FILE).exists() else None
    estimate = Estimate()

    def known(name: str, pair: Pair) -> Judgement | None:
        assert store is not None
        key = known_key(name, pair)
        return find_known(store, {key: name}).get(key)

    try:
        return asyncio.run(
            estimate_parts(
                request.steps,
                parts,
                num_pairs=num_pairs,
                asker=CountingAsker(estimate, desk.endpoints, store),
                estimate=estimate,
                known=None if store is None else known,
            )
        )
    finally:
        if store is not None:
            store.close()
