"""Names of the files in a scored corpus, and checks that recognise such a folder.

    part-00000.parquet ...  id, texts, scores, avg_score, num_sents, errors, meta; scores__<name>, ... of other scorers
    rejected/part-*.parquet source, record, reason, detail of records that could not be read or stored
    plan.json               input, configuration and shards; shard i becomes part i
    manifest.json           scorers, counts, distributions of scores
    README.md               data card that `datasets.load_dataset` reads
    _SUCCESS                written last

These names are a contract: users, `datasets` and later stages read them.
"""

import hashlib
import json
import posixpath
import uuid
from collections.abc import Mapping, Sequence
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
KEYS = "keys"
"""Of a feedback corpus: what tells equal rows."""
REPORT = "report.json"
FILES = (SUCCESS, REPORT, MANIFEST, CARD, "summary.json", PLAN)
"""Files next to the parts, in the order in which they are removed."""


def scratch_for(path: str) -> Path:
    """Return a new name in the corpus's `_tmp`. That folder is on the same disk, as renaming requires."""
    folder = Path(path).parent
    root = folder.parent if folder.name in (REJECTED, KEYS, TEMPORARY) else folder
    (root / TEMPORARY).mkdir(parents=True, exist_ok=True)
    return root / TEMPORARY / f"{Path(path).name}.{uuid.uuid4().hex}"


def write_corpus_file(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Call `write_file` with a temporary name in `_tmp`, where files that a killed job leaves can safely be deleted."""
    write_file(full_name(filesystem, path), content, scratch=scratch_for(path) if is_local(filesystem) else None)


def document_id(source: str, record: int, text: str) -> str:
    """Return the blake2b-128 of the source path relative to its input root, the record's index there, and the text."""
    digest = hashlib.blake2b(f"{source}\0{record}\0".encode(), digest_size=16)
    digest.update(text.encode())
    return digest.hexdigest()


def part_name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def is_part(name: str) -> bool:
    return name.startswith("part-") and name.endswith(".parquet")


def columns_of(name: str, *, is_first: bool) -> tuple[str, str, str]:
    """Return the names of the columns that hold a scorer's scores, errors and averages."""
    suffix = "" if is_first else f"__{name}"
    return f"scores{suffix}", f"errors{suffix}", f"avg_score{suffix}"


def part_schema(scorers: Sequence[str]) -> pa.Schema:
    """Return the columns of a part. Training uses the scores of the first scorer."""
    fields = [pa.field("id", pa.string()), pa.field("texts", pa.list_(pa.string()))]
    for index, name in enumerate(scorers):
        scores, errors, average = columns_of(name, is_first=index == 0)
        fields += [pa.field(scores, pa.list_(pa.float64())), pa.field(average, pa.float64())]
        if index == 0:
            fields.append(pa.field("num_sents", pa.int64()))
        fields.append(pa.field(errors, pa.list_(pa.string())))
    return pa.schema([*fields, pa.field("meta", pa.string())])


OWN_KEYS = {MANIFEST: {"scorers", "segmenter"}, PLAN: {"identities", "shards"}}
"""Keys found only in files that phf-ray wrote for a scored corpus."""


def is_scored_corpus(path: str) -> bool:
    """Whether jobs.score_corpus wrote this folder, finished or not."""
    filesystem, root = open_filesystem(path)
    with store_errors(path):
        return any(has_ours(filesystem, root, name) for name in OWN_KEYS)


def has_ours(
    filesystem: fsspec.AbstractFileSystem, root: str, name: str, *, keys: Mapping[str, set[str]] = OWN_KEYS
) -> bool:
    """Whether this folder has a manifest or plan that phf-ray wrote; other programs use these names too.

    `keys`: file -> keys that tell the kind of corpus; by default a scored one.
    A file that is empty, unreadable or not JSON may be a damaged file of phf-ray. It counts as one if the folder has
    parts.
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
    return isinstance(values, dict) and values.keys() >= keys[name]


def part_sizes(filesystem: fsspec.AbstractFileSystem, root: str) -> dict[str, int]:
    """Return name -> bytes of the committed parts, with one listing."""
    if not filesystem.exists(root):
        return {}
    entries = filesystem.ls(root, detail=True, refresh=True)
    named = ((posixpath.basename(str(entry["name"])), int(entry["size"] or 0)) for entry in entries)
    return {name: size for name, size in named if is_part(name)}


def parts_in(filesystem: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """List committed parts by number, not by name: part-100000 comes after part-99999."""
    if not filesystem.exists(root):
        return []
    names = [posixpath.basename(str(name)) for name in filesystem.ls(root, detail=False)]
    found = filter(is_part, names)
    return [posixpath.join(root, name) for name in sorted(found, key=lambda name: (len(name), name))]
