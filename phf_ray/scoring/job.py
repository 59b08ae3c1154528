"""Scores a corpus shard by shard, each exactly once, however often the job is interrupted.

`plan.json` lists the input files and cuts them into shards before scoring starts. A worker reads a shard, scores it,
and commits it as one part: it writes a temporary file, then renames it. The folder's list of parts is the only record
of progress: a resumed job skips shards whose part exists and remembers no documents, and a worker that outlives its
driver does no harm. The price: a shard that was interrupted is scored again from its start.
"""

import json
import logging
from collections.abc import Callable

from phf_ray.corpus.layout import REJECTED, SUCCESS
from phf_ray.corpus.manifest import CorpusManifest
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan, input_fingerprint
from phf_ray.corpus.reader import read_corpus_manifest
from phf_ray.corpus.sources import described
from phf_ray.corpus.stats import CorpusStats
from phf_ray.corpus.writer import finish_corpus
from phf_ray.errors import DataError, IncompleteError
from phf_ray.records import ScorerIdentity
from phf_ray.scoring.executor import ScoringExecutor
from phf_ray.scoring.plan import prepare_output
from phf_ray.scoring.pools import scoring_pools, takes_gpu_pool
from phf_ray.scoring.progress import ProgressTracker, ScoreProgress
from phf_ray.scoring.request import ScoringRequest
from phf_ray.storage.licenses import licenses_of
from phf_ray.storage.one_at_a_time import only_command

log = logging.getLogger(__name__)


def run_scoring(
    request: ScoringRequest,
    output: str,
    *,
    append: bool = False,
    restart: bool = False,
    progress: Callable[[ScoreProgress], None] | None = None,
    executor: ScoringExecutor,
) -> CorpusManifest:
    """Score the request's input into the folder or URL `output`. A second call scores only the missing shards.

    `executor` scores the shards: `InProcessScoring()`, `RayScoring()` from `on_ray`, or `SmallScoring()`, which
    chooses between them. Raises ConfigError if the
    request can't be scored or does not fit the contents of `output`, or if another command works on it; DataError if
    no document could be read; IncompleteError if more than `scoring.max_failed_fraction` of the segments could not be
    scored.
    """
    with only_command(output):
        return _run_scoring(request, output, append=append, restart=restart, progress=progress, executor=executor)


def _run_scoring(
    request: ScoringRequest,
    output: str,
    *,
    append: bool,
    restart: bool,
    progress: Callable[[ScoreProgress], None] | None,
    executor: ScoringExecutor,
) -> CorpusManifest:
    place = CorpusFolder(output)
    plan = prepare_output(request, place, append=append, restart=restart)
    if place.has(SUCCESS):
        manifest = read_corpus_manifest(output)
        if request.license is None or licenses_of(manifest.sources) == (request.license,):
            log.info("%s is complete; nothing to do", output)
            return manifest
    scoring = request.config.scoring
    tracker = ProgressTracker(plan, place, progress=progress, max_failed_fraction=scoring.max_failed_fraction)
    # Start with large shards, so that no large shard runs alone at the end.
    sizes = [sum(piece.num_bytes for piece in shard) for shard in plan.shards]
    todo = sorted(set(range(len(plan.shards))) - tracker.done, key=lambda shard: (-sizes[shard], shard))
    if todo:
        executor.start(sum(sizes[shard] for shard in todo))
        tracker.start_clock()
        executor.tell(tracker.progress())
        rows = [plan.row(shard) for shard in todo]
        pools = scoring_pools(request, plan, output=place.name(), has_gpus=takes_gpu_pool(scoring.pools, executor))
        for row in executor.score(pools, rows):
            tracker.shard_done(int(row["shard"]), CorpusStats.from_json(json.loads(row["stats"])))
            executor.tell(tracker.progress())
    return _finish(plan, place, tracker=tracker, segmenter=scoring.segmenter)


def _finish(plan: CorpusPlan, place: CorpusFolder, *, tracker: "ProgressTracker", segmenter: str) -> CorpusManifest:
    missing = len(plan.shards) - len(place.committed(len(plan.shards)))
    if missing:
        raise IncompleteError(
            f"{missing} of {len(plan.shards)} shards have no part in {place.path}; start the job again"
        )
    if not tracker.stats.documents:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(tracker.stats.rejected.items()))
        raise DataError(
            f"no document could be read from the input ({reasons}); {place.name(REJECTED)} names each record; "
            "fix the input and give --restart"
        )
    tracker.judge(final=True)
    place.remove_strangers(len(plan.shards))
    return finish_corpus(
        place.name(),
        shards=[plan.digest(shard) for shard in range(len(plan.shards))],
        scorers=[ScorerIdentity(**identity) for identity in plan.identities],
        segmenter=segmenter,
        config=plan.key,
        input_fingerprint=input_fingerprint(plan),
        sources=described(plan.sources),
    )
