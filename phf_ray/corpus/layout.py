"""Names in the folder of a scored corpus, and how to recognise one.

    part-00000.parquet ...  id, texts, scores, avg_score, num_sents, errors, meta; scores__<name>, ... of other scorers
    rejected/part-*.parquet source, record, reason, detail of records that could not be read or stored
    plan.json               input, configuration and shards; shard i becomes part i
    manifest.json           who scored, how much, how the scores are distributed
    README.md               data card that `datasets.load_dataset` reads
    _SUCCESS                written last

These names are a contract: users, `datasets` and later stages read them.
"""

import hashlib
import json
import posixpath
import uuid
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pyarrow as pa

from phf_ray.storage.files import full_name, is_local, open_filesystem, store_errors, write_file

MANIFEST = "manifest.json"
PLAN = "plan.json"
SUCCESS = "_SUCCESS"
CARD = "README.md"
REJECTED = "rejected"
TEMPORARY = "_tmp"
FILES = (SUCCESS, MANIFEST, CARD, "summary.json", PLAN)
"""What stands beside the parts, in the order in which it is removed."""


def scratch_for(path: str) -> Path:
    """A new name in `_tmp` of the corpus, which is on the same disk, as renaming requires."""
    folder = Path(path).parent
    root = folder.parent if folder.name in (REJECTED, TEMPORARY) else folder
    (root / TEMPORARY).mkdir(parents=True, exist_ok=True)
    return root / TEMPORARY / f"{Path(path).name}.{uuid.uuid4().hex}"


def write_corpus_file(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """`write_file` with the temporary name in `_tmp`: what a killed job leaves there is known to be of no worth."""
    write_file(full_name(filesystem, path), content, scratch=scratch_for(path) if is_local(filesystem) else None)


def document_id(source: str, record: int, text: str) -> str:
    """blake2b-128 of the source path relative to its input root, the record's index in it, and the content."""
    digest = hashlib.blake2b(f"{source}\0{record}\0".encode(), digest_size=16)
    digest.update(text.encode())
    return digest.hexdigest()


def part_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def columns_of(name: str, *, is_first: bool) -> tuple[str, str, str]:
    """Names of the columns that hold a scorer's scores, errors and averages."""
    suffix = "" if is_first else f"__{name}"
    return f"scores{suffix}", f"errors{suffix}", f"avg_score{suffix}"


def part_schema(scorers: Sequence[str]) -> pa.Schema:
    """Columns of a part; the first scorer is the one that is trained on."""
    fields = [pa.field("id", pa.string()), pa.field("texts", pa.list_(pa.string()))]
    for index, name in enumerate(scorers):
        scores, errors, average = columns_of(name, is_first=index == 0)
        fields += [pa.field(scores, pa.list_(pa.float64())), pa.field(average, pa.float64())]
        if index == 0:
            fields.append(pa.field("num_sents", pa.int64()))
        fields.append(pa.field(errors, pa.list_(pa.string())))
    return pa.schema([*fields, pa.field("meta", pa.string())])


OWN_KEYS = {MANIFEST: {"scorers", "segmenter"}, PLAN: {"identities", "shards"}}
"""Some that only ours have."""


def is_scored_corpus(path: str) -> bool:
    """Whether this folder was written by jobs.score_corpus, finished or not."""
    filesystem, root = open_filesystem(path)
    with store_errors(path):
        return any(has_ours(filesystem, root, name) for name in OWN_KEYS)


def has_ours(filesystem: fsspec.AbstractFileSystem, root: str, name: str) -> bool:
    """Whether the manifest or plan in this folder is there and ours: others use such names too.

    One that is empty, no JSON or not to be read may be ours and damaged: parts beside it tell.
    """
    file = posixpath.join(root, name)
    if not filesystem.exists(file):
        return False
    try:
        values = json.loads(filesystem.cat_file(file))
    except (ValueError, RecursionError, PermissionError, IsADirectoryError):
        values = None
    if not values:
        return bool(parts_in(filesystem, root))
    return isinstance(values, dict) and values.keys() >= OWN_KEYS[name]


def parts_in(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """Committed parts. By number, not by name: part-100000 comes after part-99999."""
    if not filesystem.exists(root):
        return []
    names = [posixpath.basename(str(name)) for name in filesystem.ls(root, detail=False)]
    found = filter(is_part, names)
    return [posixpath.join(root, name) for name in sorted(found, key=lambda name: (len(name), name))]
