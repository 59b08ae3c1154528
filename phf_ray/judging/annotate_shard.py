"""Judges the pairs of one part, and writes the part. The same in this process and in Ray's actors."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.part_file import PartFile
from phf_ray.feedback.layout import FEEDBACK_KEYS
from phf_ray.judging.annotate_plan import read_staged
from phf_ray.judging.desk import Desk
from phf_ray.judging.importing import known_key
from phf_ray.judging.judged_rows import FORM, JudgingStats, comparison_of
from phf_ray.judging.pairs import Judgement, Pair
from phf_ray.judging.pool import Pool
from phf_ray.judging.steps import JudgingOptions, Steps, judge_pairs

_ROW_GROUP = 1024


@dataclass(frozen=True, slots=True)
class JudgingWork:
    """What all parts of a job have in common. Plain values, which travel to Ray's actors."""

    output: str
    pool: Pool
    seed: int
    p_label_flip: float | None
    num_pairs: int
    has_known: bool
    """Whether the cache holds judgements from elsewhere."""


class ShardJudge:
    """Judges parts one after the other, or several at once in one event loop. Builds the judges once."""

    def __init__(self, work: JudgingWork, desk: Desk):
        self._work, self._desk = work, desk
        self._steps = Steps(work.pool, seed=work.seed, p_label_flip=work.p_label_flip)
        self._annotators = work.pool.build(seed=work.seed)

    async def judge(self, shard: Mapping[str, Any]) -> dict[str, Any]:
        """Write a part, and return its number and counts. `shard`: number, digest, and file of the pairs."""
        rows = read_staged(shard["file"])
        pairs = [pair for _, pair in rows]
        table = await self._known(pairs) if self._work.has_known else {}
        judgements = await judge_pairs(
            self._steps,
            self._annotators,
            pairs,
            JudgingOptions(
                asker=self._desk,
                known=(lambda name, pair: table.get(known_key(name, pair))) if table else None,
                num_pairs=self._work.num_pairs,
                in_flight=self._work.pool.in_flight,
            ),
        )
        stats = _write(
            self._work.output, shard, [(row, pair, said) for (row, pair), said in zip(rows, judgements, strict=True)]
        )
        return {"shard": shard["shard"], "stats": json.dumps(stats.to_json())}

    async def _known(self, pairs: list[Pair]) -> dict[str, Judgement]:
        asked = {}
        for pair in pairs:
            name = self._steps.annotator_of(pair).name
            asked[known_key(name, pair)] = name
        return await self._desk.known(asked)


def _write(output: str, shard: Mapping[str, Any], rows: list[tuple[dict[str, Any], Pair, Judgement]]) -> JudgingStats:
    place = CorpusFolder(output, keys=FEEDBACK_KEYS)
    part = PartFile(place.part(int(shard["shard"])), rejects=None, schema=FORM.schema)
    stats = JudgingStats()
    hashed = hashlib.blake2b(digest_size=16)
    try:
        made = []
        for row, pair, judgement in sorted(rows, key=lambda one: one[1].key):
            comparison = comparison_of(row, pair, judgement)
            stats.add(comparison, judgement)
            hashed.update(json.dumps([comparison.id, comparison.annotator, comparison.preference]).encode())
            made.append(comparison)
        for begin in range(0, len(made), _ROW_GROUP):
            part.write(FORM.columns(made[begin : begin + _ROW_GROUP]))
        part.commit({"shard": shard["digest"], "digest": hashed.hexdigest(), "stats": stats.to_json()})
    finally:
        part.abandon()
    return stats
