"""Prepares a feedback corpus shard by shard, each exactly once, however often the job is interrupted.

As in scoring, `plan.json` fixes files and shards before any work, each shard is committed as one part by a rename, and
the list of parts is the only record of progress. The input is read twice: duplicates are found over all shards first.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from phf_ray.corpus.finish import checked_footers, write_end
from phf_ray.corpus.layout import KEYS, REJECTED, SUCCESS
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan, input_fingerprint
from phf_ray.corpus.sources import described
from phf_ray.errors import DataError, IncompleteError
from phf_ray.feedback.duplicates import keys_from, repeats
from phf_ray.feedback.layout import FEEDBACK_KEYS, RowForm
from phf_ray.feedback.manifest import FeedbackManifest, FeedbackStats, feedback_card
from phf_ray.feedback.plan import FeedbackRequest, prepare_feedback_plan, shard_rows
from phf_ray.feedback.reader import read_feedback_manifest
from phf_ray.feedback.shard import keys_file, store_keys, write_part
from phf_ray.storage.at_once import at_once
from phf_ray.storage.files import open_filesystem
from phf_ray.storage.licenses import licenses_of
from phf_ray.storage.one_at_a_time import only_command

log = logging.getLogger(__name__)

Result = TypeVar("Result")
FeedbackRunner = Callable[[Callable[[Mapping[str, Any]], Any], Sequence[Mapping[str, Any]]], Iterator[Any]]
"""Calls a function for each row and yields the results in any order: `run_feedback_here`, or one of `on_ray`."""


def run_feedback_here(
    work: Callable[[Mapping[str, Any]], Result], rows: Sequence[Mapping[str, Any]]
) -> Iterator[Result]:
    """Do one row after the other in this process. This function is a `FeedbackRunner`."""
    return map(work, rows)


def prepare_feedback(
    request: FeedbackRequest,
    output: str,
    *,
    append: bool = False,
    restart: bool = False,
    runner: FeedbackRunner = run_feedback_here,
) -> FeedbackManifest:
    """Write the request's input into the folder or URL `output`. A second call does only the missing shards.

    `append`: also take in files that the stored plan does not have. The parts that are there stay as they are.

    Raises ConfigError if the request does not fit the input or the contents of `output`, or if another command works on
    it, and DataError if no record made a row.
    """
    with only_command(output):
        return _prepare_feedback(request, output, append=append, restart=restart, runner=runner)


def _prepare_feedback(
    request: FeedbackRequest, output: str, *, append: bool, restart: bool, runner: FeedbackRunner
) -> FeedbackManifest:
    place = CorpusFolder(output, keys=FEEDBACK_KEYS)
    plan = prepare_feedback_plan(request, place, append=append, restart=restart)
    if place.has(SUCCESS):
        manifest = read_feedback_manifest(output)
        if request.license is None or licenses_of(manifest.sources) == (request.license,):
            log.info("%s is complete; nothing to do", output)
            return manifest
    rows = shard_rows(plan, place)
    todo = _missing(rows, place)
    if todo:
        unread = _without_keys(rows, place)
        for done, _ in enumerate(runner(store_keys, unread), 1 + len(rows) - len(unread)):
            log.info("%d/%d shards read for duplicates", done, len(rows))
        repeated = repeats(list(at_once(lambda row: keys_from(_content(keys_file(place, row))), rows)))
        work = [{**row, "repeats": repeated[row["shard"]]} for row in rows if row["shard"] in todo]
        for done, _ in enumerate(runner(write_part, work), 1 + len(rows) - len(todo)):
            log.info("%d/%d shards written", done, len(rows))
    return _finish(plan, place, rows)


def _missing(rows: Sequence[Mapping[str, Any]], place: CorpusFolder) -> set[int]:
    """Return the shards that have no part, or that of another plan, which is written again."""
    sound = {
        shard
        for shard, footer in place.footers(place.committed(len(rows)))
        if footer is not None and footer["shard"] == rows[shard]["digest"]
    }
    return set(range(len(rows))) - sound


def _without_keys(rows: Sequence[Mapping[str, Any]], place: CorpusFolder) -> list[Mapping[str, Any]]:
    filesystem, folder = open_filesystem(place.name(KEYS))
    stored = {*filesystem.ls(folder, detail=False, refresh=True)} if filesystem.exists(folder) else set()
    return [row for row in rows if open_filesystem(keys_file(place, row))[1] not in stored]


def _content(file: str) -> bytes:
    filesystem, inner = open_filesystem(file)
    content: bytes = filesystem.cat_file(inner)
    return content


def _finish(plan: CorpusPlan, place: CorpusFolder, rows: Sequence[Mapping[str, Any]]) -> FeedbackManifest:
    missing = len(rows) - len(place.committed(len(rows)))
    if missing:
        raise IncompleteError(f"{missing} of {len(rows)} shards have no part in {place.path}; start the job again")
    stats = FeedbackStats()
    digest = hashlib.blake2b(digest_size=16)
    for footer in checked_footers(place.name(), [row["digest"] for row in rows]):
        stats.merge(FeedbackStats.from_json(footer["stats"]))
        digest.update(footer["digest"].encode())
    if not stats.rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(stats.rejected.items()))
        raise DataError(
            f"no record of the input made a row ({reasons}); {place.name(REJECTED)} names each record; fix the input "
            "and give --restart"
        )
    place.remove_strangers(len(rows))
    settings = plan.key["settings"]
    manifest = FeedbackManifest(
        form=RowForm(**plan.key["form"]),
        format=settings["format"],
        to=settings["to"],
        stats=stats,
        fingerprint=digest.hexdigest(),
        config=plan.key,
        input_fingerprint=input_fingerprint(plan),
        num_parts=len(rows),
        sources=tuple(described(plan.sources)),
    )
    write_end(place.name(), manifest=manifest.to_json(), card=feedback_card(manifest))
    return manifest
