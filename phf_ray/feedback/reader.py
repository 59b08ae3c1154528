"""Reads feedback corpora."""

import json
import posixpath
from collections.abc import Iterator

from phf_ray.corpus.layout import MANIFEST, SUCCESS, has_ours, parts_in
from phf_ray.corpus.tables import read_rows
from phf_ray.errors import DataError
from phf_ray.feedback.layout import FEEDBACK_KEYS, row_of
from phf_ray.feedback.manifest import FeedbackManifest
from phf_ray.feedback.rows import FeedbackRow
from phf_ray.storage.files import full_name, open_filesystem, store_errors


def read_feedback_manifest(path: str) -> FeedbackManifest:
    """Return the manifest of a finished feedback corpus. Raises DataError if there is none."""
    filesystem, root = open_filesystem(path)
    with store_errors(path):
        if not has_ours(filesystem, root, MANIFEST, keys=FEEDBACK_KEYS):
            raise DataError(f"{path} has no {MANIFEST} of phf prepare-feedback; give the --output of such a job")
        _require_finished(path)
        content = filesystem.cat_file(posixpath.join(root, MANIFEST))
    try:
        return FeedbackManifest.from_json(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}/{MANIFEST} is not a manifest of feedback: {error!r}; run phf prepare-feedback again with --restart"
        ) from None


def list_feedback_parts(path: str) -> list[str]:
    """List the parts of a finished feedback corpus in order. Raises DataError if some are missing or foreign."""
    manifest = read_feedback_manifest(path)
    filesystem, root = open_filesystem(path)
    with store_errors(path):
        parts = [full_name(filesystem, part) for part in parts_in(filesystem, root)]
    if len(parts) != manifest.num_parts:
        raise DataError(
            f"{path} has {len(parts)} parts, but its {MANIFEST} says {manifest.num_parts}; remove {SUCCESS} and run "
            "its prepare-feedback command again, which removes foreign parts and writes missing ones"
        )
    return parts


def read_feedback(path: str) -> Iterator[FeedbackRow]:
    """Yield the rows of a feedback corpus, by part and then in stored order."""
    for part in list_feedback_parts(path):
        yield from read_feedback_part(part)


def read_feedback_part(path: str) -> Iterator[FeedbackRow]:
    """Yield the rows of one file of `list_feedback_parts`, in order."""
    return map(row_of, read_rows(path))


def _require_finished(path: str) -> None:
    filesystem, root = open_filesystem(path)
    if not filesystem.exists(posixpath.join(root, SUCCESS)):
        raise DataError(f"{path} is not finished (it has no {SUCCESS}); run its prepare-feedback command again")
